"""A dag file that a launcher reads, and whose second task it executes, for practice. No Airflow ever sees it."""

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import dag, task


@dag(schedule=None)
def rehearsed() -> None:
    """Do nothing."""

    @task
    def first() -> list[int]:
        return [1, 2]

    @task
    def second(number: int) -> None:
        """Return nothing: what tasks return may go to others than the execution API."""

    first() >> second.expand(number=[1, 2]) >> BashOperator(task_id="third", bash_command="true")


rehearsed()
