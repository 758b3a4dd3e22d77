"""The command line, as a user has it: a process of its own, over a store that is full of runs."""

from __future__ import annotations

import contextlib
import getpass
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from air_executor import __version__
from air_executor.cli import commands, doctor, parser
from air_executor.config import env_var
from air_executor.launcher.client.backend import LocalBackend
from air_executor.runs.backend import RunRequest
from air_executor.runs.lock import KernelLock
from air_executor.runs.record import RunRecord, RunState, queued
from air_executor.runs.store import RunStore
from tests.support.airflow_env import config
from tests.support.waiting import wait_for
from tests.unit.conftest import Cli
from tests.unit.documents import identity, kept, of_process
from tests.unit.processes import family, is_alive

# What all commands have in common


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["status"], ["runs"], ["show", "2"], ["logs", "3"], ["stop", "4"], ["prune"]],
)
def test_no_command_imports_airflow(cli: Cli, filled: dict[RunState, RunRecord], arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "air_executor.cli", *arguments],
        env=cli.env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    imported = [line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert "air_executor.cli.main" in imported
    assert [name for name in imported if name.split(".")[0] in ("airflow", "sqlalchemy", "pydantic")] == []


def test_a_command_line_needs_only_the_command_that_it_begins_with() -> None:
    package = Path(commands.__file__).parent
    assert {path.stem for path in package.glob("*.py") if "\nCOMMANDS: " in path.read_text()} == set(commands.MODULES)
    whole, parsers = parser.build(commands.all_commands())
    for module, names in commands.MODULES.items():
        assert tuple(command.name for command in commands.of_module(module)) == names
        for name in names:
            needed = commands.needed_for([name, "further", "words"])
            assert [command.name for command in needed] == [name]
            alone, its_own = parser.build(needed)
            assert its_own[name].format_help() == parsers[name].format_help()
            assert alone.format_usage() == whole.format_usage()
    for line in ([], ["--state-dir", "run", "jobs"], ["help"], ["no-such-command"], ["--help"]):
        assert [command.name for command in commands.needed_for(line)] == list(parsers)


def test_a_command_imports_no_other(cli: Cli) -> None:
    listing = "import sys; from air_executor.cli import main; sys.argv = ['air-executor', 'jobs']; main.main(); "
    done = subprocess.run(
        [sys.executable, "-c", f"{listing}print(*sys.modules)"],
        env=cli.env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    imported = set(done.stdout.split())
    others = {f"air_executor.cli.{module}" for module in commands.MODULES} & imported
    assert others == {"air_executor.cli.jobs"}, done.stderr


def test_the_installed_command_is_the_same(cli: Cli) -> None:
    script = Path(sys.executable).parent / "air-executor"
    done = subprocess.run([script, "--version"], env=cli.env, capture_output=True, text=True, timeout=120)
    assert done.stdout == cli.run("--version").stdout == f"air-executor {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [[], ["dance"], ["runs", "--state", "asleep"], ["runs", "-n", "-1"], ["prune", "--keep-days", "-1"]],
)
def test_who_asks_wrongly_gets_the_usage(cli: Cli, arguments: list[str]) -> None:
    assert "usage: air-executor" in cli.run(*arguments, code=2).stderr


@pytest.mark.parametrize("command", ["show", "logs", "stop"])
@pytest.mark.parametrize("run", ["ffff", "../x", "", str(uuid.UUID(int=5))])
def test_a_run_that_is_not_there_is_said_so(
    cli: Cli, filled: dict[RunState, RunRecord], command: str, run: str
) -> None:
    done = cli.run(command, run, code=2)
    assert done.stdout == ""
    assert done.stderr.startswith(f"air-executor: there is no run {run!r} below ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["show", "logs", "stop"])
def test_a_beginning_that_several_runs_have_is_refused(cli: Cli, store: RunStore, command: str) -> None:
    for number in (1, 2):
        kept(store, run_id=f"cafe0000-0000-4000-8000-00000000000{number}")
    assert "2 runs start with 'cafe'" in cli.run(command, "cafe", code=2).stderr


def test_an_option_that_cannot_be_used_is_one_line_that_names_it(cli: Cli) -> None:
    done = cli.run("runs", code=2, **{env_var("keep_runs"): "many"})
    assert "[air_executor] keep_runs = 'many'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["status"], 0), (["runs"], 0), (["prune"], 0), (["show", "1"], 2), (["logs", "1"], 2), (["stop", "1"], 2)],
)
def test_where_nothing_ever_ran_every_command_says_so(
    cli: Cli, tmp_path: Path, arguments: list[str], code: int
) -> None:
    cli.env[env_var("state_dir")] = str(tmp_path / "never")
    cli.run(*arguments, code=code)
    assert not (tmp_path / "never").exists(), "looking makes no folder"


def test_a_reader_that_has_seen_enough_gets_no_error(cli: Cli, store: RunStore) -> None:
    for _ in range(30):
        kept(store, RunState.FAILED, reason="x" * 5000)
    with subprocess.Popen(
        cli.command("runs", "--json"), env=cli.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(120) == 0


# status


def test_status_shows_what_lives_and_leaves_out_what_does_not(
    cli: Cli, store: RunStore, filled: dict[RunState, RunRecord], alive: RunRecord
) -> None:
    answer = cli.json("status")
    assert answer["launchers"] == []
    assert {run["id"] for run in answer["runs"]} == {filled[RunState.QUEUED].id, alive.id}
    [run] = [run for run in answer["runs"] if run["id"] == alive.id]
    assert run["usage"]["memory_bytes"] > 0
    assert run["usage"]["cpu_time_s"] >= 0
    assert run["usage"]["age_s"] >= 0
    for state in (RunState.STARTING, RunState.RUNNING):
        assert cli.json("show", filled[state].id)["state"] == "lost"
        assert store.read(filled[state].id).state is state, "who only looks writes nothing"
    text = cli.run("status").stdout
    assert alive.id[:8] in text
    assert "some_dag.alive" in text
    assert "no launcher" in text
    assert filled[RunState.FAILED].id[:8] not in text


def test_status_of_nothing_says_so(cli: Cli) -> None:
    assert "nothing runs" in cli.run("status").stdout
    assert cli.json("status") == {"launchers": [], "runs": [], "waiting": [], "budget": None, "jobs": []}


# runs


def test_status_stays_up_to_date_on_a_terminal_until_ctrl_c(cli: Cli, store: RunStore, alive: RunRecord) -> None:
    screen, terminal = pty.openpty()
    watching = subprocess.Popen(
        cli.command("status", "--watch", "--interval", "0.05"),
        env={**cli.env, "TERM": "xterm", "LINES": "40"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        # A job in the background of a shell has SIGINT ignored, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(terminal)
    seen = b""

    def shows(text: str) -> bool:
        nonlocal seen
        if select.select([screen], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):  # nobody has the terminal any more
                seen += os.read(screen, 1 << 16)
        return text.encode() in seen

    try:
        wait_for(lambda: shows(alive.id[:8]), "the run on the screen")
        later = kept(store)
        store.write(later.advance(RunState.STARTING, **of_process(os.getpid())))
        lock = store.lock(later.identity.workload_id)
        assert lock.acquire(timeout_s=0)
        wait_for(lambda: shows(later.id[:8]), "the later run on the screen")
        lock.release()
        watching.send_signal(signal.SIGINT)
        wait_for(lambda: (shows("never"), watching.poll())[1] is not None, "the end")
        assert watching.returncode == 130
        assert b"Traceback" not in seen
    finally:
        watching.kill()
        watching.wait()
        os.close(screen)


def test_runs_are_listed_the_newest_first(cli: Cli, filled: dict[RunState, RunRecord]) -> None:
    newest_first = [record.id for record in reversed(filled.values())]
    assert [run["id"] for run in cli.json("runs")] == newest_first
    text = cli.run("runs").stdout
    assert [line.split()[0] for line in text.splitlines()[1:]] == [run_id[:8] for run_id in newest_first]
    assert "because of [failed]" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--state", "failed"], [RunState.FAILED]),
        (["-s", "failed", "-s", "lost"], [RunState.LOST, RunState.FAILED]),
        (["--dag", "odd", "-s", "starting"], [RunState.STARTING]),
        (["--dag", "odd"], [RunState.KILLED, RunState.SUCCEEDED, RunState.STARTING]),
        (["--dag", "none"], []),
        (["--task", "task_lost"], [RunState.LOST]),
        (["--dag", "even", "--run", "manual__1", "--map-index", "-1", "-s", "failed"], [RunState.FAILED]),
        (["--run", "manual__2"], []),
        (["-n", "2"], [RunState.LOST, RunState.KILLED]),
        (["-n", "0"], list(reversed(RunState))),
        (["-s", "queued", "-n", "1"], [RunState.QUEUED]),
    ],
)
def test_runs_can_be_filtered(
    cli: Cli, filled: dict[RunState, RunRecord], arguments: list[str], expected: list[RunState]
) -> None:
    assert [run["state"] for run in cli.json("runs", *arguments)] == [state.value for state in expected]


def test_runs_of_an_empty_store_are_none(cli: Cli) -> None:
    assert "no runs" in cli.run("runs").stdout
    assert cli.json("runs") == []


def test_a_record_that_cannot_be_understood_does_not_hide_the_others(
    cli: Cli, store: RunStore, filled: dict[RunState, RunRecord]
) -> None:
    (store.folder(filled[RunState.LOST].id) / "state.json").write_text("?")
    assert len(cli.json("runs")) == len(filled) - 1


# show


def test_show_tells_everything_about_a_run(cli: Cli, filled: dict[RunState, RunRecord]) -> None:
    record = filled[RunState.FAILED]
    assert cli.json("show", record.id) == orjson.loads(record.to_json())
    assert cli.json("show", record.id[:4].upper()) == orjson.loads(record.to_json())
    text = cli.run("show", record.id[:4]).stdout
    for told in (record.id, "failed", "because of [failed]", "task_failed", record.identity.workload_id):
        assert told in text


def test_show_finds_out_that_a_runner_is_gone(cli: Cli, filled: dict[RunState, RunRecord]) -> None:
    assert cli.json("show", filled[RunState.RUNNING].id)["state"] == "lost"


# logs


EVENT = {"timestamp": "2026-01-01T00:00:00.123456Z", "level": "info", "event": "did it", "logger": "task", "rows": 5}
TRACE = {
    "event": "Task failed",
    "level": "error",
    "error_detail": [
        {"exc_type": "ValueError", "exc_value": "wrong", "frames": [{"filename": "dag.py", "lineno": 3, "name": "f"}]}
    ],
}


def with_log(store: RunStore, path: Path, data: bytes, state: RunState = RunState.FAILED) -> RunRecord:
    path.write_bytes(data)
    return kept(store, state, log_file=str(path), reason="it broke" if state.is_end else None)


def test_logs_prints_the_log_for_people_the_reason_and_the_output(cli: Cli, store: RunStore, tmp_path: Path) -> None:
    lines = [orjson.dumps(EVENT), orjson.dumps(TRACE), b"plain text", b"\xff\x00 bytes", "Grüße".encode()]
    record = with_log(store, tmp_path / "log", b"\n".join(lines) + b"\n")
    Path(store.output_file(record.id)).write_text("last words\n")
    text = cli.run("logs", record.id).stdout
    assert "2026-01-01T00:00:00.123 INFO     did it  rows=5" in text
    assert "ERROR    Task failed" in text
    assert "File dag.py, line 3, in f" in text
    assert "ValueError: wrong" in text
    assert "plain text" in text
    assert "Grüße" in text
    assert f"run {record.id} ended failed: it broke" in text
    assert text.rstrip().endswith("last words")


@pytest.mark.parametrize(
    "line",
    [
        b"5",
        b"null",
        b'"text"',
        b"[1, 2]",
        b"{}",
        b'{"error_detail": [{"x": 1}]}',
        b'{"error_detail": "text", "level": 5}',
    ],
)
def test_logs_prints_lines_that_are_json_by_chance(cli: Cli, store: RunStore, tmp_path: Path, line: bytes) -> None:
    record = with_log(store, tmp_path / "log", line + b"\nthe next line\n")
    assert "the next line" in cli.run("logs", record.id).stdout


def test_logs_prints_a_last_line_that_was_cut_off(cli: Cli, store: RunStore, tmp_path: Path) -> None:
    record = with_log(store, tmp_path / "log", b"whole\ncut o")
    assert "cut o" in cli.run("logs", record.id).stdout


def test_logs_of_a_run_without_a_log_are_its_reason(cli: Cli, store: RunStore) -> None:
    record = kept(store, RunState.LOST, reason="gone")
    assert cli.run("logs", record.id).stdout == f"-- run {record.id} ended lost: gone\n"


def test_logs_that_a_terminal_cannot_show_are_shown_as_far_as_it_can(cli: Cli, store: RunStore, tmp_path: Path) -> None:
    record = with_log(store, tmp_path / "log", "Grüße, \U0001f600\n".encode())
    assert "Gr" in cli.run("logs", record.id, PYTHONIOENCODING="ascii", PYTHONUTF8="0").stdout


def test_logs_can_be_followed_to_the_end_of_the_run(
    cli: Cli, store: RunStore, tmp_path: Path, alive: RunRecord
) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"first\n")
    record = store.write(RunRecord(**{**vars(alive), "log_file": str(path)}))
    with subprocess.Popen(
        cli.command("logs", "--follow", record.id), env=cli.env, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "first\n"
            with path.open("ab") as file:
                file.write(b"second\n")
            assert process.stdout.readline() == "second\n"
            with path.open("ab") as file:
                file.write(b"third\n")
            store.write(record.advance(RunState.SUCCEEDED))
            assert process.stdout.read() == "third\n"
            assert process.wait(120) == 0
        finally:
            process.kill()


def test_logs_that_are_followed_as_json_are_an_object_for_each_line_and_one_for_the_end(
    cli: Cli, store: RunStore, tmp_path: Path, alive: RunRecord
) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"first\n")
    record = store.write(RunRecord(**{**vars(alive), "log_file": str(path)}))
    command = cli.command("logs", "--follow", "--json", record.id)
    with subprocess.Popen(command, env=cli.env, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert orjson.loads(process.stdout.readline()) == {"run": record.id, "line": "first"}
            with path.open("ab") as file:
                file.write("Grüße\n".encode())
            assert orjson.loads(process.stdout.readline()) == {"run": record.id, "line": "Grüße"}
            store.write(record.advance(RunState.KILLED, reason="stopped"))
            end = {"run": record.id, "state": "killed", "reason": "stopped", "output": None}
            assert [orjson.loads(line) for line in process.stdout] == [end]
            assert process.wait(120) == 0
        finally:
            process.kill()


def test_a_status_that_is_watched_as_json_is_a_line_for_each_look(cli: Cli) -> None:
    command = cli.command("status", "--watch", "--interval", "0.01", "--json")
    with subprocess.Popen(command, env=cli.env, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            for _ in range(2):
                assert orjson.loads(process.stdout.readline())["runs"] == []
        finally:
            process.kill()


# stop


def test_stop_of_a_run_that_has_ended_says_no(cli: Cli, filled: dict[RunState, RunRecord]) -> None:
    done = cli.run("stop", filled[RunState.SUCCEEDED].id, code=1)
    assert "has ended already: succeeded" in done.stderr


def test_stop_of_a_run_whose_runner_is_gone_says_lost(cli: Cli, filled: dict[RunState, RunRecord]) -> None:
    assert "has ended already: lost" in cli.run("stop", filled[RunState.RUNNING].id, code=1).stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_looks_and_writes_nothing_into_the_state_directory_of_another(
    cli: Cli, store: RunStore, filled: dict[RunState, RunRecord]
) -> None:
    paths = [store.root, *store.root.rglob("*")]
    for path in paths:
        os.chown(path, 12345, 12345, follow_symlinks=False)
    run_id = filled[RunState.RUNNING].id
    assert cli.json("show", run_id)["state"] == "lost"
    cli.run("status")
    for command in (("stop", run_id), ("prune", "--keep-runs", "0")):
        assert "Do this as that user: sudo -u #12345" in cli.run(*command, code=2).stderr
    assert sorted(store.root.rglob("*")) == sorted(paths[1:])
    assert {path.lstat().st_uid for path in paths} == {12345}


def test_stop_of_a_run_that_nobody_can_reach_says_so(cli: Cli, filled: dict[RunState, RunRecord]) -> None:
    assert "can be reached from here" in cli.run("stop", filled[RunState.QUEUED].id, code=1).stderr


def test_stop_never_signals_a_process_that_only_has_the_pid(cli: Cli, store: RunStore, alive: RunRecord) -> None:
    other = of_process()
    record = store.write(RunRecord(**{**vars(alive), "pid_started": other["pid_started"] - 100}))
    cli.run("stop", record.id, code=1)  # SIGTERM would end this very process


@pytest.fixture
def running(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[LocalBackend, RunRecord]]:
    """A real run, which waits for a GPU that it will not get, and its backend."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "home"))
    gpu = KernelLock(store.gpus / "0")
    assert gpu.acquire(0)
    with family():
        backend = LocalBackend(config(store.root, launch="exec", gpus=("0",), launcher_idle_seconds=600.0))
        backend.warm_up()
        request = RunRequest(id=str(uuid.uuid4()), identity=identity(), workload={}, air={"gpus": 1})
        backend.order(request, queued(request.id, request.identity, limits={}, log_file=None))

        def there() -> RunRecord | None:
            backend.take_ends()
            record = store.read(request.id)
            return record if record.state is RunState.STARTING else None

        yield backend, wait_for(there, "the run")
        backend.close()
    gpu.release()


def test_stop_ends_a_run_and_waits_for_it(cli: Cli, store: RunStore, running: tuple[LocalBackend, RunRecord]) -> None:
    backend, record = running
    [launcher] = wait_for(lambda: cli.json("status")["launchers"], "the launcher to answer")
    assert launcher["runners"] == 1
    wait_for(lambda: "1 runners" in cli.run("status").stdout, "the status as text")
    done = cli.run("stop", record.id[:13], "--reason", "I said so", "--wait")
    assert done.stdout == f"run {record.id} of some_dag.some_task: killed\n"
    end = store.read(record.id)
    assert (end.state, end.reason) == (RunState.KILLED, f"stopped: I said so, by {getpass.getuser()}")
    assert wait_for(backend.take_ends, "the end") == [end]
    assert record.pid and not is_alive(record.pid)


def test_stop_reaches_a_run_without_its_launcher(
    cli: Cli, store: RunStore, running: tuple[LocalBackend, RunRecord]
) -> None:
    _, record = running
    [launcher] = wait_for(lambda: cli.json("status")["launchers"], "the launcher to answer")
    os.kill(launcher["pid"], 9)
    cli.run("stop", record.id, "--wait")
    assert store.read(record.id).state is RunState.KILLED


# prune


def test_prune_removes_what_is_old_or_too_many_and_counts(
    cli: Cli, store: RunStore, filled: dict[RunState, RunRecord]
) -> None:
    month_ago = time.time() - 30 * 86400
    old = store.folder(filled[RunState.FAILED].id)
    os.utime(old, (month_ago, month_ago))
    assert cli.json("prune") == {"removed": 1, "kept": 6, "jobs": {"removed": 0, "kept": 0}}
    assert not old.exists()
    assert cli.json("prune", "--keep-days", "100") == {"removed": 0, "kept": 6, "jobs": {"removed": 0, "kept": 0}}
    assert cli.run("prune", "--keep-runs", "0").stdout == "removed 3 records, kept 3\nremoved 0 jobs, kept 0\n"
    assert {record.state for record in store.records()} == {RunState.QUEUED, RunState.STARTING, RunState.RUNNING}


def test_prune_takes_its_defaults_from_the_options(cli: Cli, filled: dict[RunState, RunRecord]) -> None:
    cli.env[env_var("keep_runs")] = "0"
    assert cli.json("prune") == {"removed": 4, "kept": 3, "jobs": {"removed": 0, "kept": 0}}


# doctor


def findings(checks: list[dict[str, Any]]) -> dict[str, bool]:
    return {check["name"]: check["ok"] for check in checks}


def test_doctor_finds_what_is_right_and_what_is_not_and_how_to_mend_it(cli: Cli, store: RunStore) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # not listening: whoever connects is refused
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        cli.env["AIRFLOW__CORE__EXECUTOR"] = "air_executor.AirExecutor"
        cli.env["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] = f"{url}/execution/"
        checks = cli.json("doctor", code=1)
        assert findings(checks) == {
            "python": True,
            "airflow": True,
            "provider": True,
            "options": True,
            "state directory": True,
            "disk space": True,
            "records": True,
            "launcher": True,
            "processes": True,
            "preload": True,
            "executor": True,
            "api server": False,
        }
        [bad] = [check for check in checks if not check["ok"]]
        assert url in bad["found"]
        assert "airflow api-server" in bad["remedy"]
        text = cli.run("doctor", code=1, COLUMNS="40").stdout
    assert f"FAIL  api server: {bad['found']}\n" in text
    [folder] = [check for check in checks if check["name"] == "state directory"]
    assert f"ok    state directory: {folder['found']}\n" in text
    assert "ok    executor" in text


def test_doctor_tells_where_the_kernel_hides_processes(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._processes(store).ok
    monkeypatch.setattr(doctor, "launchers", lambda _: [{"key": "service", "hides_processes": True}])
    found = doctor._processes(store)
    assert not found.ok
    assert "ProtectProc=default" in found.remedy


def test_doctor_names_an_option_that_cannot_be_used(cli: Cli) -> None:
    cli.env[env_var("launch")] = "spoon"
    checks = cli.json("doctor", code=1)
    assert "launch" in next(check for check in checks if check["name"] == "options")["found"]


def test_doctor_finds_records_that_cannot_be_understood_and_launchers_that_are_silent(
    cli: Cli, store: RunStore, filled: dict[RunState, RunRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    (store.folder(filled[RunState.LOST].id) / "state.json").write_text("?")
    list(store.records())
    monkeypatch.chdir(store.launchers)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind("0123456789abcdef.sock")
    cli.env["AIRFLOW__CORE__EXECUTOR"] = "LocalExecutor"
    checks = cli.json("doctor", code=1)
    assert {name for name, ok in findings(checks).items() if not ok} >= {"records", "launcher", "executor"}
    [records] = [check for check in checks if check["name"] == "records"]
    assert f"{filled[RunState.LOST].id}/state.json" in records["remedy"]


@pytest.mark.parametrize("moment", ["yesterday", 5, "2026-01-01T00:00:00"])
def test_a_record_whose_moment_makes_no_sense_keeps_no_command_from_the_others(
    cli: Cli, filled: dict[RunState, RunRecord], store: RunStore, moment: object
) -> None:
    path = store.folder(filled[RunState.QUEUED].id) / "state.json"
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), "queued_at": moment}))
    assert filled[RunState.SUCCEEDED].id in {each["id"] for each in cli.json("runs")}
    cli.run("status")
    cli.run("prune")
    assert store.unreadable() == [path]
