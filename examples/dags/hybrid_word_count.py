"""Both worlds: Airflow prepares, a job finds out how much there is to do and does it, Airflow reports."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from airflow.sdk import dag, task

from air_executor.operators import AirJobOperator

#: The functions of the job are modules beside the DAGs.
FOLDER = Path(__file__).parent


@task
def prepare() -> str:
    """Write a text whose length nobody else knows."""
    folder = Path(tempfile.mkdtemp(prefix="word-count-"))
    lines = [f"line {number} has some words, and {'more ' * (number % 7)}words" for number in range(1000)]
    (folder / "text.txt").write_text("\n".join(lines))
    return str(folder)


@task
def report(counted: dict[str, Any]) -> int:
    """Show what the job's last task has returned."""
    merged = counted["merge"]
    print(f"{merged['words']} words in {merged['chunks']} chunks")
    return int(merged["words"])


@dag(schedule=None, catchup=False, tags=["air-executor", "example"])
def hybrid_word_count():
    """The task ``split`` queues a task for each chunk that it finds, and one that merges what they count."""
    folder = prepare()
    count = AirJobOperator(
        task_id="count",
        tasks=[{"id": "split", "function": "work.words:split", "arguments": {"folder": folder, "lines": 200}}],
        max_runners=4,
        folder=str(FOLDER),
        manager="own",
    )
    report(count.output)


hybrid_word_count()
