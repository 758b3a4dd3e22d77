"""What programs get when a command fails: one JSON object on stdout, and the exit code that people get too."""

from __future__ import annotations

import argparse
import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from air_executor.cli import table
from air_executor.cli.commands import all_commands
from air_executor.cli.failure import envelope
from air_executor.cli.jsonout import printing_text
from air_executor.cli.main import parser
from air_executor.errors import (
    AirExecutorError,
    JobError,
    LauncherAwayError,
    ManagedError,
    StateDirError,
    UnknownJobError,
    WrongStateError,
)


def run(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "air_executor.cli", *arguments],
        env={"AIR_EXECUTOR_STATE_DIR": str(folder / "state"), "HOME": str(folder), "PATH": "/usr/bin:/bin", **env},
        cwd=folder,
        capture_output=True,
        timeout=120,
    )


def told(done: subprocess.CompletedProcess[bytes], code: int) -> dict[str, Any]:
    assert done.returncode == code, done.stderr.decode()
    assert done.stdout.count(b"\n") == 1
    assert done.stderr == b""
    document = orjson.loads(done.stdout)
    assert list(document) == ["error", "retryable", "hint"]
    assert isinstance(document["error"], str)
    assert isinstance(document["retryable"], bool)
    return dict(document)


@pytest.mark.parametrize("command", [command.name for command in all_commands()])
def test_every_command_takes_json_and_tells_wrong_use_as_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    [flags] = [
        [flag for each in known.arguments for flag in each.flags] for known in all_commands() if known.name == command
    ]
    assert "--json" in flags
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["air-executor", command, "--json", "--nonsense"])
        with pytest.raises(SystemExit) as exit_:
            parser().parse_args()
    assert exit_.value.code == 2
    out, err = capsys.readouterr()
    assert err == ""
    document = orjson.loads(out)
    assert "--nonsense" in document["error"] or "required" in document["error"]
    assert document["retryable"] is False
    assert "--help" in document["hint"]


@pytest.mark.parametrize(
    ("arguments", "code", "error", "hint"),
    [
        (["job", "nope"], 2, "there is no job nope", "jobs --json"),
        (["results", "nope"], 2, "there is no job nope", "jobs --json"),
        (["logs", "nope", "a"], 2, "there is no job nope", "jobs --json"),
        (["cancel", "nope"], 2, "there is no job nope", "jobs --json"),
        (["show", "abc"], 2, "there is no run 'abc'", "runs --json"),
        (["logs", "abc"], 2, "there is no run 'abc'", "runs --json"),
        (["logs", "abc", "-f"], 2, "there is no run 'abc'", "runs --json"),
        (["submit", "no.yaml"], 2, "no.yaml cannot be read", None),
        (["run", "no.yaml"], 2, "no.yaml cannot be read", None),
        (["run", "../x"], 2, "", None),
        (["job", "caf\udce9"], 2, "\\udce9", None),
        (["logs", "--dag", "nope"], 2, "nope", None),
        (["show", "--dag", "nope"], 2, "nope", None),
        (["stop", "--dag", "nope"], 2, "nope", None),
        (["logs", "abc", "--grep", "("], 2, "regular expression", "--help"),
        (["stop"], 1, "no manager works here", None),
        (["shutdown"], 1, "no manager works here", None),
        (["add"], 2, "there is no command", "air-executor add -- COMMAND"),
        (["wait", "nope"], 2, "there is no job nope", "jobs --json"),
        (["pause", "nope"], 2, "there is no job nope", "jobs --json"),
        (["retry", "nope", "a"], 2, "there is no job nope", "jobs --json"),
        (["trust", "nope"], 2, "there is no job nope", "jobs --json"),
        (["queue", "--job", "nope", "--", "true"], 2, "there is no job nope", "jobs --json"),
        (["queue", "--", "true"], 2, "name the job", "air-executor queue --job NAME"),
        (["queue", "--job", "nope", "--function", "a:b", "--arguments", "{"], 2, "must be JSON", None),
        (["runs", "--state", "nope"], 2, "invalid choice", "--help"),
        (["prune", "--keep-days", "x"], 2, "'x' is not a number", "--help"),
        (["run", "nope"], 2, "nope", None),
        (["help", "nope"], 2, "nope", "air-executor help"),
        (["add", "--state-dir", "/proc/nope", "--", "true"], 2, "/proc/nope", "doctor"),
        (["jobs", "--state-dir", "/dev/null/x"], 2, "/dev/null/x", None),
        (["nothing"], 2, "invalid choice", "--help"),
    ],
)
def test_an_error_is_one_object_on_stdout(
    tmp_path: Path, arguments: list[str], code: int, error: str, hint: str | None
) -> None:
    (tmp_path / ".air-executor").mkdir()
    at = arguments.index("--") if "--" in arguments else len(arguments)
    document = told(run(tmp_path, *arguments[:at], "--json", *arguments[at:]), code)
    assert error in document["error"]
    assert hint is None or hint in document["hint"]
    assert not document["retryable"]


def test_json_that_is_meant_for_a_task_does_not_change_how_an_error_is_told(tmp_path: Path) -> None:
    done = run(tmp_path, "queue", "--nonsense", "--", "echo", "--json")
    assert done.returncode == 2
    assert done.stdout == b""
    assert b"usage" in done.stderr


def test_what_cannot_be_done_as_things_are_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(_: argparse.Namespace) -> int:
        raise WrongStateError("job a has ended already: completed")

    with pytest.raises(SystemExit) as exit_:
        table.call(table.Command("x", "", refuse))(argparse.Namespace(json=True))
    assert exit_.value.code == 1
    assert orjson.loads(capsys.readouterr().out)["error"] == "job a has ended already: completed"


def test_an_error_that_nobody_expected_is_an_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: argparse.Namespace) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):  # python prints the traceback to stderr, and ends with 1
        table.call(table.Command("x", "", fail))(argparse.Namespace(json=True))
    document = orjson.loads(capsys.readouterr().out)
    assert document["error"].startswith("OSError: ")
    assert document["retryable"] is True


def test_text_is_passed_on_as_a_field_of_json_without_being_held(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    with printing_text({"run": "a", "task": None}, "log"):
        for number in range(3):
            print(f'line {number} "é\x00"')
            seen.append(capsys.readouterr().out)
    seen.append(capsys.readouterr().out)
    assert all(f"line {number} " in seen[number] for number in range(3))
    lines = "".join(f'line {number} "é\x00"\n' for number in range(3))
    assert (
        "".join(seen)
        == orjson.dumps({"run": "a", "task": None, "log": lines}, option=orjson.OPT_INDENT_2).decode() + "\n"
    )
    with printing_text({"run": "a"}, "log"):
        pass
    assert orjson.loads(capsys.readouterr().out) == {"run": "a", "log": ""}
    with pytest.raises(JobError), printing_text({"run": "a"}, "log"):
        raise JobError("before anything was printed")
    assert capsys.readouterr().out == ""


def caused(error: AirExecutorError, number: int) -> AirExecutorError:
    error.__cause__ = OSError(number, "cause")
    return error


@pytest.mark.parametrize(
    ("error", "is_retryable", "hint"),
    [
        (caused(StateDirError("cannot write"), errno.ENOSPC), True, "`air-executor doctor --json`"),
        (caused(StateDirError("cannot write"), errno.EDQUOT), True, "doctor"),
        (caused(StateDirError("cannot write"), errno.EACCES), False, "doctor"),
        (ManagedError("another manager works on job a"), True, None),
        (LauncherAwayError("it is away"), True, "air-executor launcher"),
        (UnknownJobError("there is no job a"), False, "`air-executor jobs --json` lists the jobs"),
        (JobError("there is a job a already; `air-executor reset a` begins it anew"), False, "`air-executor reset a`"),
        (JobError("wrong", hint="do this"), False, "do this"),
        (JobError("wrong"), False, None),
        (KeyboardInterrupt(), True, None),
        (ValueError("x"), False, None),
    ],
)
def test_an_error_says_whether_to_try_again_and_what_to_do(
    error: BaseException, is_retryable: bool, hint: str | None
) -> None:
    document = envelope(error)
    assert document["retryable"] is is_retryable
    assert (document["hint"] is None) if hint is None else (hint in document["hint"])
