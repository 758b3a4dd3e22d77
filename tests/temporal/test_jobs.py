"""Jobs of the standalone engine on hosts: no Airflow is configured here."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from air_executor.machine import system
from tests.support.waiting import wait_for
from tests.temporal.conftest import Temporal

pytestmark = pytest.mark.faults


class Place:
    """A folder of jobs, and a host that shares nothing with it but the working directory."""

    def __init__(self, folder: Path, temporal: Temporal) -> None:
        self.folder = folder
        self.worker: subprocess.Popen[bytes] | None = None
        inherited = {name: value for name, value in os.environ.items() if name[:4] not in ("AIRF", "AIR_", "PYTE")}
        self.env = {
            **inherited,
            "HOME": str(folder),
            "TEMPORAL_ADDRESS": temporal.address,
            "TEMPORAL_TASK_QUEUE": f"jobs-{folder.name}",
            "AIRFLOW__AIR_EXECUTOR__TEMPORAL_KEY": "planted-key",
        }

    @property
    def log(self) -> Path:
        return self.folder / "worker.log"

    def start_worker(self, *arguments: str) -> None:
        with self.log.open("wb") as log:
            self.worker = subprocess.Popen(
                [*_CLI, "worker", "--state-dir", str(self.folder / "host"), "--no-logs", "--slots", "4", *arguments],
                env=self.env,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=functools.partial(system.die_with_parent, os.getpid()),
            )
        wait_for(lambda: "serving" in self.log.read_text(), "the worker")

    def start_run(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*_CLI, "run", *arguments, "--on", "temporal", "--json"],
            env=self.env,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=functools.partial(system.die_with_parent, os.getpid()),
        )

    def write(self, name: str, tasks: list[dict[str, Any]]) -> str:
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps({"name": name, "max_runners": 8, "tasks": tasks}))
        return str(path)

    def tasks(self, name: str) -> dict[str, dict[str, Any]]:
        done = subprocess.run([*_CLI, "job", name, "--json"], env=self.env, cwd=self.folder, capture_output=True)
        return {task["id"]: task for task in json.loads(done.stdout)["tasks"]}

    def end(self) -> None:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.cwd().startswith(str(self.folder)):
                    process.kill()


_CLI = (sys.executable, "-m", "air_executor.cli")


@pytest.fixture
def place(tmp_path: Path, temporal: Temporal) -> Iterator[Place]:
    made = Place(tmp_path, temporal)
    (tmp_path / ".air-executor").mkdir(mode=0o700)
    yield made
    made.end()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def test_a_jobs_results_follow_ups_and_logs_come_back(place: Place) -> None:
    place.start_worker()
    queue = f"{sys.executable} -m air_executor.cli queue --id more -- sh -c 'echo queued > \"$AIR_EXECUTOR_RESULT\"'"
    file = place.write(
        "shapes",
        [
            {"id": "make", "command": "sh", "args": ["-c", 'echo made; echo 41 > "$AIR_EXECUTOR_RESULT"']},
            {"id": "use", "command": "echo", "args": ["${tasks.make.result}"], "dependencies": ["make"]},
            {"id": "call", "function": "os.path:basename", "arguments": {"p": "/a/b"}},
            {"id": "fail", "command": "sh", "args": ["-c", "echo to the error log >&2; exit 3"], "retries": 1},
            {"id": "queue", "command": "sh", "args": ["-c", queue]},
        ],
    )
    code, out, err = ended(place.start_run(file))
    tasks = place.tasks("shapes")
    assert {name: task["status"] for name, task in tasks.items()} == {
        **dict.fromkeys(("make", "use", "call", "queue", "more"), "completed"),
        "fail": "failed",
    }, (out, err)
    assert code == 1
    assert (tasks["make"]["result"], tasks["call"]["result"], tasks["more"]["result"]) == (41, "b", "queued")
    assert tasks["fail"]["exit_code"] == 3 and tasks["fail"]["tries"] == 2

    def log(task: str) -> str:
        shown = subprocess.run([*_CLI, "logs", "shapes", task], env=place.env, cwd=place.folder, capture_output=True)
        return shown.stdout.decode()

    assert log("use") == "41\n"
    assert log("fail").count("to the error log") == 2


def test_each_task_is_done_once_whoever_dies(place: Place) -> None:
    place.start_worker()
    script = 'echo begin >> "effects-$0"; while ! [ -e "release-$0" ]; do sleep 0.1; done; echo end >> "effects-$0"'
    args = {name: ["-c", script, name] for name in ("a", "b", "c")}
    file = place.write("lives", [{"id": name, "command": "sh", "args": args[name]} for name in args])
    process = place.start_run(file)

    def effects(name: str) -> str:
        path = place.folder / f"effects-{name}"
        return path.read_text() if path.exists() else ""

    wait_for(lambda: all(map(effects, args)), "the tasks to begin")
    assert place.worker is not None
    place.worker.send_signal(signal.SIGKILL)
    place.worker.wait()
    process.kill()
    process.wait()
    (place.folder / "release-a").touch()
    wait_for(lambda: effects("a") == "begin\nend\n", "the end of one that nobody looks after")
    process = place.start_run("lives")
    place.start_worker("--name", "renamed")
    for name in ("b", "c"):
        (place.folder / f"release-{name}").touch()
    assert ended(process)[0] == 0
    assert [effects(name) for name in args] == ["begin\nend\n"] * 3


def test_what_is_missing_is_said(place: Place) -> None:
    file = place.write("wrong", [{"id": "one", "command": "true", "cwd": "/not/there"}])
    place.start_worker()
    assert ended(place.start_run(file))[0] == 1
    assert "/not/there" in place.tasks("wrong")["one"]["error"]
    place.env["TEMPORAL_NAMESPACE"] = "not-there"
    shown = subprocess.run([*_CLI, "temporal", "status"], env=place.env, cwd=place.folder, capture_output=True)
    assert shown.returncode != 0 and b"not-there" in shown.stderr and b"Traceback" not in shown.stderr
    place.env["TEMPORAL_NAMESPACE"], place.env["TEMPORAL_ADDRESS"] = "default", "127.0.0.1:1"
    shown = subprocess.run([*_CLI, "temporal", "status"], env=place.env, cwd=place.folder, capture_output=True)
    assert shown.returncode != 0 and b"127.0.0.1:1" in shown.stderr and b"Traceback" not in shown.stderr
    del place.env["AIRFLOW__AIR_EXECUTOR__TEMPORAL_KEY"]
    code, out, err = ended(place.start_run(place.write("no-key", [{"id": "one", "command": "true"}])))
    assert code == 2 and "temporal_key" in out + err
