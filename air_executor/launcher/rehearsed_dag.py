"""A dag file that a launcher reads for practice before its first fork. No Airflow ever sees it."""

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import dag, task


@dag(schedule=None)
def rehearsed() -> None:
    """Do nothing."""

    @task
    def first() -> list[int]:
        return [1, 2]

    @task
    def second(number: int) -> int:
        return number

    second.expand(number=first()) >> BashOperator(task_id="third", bash_command="true")


rehearsed()
