"""Tables: no word is broken on a narrow terminal, and a row is a line in a pipe."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console, Group
from rich.text import Text
from rich.tree import Tree

from air_executor.cli import listing
from air_executor.cli.listing import Listing

REASON = "the task process was killed by SIGKILL (signal 9); its largest process held 512 MiB"


def table() -> Listing:
    shown = Listing("RUN", "STATE", "QUEUED (UTC)", "WHAT", "TRY", "REASON", right=("TRY",), wraps="REASON")
    shown.add_row("1f0c2d3e", Text("succeeded"), "2026-01-01 00:00:00", "sales.load_all[12]", "2", "")
    shown.add_row("7a0c2d3e", Text("killed"), "2026-01-01 00:00:00", "sales.transform_and_load", "1", REASON)
    return shown


def on_terminal(part: object, width: int) -> str:
    screen = io.StringIO()
    Console(file=screen, width=width, force_terminal=True, color_system=None).print(part)
    return screen.getvalue()


@pytest.mark.parametrize("width", [40, 60, 79, 80, 81, 100, 120, 200])
def test_no_word_is_broken_and_no_line_is_too_long(width: int) -> None:
    text = on_terminal(table(), width)
    words = re.split(r"\s+", text)
    for word in ("RUN", "STATE", "succeeded", "sales.transform_and_load", "sales.load_all[12]", *REASON.split()):
        assert word in words, text
    assert max(map(len, text.splitlines())) <= width


def test_there_is_room_for_all_in_one_line_on_a_wide_terminal() -> None:
    head, first, second = on_terminal(table(), 200).splitlines()
    assert head.split() == ["RUN", "STATE", "QUEUED", "(UTC)", "WHAT", "TRY", "REASON"]
    assert second.endswith(f"  {REASON}")
    assert head.index("TRY") + 2 == first.rindex("2") == second.index(" 1 ") + 1, "numbers stand to the right"


def test_a_pipe_gets_whole_rows_with_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Listing("JOB", "REASON", wraps="REASON")
    shown.add_row("a", "two\nlines\tand a tab [not markup]")
    shown.add_row("b", "x " * 500)
    listing.show(Group(Text("a line " * 50), shown), Tree(Text("y" * 300)))
    line, head, first, second, tree = capsys.readouterr().out.splitlines()
    assert line == "a line " * 50
    assert head == "JOB\tREASON"
    assert first == "a\ttwo lines and a tab [not markup]"
    assert second == "b\t" + "x " * 500
    assert tree == "y" * 300
