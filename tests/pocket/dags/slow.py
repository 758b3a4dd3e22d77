"""A DAG whose only task waits for a file."""

from __future__ import annotations

import os
import time
from pathlib import Path

from airflow.sdk import DAG, task

OUT = Path(os.environ.get("DAG_OUT", "/nowhere"))

with DAG("slow") as dag:

    @task
    def first() -> str:
        return "done before"

    @task
    def work(before: str, ti=None) -> int:
        with (OUT / "effects").open("a") as file:
            file.write(f"begin {ti.try_number}\n")
        while not (OUT / "release").exists():
            time.sleep(0.05)
        with (OUT / "effects").open("a") as file:
            file.write(f"end {ti.try_number}\n")
        return ti.try_number

    work(first())
