"""A DAG that fails, with a callback."""

from __future__ import annotations

import os
import time
from pathlib import Path

from airflow.sdk import DAG, Variable, task

OUT = Path(os.environ.get("DAG_OUT", "/nowhere"))


def tell(context) -> None:
    (OUT / "told").touch()


with DAG("failing", on_failure_callback=tell) as dag:

    @task
    def breaks() -> None:
        raise RuntimeError("it went wrong here")

    @task
    def never(_: None) -> None:
        pass

    def tell_late(context) -> None:
        time.sleep(3)
        (OUT / "told-late").write_text(Variable.get("absent", default="no such variable"))

    @task(on_success_callback=tell_late)
    def apart() -> int:
        return 1

    never(breaks())
    apart()
