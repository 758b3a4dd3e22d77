"""Fan out, fan in: a list that is only known when the DAG runs, a process for each item, and a sum."""

from __future__ import annotations

from airflow.sdk import dag, task


@dag(schedule=None, catchup=False, tags=["air-executor", "example"], params={"count": 20})
def mapped_fan_out():
    """Dynamic task mapping; every mapped task instance gets a runner of its own."""

    @task
    def split(params: dict | None = None) -> list[int]:
        return list(range((params or {}).get("count", 20)))

    @task
    def square(number: int) -> int:
        return number * number

    @task
    def total(squares: list[int]) -> int:
        print(f"The sum of {len(squares)} squares is {sum(squares)}.")
        return sum(squares)

    total(square.expand(number=split()))


mapped_fan_out()
