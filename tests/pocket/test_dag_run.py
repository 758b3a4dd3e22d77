"""``air-executor dag run``: a real Airflow for one run of one DAG."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import psutil
import pytest

from air_executor.machine.marks import is_launcher
from tests.pocket.conftest import DAGS, Place
from tests.support.machine import SmallDisk, needs_root
from tests.support.waiting import wait_for


@pytest.mark.core
def test_a_dag_may_have_whatever_airflow_has(place: Place) -> None:
    files = {
        "connections.json": {"db": "postgresql://reader:hidden-word@db.example/x"},
        "variables.json": {"colour": "green"},
        "pools.json": {"narrow": {"slots": 1, "description": ""}},
    }
    for name, content in files.items():
        (place.folder / name).write_text(json.dumps(content))
    (place.folder / "more.env").write_text("FROM_FILE=yes\n")
    given = ("--connections", "connections.json", "--variables", "variables.json", "--pools", "pools.json")
    options = (*given, "--env-file", "more.env", "--conf", '{"n": 4}', "--run-id", "mine", "--xcoms")
    events = place.events(str(DAGS / "rich.py"), "rich", *options, "--logical-date", "2026-03-04")
    result = events[-1]
    states = {(task["task_id"], task["map_index"]): task["state"] for task in result["tasks"]}
    expected = {
        "prepare": "success",
        "sums.items": "success",
        "sums.total": "success",
        "choose": "success",
        "large": "success",
        "small": "skipped",
        "second_time": "success",
        "looked_twice": "success",
        "given": "success",
        "deferred": "success",
        "child": "success",
        "alone": "success",
        "last": "success",
        "clean_up": "success",
    }
    assert states == {(name, -1): state for name, state in expected.items()} | {
        ("sums.double", index): "success" for index in range(4)
    }
    assert (result["state"], result["run_id"], result["dag_id"]) == ("success", "mine", "rich")
    assert sorted(place.effects()) == ["cleaned up", "other", "other", "retry", "the DAG's callback"]
    folder = Path(result["folder"])
    document = json.loads((folder / "result.json").read_text())
    values = {each["task_id"]: each["value"] for each in document["xcoms"] if each["key"] == "return_value"}
    assert values["prepare"] == "hello from the module beside"
    assert (values["sums.total"], values["second_time"], values["last"]) == (12, 2, "4 2026-03-04")
    assert values["given"] == {"host": "db.example", "variable": "green", "env": "yes", "text": "123"}
    # What it tells while it runs: each task's states in turn, the tries as well.
    told = [(e["state"], e["try_number"]) for e in events if e["event"] == "task" and e["task_id"] == "second_time"]
    assert ("up_for_retry", 1) in told and told[-1] == ("success", 2)
    assert events[0]["event"] == "begun" and [e["event"] for e in events[-2:]] == ["ended", "result"]
    # Nothing of it stays but what is for people, and nothing else was touched.
    assert sorted(path.name for path in folder.iterdir()) == [
        *("lock", "logs", "parts", "request.json", "result.json", "run.json", "state")
    ]
    assert not (place.folder / "users-airflow").exists()
    place.check_nothing_runs()
    found = subprocess.run(["grep", "-r", "hidden-word", str(folder)], capture_output=True, text=True)
    assert found.stdout == ""
    # And afterwards.
    out, _ = place.call("logs", folder.name, "second_time")
    assert "not yet" in out and "attempt=1" in out
    assert json.loads(place.call("list", "--json")[0])[0]["state"] == "success"
    assert "sums.double[3]" in place.call("show")[0]
    assert json.loads(place.call("clean", "--json")[0]) == {"removed": [folder.name]}
    assert not folder.exists()


@pytest.mark.core
def test_a_failed_run_tells_why(place: Place) -> None:
    out, err = place.call("run", str(DAGS / "failing.py"), "--keep", code=1)
    assert "RuntimeError: it went wrong here" in err
    rows = {tuple(line.split("\t")[:2]) for line in out.splitlines() if "\t" in line}
    assert rows == {("TASK", "STATE"), ("apart", "success"), ("breaks", "failed"), ("never", "upstream_failed")}
    assert (place.folder / "told").exists()  # the callback of the DAG
    # What was kept is an Airflow that can be looked at.
    (folder,) = place.dags.glob("failing-*")
    env = {**place.env, "AIRFLOW_HOME": str(folder / "home")}
    for name in ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "AIRFLOW__CORE__EXECUTOR"):
        del env[name]
    shown = subprocess.run(
        [sys.executable, "-m", "airflow", "dags", "list-runs", "failing", "-o", "json"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(shown.stdout[shown.stdout.index("[{") :])[0]["state"] == "failed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no_dag.py",), "has no DAG"),
        (("two.py",), "has 2 DAGs; say which one to run: one, two"),
        (("two.py", "three"), "has no DAG 'three': there are one, two"),
        (("two:three",), "has no DAG 'three'"),
        (("broken.py",), 'broken.py", line 3'),
        (("cycle.py",), "Cycle detected"),
        (("pool.py",), "wants pool 'small'"),
        (("slots.py",), "wants 200 slots of pool 'default_pool', which has 128"),
        (("odd.py",), "DAG odd in"),
        (("params.py", "--conf", '{"n": 0}'), "0 is less than the minimum of 1"),
        (("params.py", "--logical-date", "yesterday"), "'yesterday' is no date"),
        (("params.py", "--task", "nothing*"), "has no task 'nothing*': its tasks are a, b, c"),
        (("params.py", "--connections", "broken.py"), "broken.py can't be used"),
        (("params.py", "--pools", "list.json"), "it must be an object"),
    ],
)
def test_what_cannot_be_run_is_said(place: Place, arguments: tuple[str, ...], message: str) -> None:
    begin = "from airflow.sdk import DAG, Param\nfrom airflow.providers.standard.operators.empty import EmptyOperator\n"
    files = {
        "no_dag.py": ["print('printed at import')"],
        "two.py": ["one, two = DAG('one'), DAG('two')", "[EmptyOperator(task_id='t', dag=d) for d in (one, two)]"],
        "broken.py": ["raise ValueError('boom')"],
        "cycle.py": [
            *("with DAG('cycle'):", "    a = EmptyOperator(task_id='a')", "    a >> EmptyOperator(task_id='b') >> a")
        ],
        "pool.py": ["with DAG('pool'):", "    EmptyOperator(task_id='a', pool='small')"],
        "slots.py": ["with DAG('slots'):", "    EmptyOperator(task_id='a', pool_slots=200)"],
        "odd.py": [
            "from airflow.timetables.simple import NullTimetable",
            "class Odd(NullTimetable):",
            "    pass",
            "with DAG('odd', schedule=Odd()):",
            "    EmptyOperator(task_id='a')",
        ],
        "params.py": [
            "with DAG('params', params={'n': Param(1, type='integer', minimum=1)}):",
            "    EmptyOperator(task_id='a') >> EmptyOperator(task_id='b')",
            "    EmptyOperator(task_id='c')",
        ],
    }
    (place.folder / "list.json").write_text("[]")
    for name, content in files.items():
        (place.folder / name).write_text(begin + "\n".join(content) + "\n")
    _, err = place.call("run", *arguments, code=2)
    assert message in err
    assert list(place.dags.glob("*-*")) == []  # nothing was begun, so nothing is left
    place.check_nothing_runs()


def test_only_some_tasks_and_what_they_need_and_their_callbacks_are_waited_for(place: Place) -> None:
    events = place.events(str(DAGS / "failing.py"), "--task", "ap*")
    assert (place.folder / "told-late").read_text() == "no such variable"
    assert [(task["task_id"], task["state"]) for task in events[-1]["tasks"]] == [("apart", "success")]


def test_a_folder_is_searched_as_airflow_does(place: Place) -> None:
    folder = place.folder / "dags"
    folder.mkdir()
    (folder / "setup.py").write_text("raise SystemExit('not for Airflow')\n")
    (folder / "broken.py").write_text("from airflow.sdk import DAG\nraise ValueError('another DAG is broken')\n")
    (folder / "good.py").write_text((DAGS / "failing.py").read_text())
    events = place.events(str(folder), "failing", "--task", "apart")
    assert events[-1]["state"] == "success"
    _, err = place.call("run", str(folder), "absent", code=2)
    assert "another DAG is broken" in err and "DAGs that can be: failing" in err and "not for Airflow" not in err


def test_callbacks_are_executed_of_a_file_that_airflow_would_not_list(place: Place) -> None:
    folder = place.folder / "dags"
    folder.mkdir()
    (folder / ".airflowignore").write_text("ignored.py\n")
    (folder / "ignored.py").write_text((DAGS / "failing.py").read_text())
    events = place.events(str(folder / "ignored.py"), code=1)
    assert (place.folder / "told").exists()
    assert [event["warning"] for event in events if event["event"] == "warning"] == []


def test_who_stops_reading_stops_the_run(place: Place) -> None:
    process = place.start("run", str(DAGS / "slow.py"), "--json")
    place.wait_for_effect("begin 1")
    assert process.stdout is not None
    process.stdout.close()
    (place.folder / "release").touch()  # the end of the task is told to nobody
    assert process.wait(600) == 1
    assert process.stderr is not None
    with process.stderr:
        err = process.stderr.read()
    assert "the reader of the output is gone" in err and "Traceback" not in err
    place.check_nothing_runs()


@pytest.mark.core
def test_an_interrupted_run_is_gone_on_with(place: Place) -> None:
    process = place.start("run", str(DAGS / "slow.py"), "--json")
    place.wait_for_effect("begin 1")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130, (out, err)
    assert "interrupted" in [json.loads(line).get("event") for line in out.splitlines()]
    place.check_nothing_runs()
    assert json.loads(place.call("list", "--json")[0])[0]["state"] == "interrupted"
    (place.folder / "release").touch()
    events = place.events(str(DAGS / "slow.py"))
    assert events[0]["goes_on"]
    # It has no retries, and got another try all the same; what was done before was not done again.
    assert place.effects() == ["begin 1", "begin 2", "end 2"]
    assert [(task["task_id"], task["try_number"]) for task in events[-1]["tasks"]] == [("first", 1), ("work", 2)]
    assert [folder.name for folder in place.dags.glob("slow-*")] == ["slow-1"]


def begin_and_kill(place: Place) -> None:
    """Begin the run of ``slow.py``, and kill the command: the run's Airflow ends with it, and its task runs on."""
    process = place.start("run", str(DAGS / "slow.py"))
    place.wait_for_effect("begin 1")
    process.kill()
    process.communicate(timeout=600)
    wait_for(lambda: not place.parts(), "the run's Airflow to end with the command")
    assert place.processes() != []  # its task runs on


@pytest.mark.core
def test_a_killed_run_is_gone_on_with_and_its_tasks_were_not_disturbed(place: Place) -> None:
    begin_and_kill(place)
    second = place.start("run", str(DAGS / "slow.py"), "--json")
    assert second.stdout is not None
    told = iter(second.stdout.readline, "")
    assert any('"event":"dag"' in line for line in told), (second.communicate(), place.logs())
    (place.folder / "release").touch()
    out, err = second.communicate(timeout=600)
    assert second.returncode == 0, (out, err, place.logs())
    assert place.effects() == ["begin 1", "end 1"]


def test_what_still_runs_of_a_run_that_is_given_up_is_stopped(place: Place) -> None:
    begin_and_kill(place)
    (place.folder / "effects").unlink()
    again = place.start("run", str(DAGS / "slow.py"), "--restart")
    place.wait_for_effect("begin 1")
    again.terminate()  # as of timeout(1): the same as Ctrl-C
    out, err = again.communicate(timeout=600)
    assert again.returncode == 130, (out, err)
    assert "the same command resumes this run" in err
    place.check_nothing_runs()
    (place.folder / "release").touch()
    place.call("clean", "slow-1")
    assert list(place.dags.glob("slow-*")) == []
    assert place.effects() == ["begin 1"]


def test_an_early_interruption_of_a_run_that_goes_on_stops_what_its_former_command_has_left(place: Place) -> None:
    begin_and_kill(place)
    again = place.start("run", str(DAGS / "slow.py"), python=[interrupted_at_once(place, signal.SIGINT)])
    out, err = again.communicate(timeout=600)
    assert again.returncode == 130, (out, err)
    assert "the same command resumes this run" in err
    place.check_nothing_runs()
    assert place.effects() == ["begin 1"]
    (place.folder / "release").touch()
    assert place.events(str(DAGS / "slow.py"))[0]["goes_on"]
    assert place.effects() == ["begin 1", "begin 2", "end 2"]


def test_the_machines_restart_costs_no_try(place: Place) -> None:
    process = place.start("run", str(DAGS / "slow.py"), "--json")
    place.wait_for_effect("begin 1")
    for each in [psutil.Process(process.pid), *place.processes()]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.communicate(timeout=600)
    for each in place.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    place.check_nothing_runs()
    (place.folder / "release").touch()
    place.events(str(DAGS / "slow.py"))
    assert place.effects() == ["begin 1", "begin 2", "end 2"]


def test_one_that_runs_is_left_alone_by_others(place: Place) -> None:
    first = place.start("run", str(DAGS / "slow.py"), "--run-id", "same")
    place.wait_for_effect("begin 1")
    _, err = place.call("run", str(DAGS / "slow.py"), "--run-id", "same", code=1)
    assert "is running already, as slow-1" in err
    assert "slow-1 is running" in place.call("clean", "slow-1", code=1)[1]
    # With nothing that says it is the same, another run begins beside it.
    second = place.start("run", str(DAGS / "slow.py"))
    wait_for(lambda: place.effects().count("begin 1") == 2, "the second run")
    (place.folder / "release").touch()
    for process in (first, second):
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, (out, err, place.logs())
    _, err = place.call("run", str(DAGS / "slow.py"), "--run-id", "same", code=2)
    assert "has ended, as slow-1; --restart begins it anew" in err
    place.events(str(DAGS / "slow.py"), "--run-id", "same", "--restart")
    assert place.effects().count("end 1") == 3


def test_a_part_that_dies_is_started_again(place: Place) -> None:
    process = place.start("run", str(DAGS / "slow.py"), "--json")
    place.wait_for_effect("begin 1")
    for title in ("scheduler", "api-server", "watcher"):
        (part,) = place.parts(title)
        part.kill()
        wait_for(lambda title=title, part=part: set(place.parts(title)) - {part}, f"another {title}")
    (place.folder / "release").touch()
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, (out, err, place.logs())
    assert place.effects() == ["begin 1", "end 1"]


def test_only_this_machine_reaches_it_and_it_has_one_launcher(place: Place) -> None:
    def ignore() -> None:
        # As a shell's "&" in a script, and profilers: what is ignored here is not to be ignored by tasks.
        for signum in (signal.SIGINT, signal.SIGUSR2, signal.SIGCHLD):
            signal.signal(signum, signal.SIG_IGN)

    process = place.start("run", str(DAGS / "slow.py"), preexec_fn=ignore)
    place.wait_for_effect("begin 1")
    assert len(list(place.dags.glob("slow-1/state/launchers/*.sock"))) == 1  # the one that was warmed up
    listening = set()
    for each in place.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in each.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    listening.add(connection.laddr.ip)
    assert listening == {"127.0.0.1"}
    (place.folder / "release").touch()
    process.communicate(timeout=600)
    assert process.returncode == 0


def test_a_folder_that_cannot_be_written_is_named(place: Place) -> None:
    if os.geteuid() == 0:
        (place.folder / "file").touch()
        state_dir = place.folder / "file" / "below"
    else:
        (place.folder / "locked").mkdir(mode=0o500)
        state_dir = place.folder / "locked" / "below"
    _, err = place.call("run", str(DAGS / "slow.py"), "--state-dir", str(state_dir), code=2)
    assert str(state_dir) in err and "Traceback" not in err


@needs_root
def test_a_full_disk_is_said_and_the_run_is_gone_on_with_when_there_is_room(place: Place) -> None:
    disk = SmallDisk(place.folder / "small", mebibytes=64)
    disk.folder.mkdir()
    run = ("run", str(DAGS / "slow.py"), "--state-dir", str(disk.folder / "state"))
    with disk.mounted():
        with disk.full():
            out, _ = place.call(*run, "--json", code=2)
            error = json.loads(out.splitlines()[-1])
            assert (error["event"], error["retryable"]) == ("error", True)
            assert "No space left on device" in error["error"]
        process = place.start(*run)
        place.wait_for_effect("begin 1")
        with disk.full():
            (place.folder / "release").touch()
            place.wait_for_effect("end 1")
            out, err = process.communicate(timeout=600)
        assert process.returncode == 1, (out, err)
        assert "the same command resumes" in err and "No space left" in err, err
        place.check_nothing_runs()
        out, _ = place.call(*run)
        assert "success" in out


def test_an_interruption_before_the_run_begins_leaves_nothing(place: Place) -> None:
    process = place.start("run", str(DAGS / "slow.py"))
    wait_for(lambda: any(is_launcher(each.pid) for each in place.processes()), "its launcher to be started")
    (main,) = place.parts()
    main.suspend()
    (folder,) = place.dags.glob("slow-*")
    assert not (folder / "run.json").exists()
    process.send_signal(signal.SIGINT)
    main.resume()
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130, (out, err)
    assert "stopping" in err
    assert "resumes" not in out + err
    place.check_nothing_runs()
    assert list(place.dags.glob("*-*")) == []


def test_an_interruption_while_the_dag_is_read_begins_no_run(place: Place) -> None:
    (place.folder / "slow.py").write_text(
        "import time\nfrom pathlib import Path\n"
        "from airflow.sdk import DAG\n"
        "Path('reading').touch()\n"
        "time.sleep(600)\n"
        "with DAG('slow'):\n"
        "    pass\n"
    )
    process = place.start("run", "slow.py")
    wait_for((place.folder / "reading").exists, "the DAG to be read")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, (out, err)
    assert "stopping" in err
    assert "resumes" not in out + err
    place.check_nothing_runs()
    assert list(place.dags.glob("*-*")) == []


def interrupted_at_once(place: Place, *signals: signal.Signals) -> str:
    """Return a program that is the command, and is sent signals as soon as it has started its Airflow."""
    program = place.folder / "interrupted.py"
    program.write_text(
        "import os, subprocess, sys\n"
        "from air_executor.cli.main import main\n"
        "class Interrupted(subprocess.Popen):\n"
        "    def __init__(self, *args, **kwargs):\n"
        "        super().__init__(*args, **kwargs)\n"
        f"        for signum in {[*map(int, signals)]}:\n"
        "            os.kill(os.getpid(), signum)\n"
        "subprocess.Popen = Interrupted\n"
        "sys.exit(main())\n"
    )
    return str(program)


@pytest.mark.parametrize(
    "signals",
    [
        (signal.SIGINT,),
        (signal.SIGTERM,),
        (signal.SIGHUP,),
        (signal.SIGHUP, signal.SIGTERM),
        (signal.SIGINT, signal.SIGTERM),
    ],
)
def test_an_interruption_while_its_airflow_is_started_ends_it_too(
    place: Place, signals: tuple[signal.Signals, ...]
) -> None:
    process = place.start("run", str(DAGS / "slow.py"), python=[interrupted_at_once(place, *signals)])
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, (out, err)
    assert err.count("stopping") == 1
    assert place.effects() == []
    assert place.processes() == []
    assert list(place.dags.glob("*-*")) == []


def test_an_early_interruption_is_heard_in_the_background_of_a_shell_too(place: Place) -> None:
    ignoring = functools.partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    process = place.start("run", str(DAGS / "slow.py"), preexec_fn=ignoring)

    def its_airflow() -> psutil.Process | None:
        """Return its Airflow while that has not set up its signals yet."""
        children = psutil.Process(process.pid).children()
        return next((each for each in children if "air_executor.airflow.pocket" in each.cmdline()), None)

    airflow = wait_for(its_airflow, "its Airflow to be started", every_s=0.001)
    airflow.suspend()
    process.terminate()
    assert process.stderr is not None
    assert any("stopping" in line for line in iter(process.stderr.readline, ""))
    airflow.resume()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, (out, err)
    assert place.effects() == []
    place.check_nothing_runs()
    assert list(place.dags.glob("*-*")) == []


def test_runs_that_it_has_triggered_are_told(place: Place) -> None:
    (place.folder / "two.py").write_text(
        "from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator\n"
        "from airflow.sdk import DAG, task\n"
        "with DAG('triggered'):\n"
        "    @task\n"
        "    def breaks():\n"
        "        raise RuntimeError('not here')\n"
        "    breaks()\n"
        "with DAG('triggers'):\n"
        "    TriggerDagRunOperator(task_id='trigger', trigger_dag_id='triggered', trigger_run_id='mine')\n"
    )
    events = place.events("two.py", "triggers")
    assert events[-1]["triggered"] == [{"dag_id": "triggered", "run_id": "mine", "state": "failed"}]
    said = [event["warning"] for event in events if event["event"] == "warning"]
    assert said[-1] == "run mine of DAG triggered, which it triggered, has failed"
    assert "triggered triggered failed  mine" in place.call("show")[0]


def test_a_dag_in_a_zip_file_has_its_callbacks(place: Place) -> None:
    with zipfile.ZipFile(place.folder / "packed.zip", "w") as packed:
        packed.write(DAGS / "failing.py", "failing.py")
    events = place.events("packed.zip", code=1)
    assert (place.folder / "told").exists()
    assert [event["warning"] for event in events if event["event"] == "warning"] == []


def test_python_and_pytest_run_dags(place: Place) -> None:
    (place.folder / "test_sum.py").write_text(
        f"""
import sys

def test_sum(dag_run):
    result = dag_run({str(DAGS / "failing.py")!r})
    assert not result.ok and result.states["breaks"] == "failed"
    assert result.xcom("apart") == 1
    assert "it went wrong here" in result.log("breaks")
    assert "airflow" not in sys.modules
"""
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_sum.py"]
    ended = subprocess.run(command, cwd=place.folder, env=place.env, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout
