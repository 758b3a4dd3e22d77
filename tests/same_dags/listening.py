"""A plugin whose listener writes down what it is told, a line each."""

import json
import os
from pathlib import Path

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin


def heard(hook, ti=None, run=None, **more):
    known = {"run_id": ti.run_id, "task": ti.task_id, "index": ti.map_index} if ti is not None else {}
    if run is not None:
        known = {"run_id": run.run_id, "state": str(run.state)}
    line = {"hook": hook, **known, **{name: f"{type(value).__name__} {value}" for name, value in more.items()}}
    with (Path(os.environ["AIR_TEST_OUT"]) / "heard").open("a") as file:
        file.write(json.dumps(line) + "\n")


class Listener:
    @hookimpl
    def on_task_instance_running(self, previous_state, task_instance):
        heard("running", task_instance, previous_state=previous_state)
        print("the listener prints")

    @hookimpl
    def on_task_instance_success(self, previous_state, task_instance):
        heard("success", task_instance, previous_state=previous_state)

    @hookimpl
    def on_task_instance_failed(self, previous_state, task_instance, error):
        heard("failed", task_instance, previous_state=previous_state, error=error)

    @hookimpl
    def on_dag_run_running(self, dag_run, msg):
        heard("run running", run=dag_run)

    @hookimpl
    def on_dag_run_failed(self, dag_run, msg):
        heard("run failed", run=dag_run)


class Plugin(AirflowPlugin):
    name = "listening"
    listeners = [Listener()]
