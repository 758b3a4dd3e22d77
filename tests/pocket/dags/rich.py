"""What a DAG may have, in one run."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.providers.standard.sensors.time_delta import TimeDeltaSensor
from airflow.sdk import DAG, Asset, Connection, Param, TriggerRule, Variable, setup, task, task_group, teardown
from beside import GREETING

OUT = Path(os.environ.get("DAG_OUT", "/nowhere"))


def note(name: str) -> None:
    with (OUT / "effects").open("a") as file:
        file.write(f"{name}\n")


with DAG("other", schedule="@hourly", start_date=datetime(2024, 1, 1), catchup=True) as other:

    @task
    def from_other() -> None:
        note("other")

    from_other()


with DAG(
    "rich",
    schedule="@daily",
    start_date=datetime(2024, 1, 1),
    catchup=True,
    is_paused_upon_creation=True,
    params={"n": Param(3, type="integer", minimum=1)},
    on_success_callback=lambda context: note("the DAG's callback"),
) as dag:

    @setup
    @task
    def prepare() -> str:
        return GREETING

    @teardown
    @task
    def clean_up() -> None:
        note("cleaned up")

    @task
    def items(params: dict | None = None) -> list[int]:
        return list(range(params["n"]))

    @task(pool="narrow")
    def double(item: int) -> int:
        return 2 * item

    @task_group
    def sums():
        @task
        def total(values: list[int]) -> int:
            return sum(values)

        return total(double.expand(item=items()))

    @task.branch
    def choose(total: int) -> str:
        return "large" if total > 5 else "small"

    # Whoever looks every few seconds sees that it waits.
    @task(retries=2, retry_delay=timedelta(seconds=15), on_retry_callback=lambda context: note("retry"))
    def second_time(ti=None) -> int:
        if ti.try_number == 1:
            raise RuntimeError("not yet")
        return ti.try_number

    @task.sensor(poke_interval=1, mode="reschedule")
    def looked_twice(ti=None) -> bool:
        seen = OUT / "looked"
        is_second = seen.exists()
        seen.touch()
        return is_second

    @task(outlets=[Asset("file:///made")])
    def given() -> dict:
        found = Connection.get("db")
        return {"host": found.host, "variable": Variable.get("colour"), "env": os.environ["FROM_FILE"], "text": "123"}

    @task(trigger_rule=TriggerRule.ALL_DONE)
    def last(conf_n: str) -> str:
        return conf_n

    total = sums()
    begin = prepare()
    chosen = choose(total)
    large, small = EmptyOperator(task_id="large"), EmptyOperator(task_id="small")
    chosen >> [large, small]
    deferred = TimeDeltaSensor(task_id="deferred", delta=timedelta(seconds=1), deferrable=True)
    child = TriggerDagRunOperator(task_id="child", trigger_dag_id="other", wait_for_completion=True, poke_interval=1)
    alone = TriggerDagRunOperator(task_id="alone", trigger_dag_id="other")
    end = last("{{ params.n }} {{ ds }}")
    begin >> [second_time(), looked_twice(), given(), deferred, child, alone] >> end
    [large, small] >> end >> clean_up().as_teardown(setups=begin)
