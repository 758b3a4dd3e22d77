"""The DAG file of a rehearsal: a launcher reads it and executes its second task. No Airflow sees it."""

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
        """Return nothing: an XCom backend may send what tasks return elsewhere than to the execution API."""

    first() >> second.expand(number=[1, 2]) >> BashOperator(task_id="third", bash_command="true")


rehearsed()
