"""``airflow air …`` is ``air-executor …``: the same commands with the same arguments, stdin, output and exit codes."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from air_executor.cli import help
from air_executor.cli.commands import all_commands
from air_executor.cli.main import parser
from air_executor.provider import get_cli_commands

#: Beside the examples of the help: what two levels of parsers may read in another way than one.
LINES = [
    "add --wait --json -- sh -c 'echo --json; exit 3' -- --wait",
    "add make --jobs 4",
    "add --shell -- 'a | b'",
    "queue --job j --after a --after b -- prog --id x -- y",
    "queue --function m:f --arguments '{\"n\": 3}'",
    "run - --name n --json",
    "submit - --key k",
    "logs -f run task --grep=-x",
    "logs --dag d --task t -r r -m -1 --tail 0 -f",
    "stop --dag d --reason 'a b' --wait",
    "runs -s failed -s lost -n 0",
    "status -w --interval 0.5 --json",
    "remove a b --force",
    "jobs --state-dir /tmp/x",
    "retry j a b --json",
    "reset j",
    "results j",
    "cancel j",
    "trust --all",
    "help add",
    "help",
    "mcp",
    "schema",
    "doctor --json",
]


def airflows() -> argparse.ArgumentParser:
    """The parser that Airflow makes of our commands."""
    from airflow.cli import cli_parser

    top = argparse.ArgumentParser(prog="airflow")
    subparsers = top.add_subparsers(dest="subcommand")
    for group in get_cli_commands():
        cli_parser._add_command(subparsers, group)
    return top


def lines() -> list[str]:
    examples = [line.partition(" > ")[0] for shown in help._EXAMPLES.values() for line, _ in shown]
    return [*examples, *LINES]


def test_every_command_is_tried() -> None:
    assert {shlex.split(line)[0] for line in lines()} == {command.name for command in all_commands()}


def test_every_command_line_is_read_alike() -> None:
    ours, theirs = parser(), airflows()
    for line in lines():
        words = shlex.split(line)
        found = [vars(ours.parse_args(words)), vars(theirs.parse_args(["air", *words]))]
        for each in found:
            del each["func"]
            each.pop("subcommand", None)
            each.pop("command", None)
        assert found[0] == found[1], line


Call = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(params=["air-executor", "airflow air"])
def call(request: pytest.FixtureRequest, tmp_path: Path) -> Call:
    """Calls a command as a user does, in a folder of its own."""
    (tmp_path / "work").mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "AIR_EXECUTOR"))}
    env |= {"AIRFLOW_HOME": str(tmp_path / "home"), "AIRFLOW__CORE__EXECUTOR": "air_executor.AirExecutor"}
    env |= {"AIR_EXECUTOR_PRIVATE_DIR": str(tmp_path / "private"), "COLUMNS": "200"}
    argv = {"air-executor": ["-m", "air_executor.cli"], "airflow air": ["-m", "airflow", "air"]}[request.param]

    def run(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *argv, *words, "--state-dir", str(tmp_path / "work" / ".air-executor")]
            if "--" not in words
            else [sys.executable, *argv, words[0], "--state-dir", str(tmp_path / "work" / ".air-executor"), *words[1:]],
            env=env,
            cwd=tmp_path / "work",
            input=stdin,
            capture_output=True,
            text=True,
            timeout=180,
        )

    return run


def test_stdin_output_and_exit_codes_are_the_same(call: Call) -> None:
    ran = call("run", "-", "--name", "mine", "--json", stdin='[{"id": "a", "command": "echo", "args": ["said"]}]')
    assert (ran.returncode, json.loads(ran.stdout)["state"]) == (0, "completed"), ran.stderr
    added = call("add", "--wait", "--", "sh", "-c", "cat; echo --json; exit 7", stdin="not for the command\n")
    assert (added.returncode, added.stdout, added.stderr) == (7, "--json\n", "")
    followed = call("logs", "mine", "a", "-f")
    assert (followed.returncode, followed.stdout, followed.stderr) == (0, "said\n", "")
    refused = call("job", "nope", "--json")
    assert (refused.returncode, refused.stderr) == (2, "")
    document: dict[str, Any] = json.loads(refused.stdout)
    assert document["error"].startswith("there is no job nope")
