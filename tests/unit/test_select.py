"""Runs named by what they are of; the wanted lines of a log; pages of help."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pytest
from rich.text import Text

from air_executor.cli import help, main
from air_executor.cli.commands import all_commands
from air_executor.cli.joblogs import _lines, _wanted_lines
from air_executor.cli.table import at_least_zero, count, whole_number
from air_executor.cli.tasklogs import Filter, LogReader, pattern, tail_position
from air_executor.runs.record import RunRecord, RunState
from air_executor.runs.store import RunStore
from tests.unit.conftest import Cli
from tests.unit.documents import identity, kept


@pytest.fixture
def runs(store: RunStore, tmp_path: Path) -> dict[str, RunRecord]:
    """Two tries of one task instance, one mapped instance of another task, and another dag."""
    made = {}
    for name, who, state in (
        ("first", identity(dag_id="sales", task_id="load", try_number=1), RunState.FAILED),
        ("second", identity(dag_id="sales", task_id="load", try_number=2), RunState.SUCCEEDED),
        ("mapped", identity(dag_id="sales", task_id="part", map_index=3, dag_run_id="manual__2"), RunState.LOST),
        ("other", identity(dag_id="costs", task_id="load"), RunState.FAILED),
    ):
        log = tmp_path / f"{name}.log"
        log.write_text("".join(f"{name} line {number}\n" for number in range(1, 6)))
        at = f"2026-01-0{len(made) + 1}T00:00:00.000000+00:00"
        made[name] = kept(store, state, who=who, queued_at=at, log_file=str(log))
    return made


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--dag", "sales", "--task", "load"), "second"),
        (("--dag", "sales", "--task", "part", "--map-index", "3"), "mapped"),
        (("--dag", "sales", "--map-index", "3"), "mapped"),
        (("--dag", "costs"), "other"),
        (("--run", "manual__2"), "mapped"),
        (("-d", "costs", "-t", "load", "-r", "manual__1", "-m", "-1"), "other"),
    ],
)
def test_a_run_is_shown_by_what_it_is_of(
    cli: Cli, runs: dict[str, RunRecord], arguments: tuple[str, ...], named: str
) -> None:
    assert cli.json("show", *arguments)["id"] == runs[named].id
    assert f"{named} line 5" in cli.run("logs", *arguments).stdout


def test_what_names_several_instances_or_none_is_said(cli: Cli, runs: dict[str, RunRecord]) -> None:
    said = cli.run("show", "--dag", "sales", code=2).stderr
    assert "2 task instances are named so" in said
    assert f"{runs['mapped'].id[:8]}  sales.part[3]" in said
    assert "there is no run of dag_id none" in cli.run("logs", "--dag", "none", code=2).stderr
    assert "not by both" in cli.run("show", runs["first"].id, "--dag", "sales", code=2).stderr
    assert "name a run" in cli.run("show", code=2).stderr
    assert "name a run" in cli.run("logs", code=2).stderr
    assert "there is no live run of dag_id sales" in cli.run("stop", "--dag", "sales", code=2).stderr


def test_all_live_runs_of_a_dag_are_stopped_together(cli: Cli, store: RunStore, runs: dict[str, RunRecord]) -> None:
    live = [kept(store, who=identity(dag_id="sales", task_id=f"t{number}")) for number in range(2)]
    said = cli.run("stop", "--dag", "sales", "--reason", "enough", code=1).stderr
    for record in live:  # nobody can reach them: they are of no launcher
        assert f"run {record.id} is queued" in said
        assert store.stop_request(record.id) is not None
    assert len(said.splitlines()) == 1


def test_a_bare_stop_is_a_shutdown_and_says_so(cli: Cli) -> None:
    said = cli.run("stop", code=1).stderr
    assert "as `air-executor shutdown` does" in said
    assert "no manager works here" in said
    assert "no manager works here" in cli.run("shutdown", code=1).stderr


# The wanted lines


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (("--tail", "2"), ["second line 4", "second line 5"]),
        (("--tail", "0"), []),
        (("--tail", "99"), [f"second line {n}" for n in range(1, 6)]),
        (("--grep", "line [24]"), ["second line 2", "second line 4"]),
        (("--grep", "line [1-4]", "--tail", "1"), ["second line 4"]),
        (("-f", "--tail", "1"), ["second line 5"]),
        (("-f", "--grep", "5$", "--tail", "9"), ["second line 5"]),
    ],
)
def test_some_lines_of_a_log(
    cli: Cli, runs: dict[str, RunRecord], arguments: tuple[str, ...], lines: list[str]
) -> None:
    assert cli.run("logs", runs["second"].id, *arguments).stdout.splitlines() == lines


def test_what_is_no_expression_is_said(cli: Cli, runs: dict[str, RunRecord]) -> None:
    assert "'(' is not a regular expression" in cli.run("logs", "x", "--grep", "(", code=2).stderr


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("length", [1, 7, 70_000])
def test_the_tail_of_a_file_is_found_from_its_end(tmp_path: Path, end: str, length: int) -> None:
    path = tmp_path / "log"
    lines = [str(number) * length for number in range(5)]
    path.write_text("\n".join(lines) + end)
    for wanted in range(7):
        reader = LogReader(str(path))
        reader.skip_to_tail(wanted)
        assert list(reader.lines(is_over=True)) == (lines[-wanted:] if wanted else [])
    assert tail_position(tmp_path / "none", 3) == 0
    path.write_text("")
    assert tail_position(path, 3) == 0


def test_lines_that_come_are_not_held_back_by_a_tail() -> None:
    pieces = ["a1\nb2\na", "3\n", "", "a4\n", "", "b5\na6"]
    assert list(_lines(pieces)) == ["a1\n", "b2\n", "a3\n", None, "a4\n", None, "b5\n", "a6\n"]
    assert list(_wanted_lines(pieces, Filter(tail=1, pattern=pattern("a")))) == ["a3\n", "a4\n", "a6\n"]
    assert list(_wanted_lines(pieces, Filter(pattern=pattern("b")))) == ["b2\n", "b5\n"]


# Help


def test_help_shows_commands_in_groups_with_examples_and_where_they_work(cli: Cli) -> None:
    page = cli.run("--help", COLUMNS="80").stdout
    assert max(map(len, page.splitlines())) <= 80
    groups = [line for line in page.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert [group.split()[0].strip(":") for group in groups[:4]] == ["Runs", "Jobs", "DAGs", "Service"]
    for command in all_commands():
        assert f"\n  {command.name} " in page
    for command in ("start", "run", "status", "logs"):
        page = cli.run(command, "--help").stdout
        assert f"Examples:\n  air-executor {command}" in page
        assert "nearest .air-executor from this folder upwards" in page


def test_every_example_of_the_help_is_understood() -> None:
    parser = main.parser()
    for name, examples in help._EXAMPLES.items():
        assert name in [command.name for command in all_commands()]
        for line, _ in examples:
            parser.parse_args(shlex.split(line.partition(" > ")[0]))
    for line, _ in help._BEGINNINGS:
        parser.parse_args(line.split())


@pytest.mark.parametrize("kind", [at_least_zero, count, whole_number])
@pytest.mark.parametrize("text", ["x", "", "1e", "nan nan"])
def test_what_is_no_number_is_said_in_words(kind: object, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a"):
        kind(text)  # type: ignore[operator]


def test_an_option_that_is_no_number_names_no_function(cli: Cli) -> None:
    said = cli.run("status", "--interval", "soon", code=2).stderr
    assert "argument --interval: 'soon' is not a number, 0 or more" in said


def test_airflows_help_keeps_what_stands_in_brackets(cli: Cli) -> None:
    from air_executor.provider import get_cli_commands

    rendered = Text.from_markup
    [group] = get_cli_commands()
    of_launcher = next(each for each in group.subcommands if each.name == "launcher")
    assert "[air_executor] launcher = service" in rendered(of_launcher.help).plain
    assert "[air_executor] state_dir" in rendered(of_launcher.epilog).plain
    of_prune = next(each for each in group.subcommands if each.name == "prune")
    assert any("[air_executor] keep_days" in rendered(arg.kwargs["help"]).plain for arg in of_prune.args)
