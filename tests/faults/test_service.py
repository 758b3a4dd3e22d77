"""The launcher is a service in a PID namespace of its own, as in another container: nobody relies on seeing a pid.

It is started as ``docker/compose.yaml`` and ``examples/systemd`` say, with the settings that Airflow has there.
"""

from __future__ import annotations

import configparser
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from air_executor.launcher.address import service_address
from air_executor.launcher.client import control
from air_executor.runs.record import RunState
from tests.faults.conftest import Fly
from tests.support import machine
from tests.support.airflow_env import REPOSITORY, Airflow
from tests.support.flights import launchers, probe, start_scheduler, strays, unfinished
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.faults, machine.needs_root]

NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


COMPOSE = yaml.safe_load((REPOSITORY / "docker" / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def options() -> dict[str, str]:
    """What containers get, but for addresses, paths and secrets."""
    given = COMPOSE["services"]["scheduler"]["environment"]
    assert given == COMPOSE["services"]["launcher"]["environment"]
    plain = {name: value for name, value in given.items() if not value.startswith(("/", "http")) and "$" not in value}
    assert plain["AIRFLOW__AIR_EXECUTOR__LAUNCHER"] == "service"
    return plain


def container_command() -> list[str]:
    """Return what the launcher's container executes below its init process."""
    entrypoint = COMPOSE["services"]["launcher"]["entrypoint"]
    return entrypoint[entrypoint.index("--") + 1 :] + COMPOSE["services"]["launcher"]["command"]


def unit_command() -> list[str]:
    """Return what systemd executes."""
    unit = configparser.ConfigParser(interpolation=None)
    unit.read(REPOSITORY / "examples" / "systemd" / "air-executor-launcher.service")
    return shlex.split(unit["Service"]["ExecStart"])


@pytest.fixture(scope="module")
def final_check() -> Callable[[Airflow], None]:
    """The service is ended before Airflow: what is left is looked at in the last test."""
    return lambda airflow: None


class Service:
    """The launcher's container, as it were."""

    def __init__(self, airflow: Airflow) -> None:
        self._airflow = airflow
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, argv: list[str]) -> None:
        home, program = str(self._airflow.home), Path(sys.executable).with_name(Path(argv[0]).name)
        command = [*NAMESPACE, "env", "--chdir", home, str(program), *argv[1:]]
        with (self._airflow.home / "service.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=self._airflow.env, cwd="/", stdout=log, stderr=log, start_new_session=True
            )
        wait_for(lambda: control.status(service_address(self._airflow.store)), "the service")

    def kill(self) -> None:
        """End the namespace, and with it all that lives in it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


@pytest.fixture(scope="module")
def service(home: Path, airflow: Airflow) -> Iterator[Service]:
    service = Service(airflow)
    service.start(container_command())
    yield service
    service.kill()


def test_tasks_run_are_stopped_and_are_taken_over_across_namespaces(
    airflow: Airflow, fly: Fly, service: Service
) -> None:
    flight = fly("namespace").begun()
    record = flight.record(0)
    assert record.pid not in {process.pid for process in airflow.ours()}  # seen from here it has another
    airflow.stop("scheduler")
    assert len(flight.live()) == 5
    job = start_scheduler(airflow)
    wait_for(lambda: {row["queued_by_job_id"] for row in flight.rows()} == {job}, "the tasks to be taken over")
    airflow.run("air-executor", "stop", record.id)
    flight.wait_for("begin 0 2")
    assert airflow.store.read(record.id).state is RunState.KILLED
    flight.release()
    assert flight.run.wait() == "success"
    once = [f"{word} {index} 1" for index in (1, 2, 3, 4) for word in ("begin", "end")]
    assert sorted(flight.effects) == sorted(["begin 0 1", "begin 0 2", "end 0 2", *once])


def test_when_the_container_of_the_launcher_dies_its_tasks_are_tried_again_in_the_next(
    airflow: Airflow, fly: Fly, service: Service
) -> None:
    flight = fly("namespace-gone", 1).begun()
    record = flight.record()
    service.kill()
    wait_for(lambda: airflow.store.read(record.id).state is RunState.LOST, "the loss to be noticed")
    service.start(unit_command())
    flight.wait_for("begin 0 2")
    flight.release()
    assert flight.run.wait() == "success"
    assert flight.effects == ["begin 0 1", "begin 0 2", "end 0 2"]
    probe(airflow, "namespace-later")
    wait_for(lambda: not unfinished(airflow), "all ends to be told")
    service.kill()
    wait_for(lambda: launchers(airflow) == strays(airflow) == [], "all that lived in the namespace to be gone")
