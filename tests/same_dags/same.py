"""One of each thing that users see of a task, to be compared between executors."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from datetime import datetime, timedelta, timezone
from pathlib import Path

import structlog
from airflow.exceptions import AirflowFailException, AirflowSkipException
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.python import PythonOperator, ShortCircuitOperator
from airflow.providers.standard.sensors.python import PythonSensor
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import Asset, BaseOperator, Connection, Variable, dag, get_current_context, task, task_group
from airflow.sdk.log import mask_secret

std = logging.getLogger("of.the.standard.library")
struct = structlog.get_logger("of.structlog")
bound = structlog.get_logger("of.structlog.bound").bind(bound="at import")

warnings.warn("the DAG file warns", UserWarning, stacklevel=1)
std.info("the DAG file says")
struct.warning("the DAG file says", kind="structlog")
print("the DAG file prints")


def note(context, text):
    with (Path(os.environ["AIR_TEST_OUT"]) / "callbacks").open("a") as file:
        file.write(json.dumps({"run_id": context["run_id"], "text": text}) + "\n")


def called(name):
    def callback(context):
        ti, error = context["ti"], context.get("exception")
        note(context, f"{name} {ti.task_id} {ti.map_index} {ti.try_number} {type(error).__name__} {error}")
        print(f"{name} prints")
        std.warning("%s says", name)
        struct.error("said", by=name)
        warnings.warn(f"{name} warns", FutureWarning, stacklevel=1)
        if ti.task_id == "raises":
            raise RuntimeError(f"{name} fails")

    return callback


CALLBACKS = {f"on_{name}_callback": called(name) for name in ("execute", "success", "failure", "retry", "skipped")}


class OwnError(Exception):
    """An error of the user's own."""


class DeferTwice(BaseOperator):
    """Is resumed twice."""

    def execute(self, context, event=None):
        self.log.info("defers")
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=5)), method_name="resume", kwargs={"again": True})

    def resume(self, context, event=None, again=False):
        print("resumed", again)
        if again:
            self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=5)), method_name="resume")
        return "resumed"


@dag(schedule=None, tags=["same"], default_args={"retry_delay": timedelta(0), **CALLBACKS}, params={"name": "value"})
def same():
    @task
    def says():
        for level in ("debug", "info", "warning", "error", "critical"):
            getattr(std, level)("at level %s", level)
            getattr(struct, level)("at a level", named=level)
            getattr(bound, level)("at a level")
            getattr(logging.getLogger("chatty.one"), level)("chatty at %s", level)
            getattr(structlog.get_logger("chatty.two"), level)("chatty", at=level)
            getattr(logging.getLogger("airflow.of.a.user"), level)("in Airflow's name at %s", level)
        print("::group::A group")
        print("printed", end="")
        print(", and more: \N{SNOWMAN}")
        print("::endgroup::")
        print("to stderr", file=sys.stderr)
        os.write(1, b"past Python\nwith bytes \xff\xfe\n")
        subprocess.run(["sh", "-c", "echo out of a child; echo err of a child >&2"], check=True)
        for _ in range(2):
            warnings.warn("only once", UserWarning, stacklevel=1)
            warnings.warn("deprecated", DeprecationWarning, stacklevel=1)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("always", ResourceWarning, stacklevel=1)
        try:
            raise OwnError("caught")
        except OwnError:
            std.exception("logged with its traceback")
            struct.exception("logged with its traceback", value={"nested": [1, None, "x"]})
        std.info("with data", extra={"of": "no use"}, stack_info=False)
        print("no newline at the end", end="")

    @task
    def sets_logging_up():
        logging.getLogger().setLevel(logging.DEBUG)
        std.debug("debug is seen now")
        logging.captureWarnings(True)
        warnings.warn("captured", UserWarning, stacklevel=1)
        logging.getLogger("httpx").info("httpx at info")
        logging.basicConfig(level=logging.WARNING, format="MINE %(message)s", force=True)
        std.info("not seen")
        std.warning("in my own format")
        struct.info("as before")

    @task
    def raises():
        try:
            {}["missing"]
        except KeyError as error:
            raise OwnError("with a cause") from error

    @task
    def raises_in_a_group():
        errors = [ValueError("one"), TypeError("two")]
        raise OwnError(*errors)

    @task(retries=3)
    def fails_for_good():
        raise AirflowFailException("no retry")

    @task(retries=1)
    def second_time_lucky():
        if get_current_context()["ti"].try_number == 1:
            std.error("fails")
            raise OwnError("not yet")
        return "now"

    @task
    def skips():
        raise AirflowSkipException("not today")

    @task
    def exits():
        print("about to exit")
        sys.exit(3)

    @task.sensor(mode="reschedule", poke_interval=10, timeout=60)
    def reschedules():
        path = Path(os.environ["AIR_TEST_OUT"]) / f"poked-{get_current_context()['run_id']}"
        print("poked before", path.exists())
        if path.exists():
            return True
        path.touch()
        return False

    @task
    def keeps_secrets():
        mask_secret("sesame-of-the-task")
        print("printed: sesame-of-the-task")
        std.info("logged: %s", "sesame-of-the-task")
        struct.info("logged", secret="sesame-of-the-task", password="said by its name")
        print("connection", Connection.get("same_connection").password, Connection.get("same_connection").get_uri())
        print("variable", Variable.get("same_password"), Variable.get("same_open"))
        print("database", "sqlite:// and fernet are of the configuration")
        subprocess.run(["echo", "child: sesame-of-the-task"], check=True)
        return {"token": "sesame-of-the-task", "open": "x"}

    @task
    def returns_much():
        ti = get_current_context()["ti"]
        moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
        for key, value in {
            "text": "\N{SNOWMAN}", "number": 1.5, "none": None, "list": [1, [2]], "tuple": (1, 2), "set": {1},
            "moment": moment, "span": timedelta(seconds=3), "nested": {"a": {"b": [None, True]}}, "long": "x" * 5000,
        }.items():  # fmt: skip
            ti.xcom_push(key, value)
        return {"run": ti.run_id, "asset": str(Asset("same").uri)}

    @task(multiple_outputs=True)
    def returns_several():
        return {"one": 1, "two": [2]}

    @task(outlets=[Asset("same-asset")])
    def writes_an_asset(*, outlet_events):
        outlet_events[Asset("same-asset")].extra = {"rows": 3}

    @task
    def of_many(number):
        print("number", number)
        if number == 2:
            raise OwnError(f"not {number}")
        return number * 10

    @task(trigger_rule="all_done")
    def takes_all(numbers):
        return list(numbers)

    @task_group
    def grouped():
        ShortCircuitOperator(task_id="stops_here", python_callable=lambda: False) >> BashOperator(
            task_id="is_skipped", bash_command="true"
        )

    @task
    def cannot_be_sent():
        return object()

    takes_all(of_many.expand(number=[1, 2, 3]))
    for each in (
        says, sets_logging_up, raises, raises_in_a_group, fails_for_good, second_time_lucky, skips, exits, reschedules,
        keeps_secrets, returns_much, returns_several, writes_an_asset, grouped, cannot_be_sent,
    ):  # fmt: skip
        each()
    DeferTwice(task_id="defers")
    PythonSensor(task_id="senses", python_callable=lambda: print("senses") or True)
    PythonOperator(
        task_id="calls", python_callable=lambda x: x, op_args=["{{ params.name }} {{ ds_nodash | default('') }}"]
    )
    BashOperator(
        task_id="renders",
        bash_command="echo {{ ti.task_id }} {{ run_id }} {{ var.value.same_password }} $NAME; echo to stderr >&2",
        env={"NAME": "{{ var.value.same_open }}", "PASSWORD": "sesame"},
        append_env=True,
    )
    BashOperator(task_id="exits_with_code", bash_command="echo before; exit 7")
    BashOperator(task_id="is_badly_templated", bash_command="{{ no_such_thing.at_all }}")
    BashOperator(task_id="times_out", bash_command="sleep 60", execution_timeout=timedelta(seconds=5))


same()
