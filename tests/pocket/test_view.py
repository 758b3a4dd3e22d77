"""What a DAG's run looks like while it runs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from air_executor.cli import dagview
from air_executor.cli.dagview import View, _LiveView
from air_executor.pocket.folder import RunFolder

AT = "2026-03-04T10:00:05+00:00"


def console(width: int = 60, height: int = 12) -> Console:
    return Console(file=io.StringIO(), width=width, height=height, color_system=None)


def text(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


def task(task_id: str, state: str | None, index: int = -1, tries: int = 1, **more: Any) -> dict[str, Any]:
    common = {"event": "task", "at": AT, "task_id": task_id, "map_index": index, "state": state, "try_number": tries}
    times = {"start": "2026-03-04T10:00:00+00:00", "end": "2026-03-04T10:00:02.500+00:00"}
    return {**common, **times, **more}


def begin(view: View, folder: Path, *tasks: str) -> RunFolder:
    view.take({"event": "begun", "name": "d-1", "folder": str(folder), "goes_on": False})
    view.take({"event": "dag", "dag_id": "d", "run_id": "r", "tasks": list(tasks)})
    return RunFolder(folder)


def test_without_a_terminal_each_change_is_a_line(tmp_path: Path) -> None:
    view = View(console(1000))
    begin(view, tmp_path, "a")
    for event in (task("a", "queued"), task("a", "running", end=None), task("a", "success", tries=2)):
        view.take(event)
    lines = text(view.console).splitlines()
    assert lines[0] == f"run d-1  in {tmp_path}" and lines[1] == "d  r  1 tasks"
    assert [line.split("  ", 1)[1] for line in lines[2:]] == ["running  a", "success  a  2.5s  try 2"]


def test_a_failed_task_is_shown_with_the_end_of_its_log(tmp_path: Path) -> None:
    view = View(console(1000))
    folder = begin(view, tmp_path, "a")
    log = folder.task_log("d", "r", "a", -1, 1)
    log.parent.mkdir(parents=True)
    frames = [{"filename": f"/x/site-packages/airflow/{n}.py", "lineno": n, "name": "inner"} for n in range(20)] + [
        {"filename": "/dags/mine.py", "lineno": 7, "name": "a"}
    ]
    error = {"exc_type": "ValueError", "exc_value": "four", "frames": frames}
    lines = [
        {"event": "a word before", "level": "info"},
        {"event": "Task failed with exception", "level": "error", "error_detail": [error]},
        {"event": "::group::Post Execute", "level": "info"},
    ]
    log.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    view.take(task("a", "failed"))
    shown = text(view.console)
    assert "a word before" in shown and "File /dags/mine.py, line 7" in shown and "ValueError: four" in shown
    assert "site-packages" not in shown and "group::" not in shown


def test_on_a_terminal_all_tasks_are_listed_and_mapped_ones_are_counted(tmp_path: Path) -> None:
    view = _LiveView(console())
    begin(view, tmp_path, "a", "m", "z")
    view.take(task("a", "success"))
    for index, state in enumerate(("success", "running", "failed", None)):
        view.take(task("m", state, index))
    view.console.file = io.StringIO()
    view.console.print(view)
    lines = [line.rstrip() for line in text(view.console).splitlines()]
    assert lines[0] == "✓ a  success  2.5s"
    assert lines[1] == "✗ m  1 of 4, 1 failed"
    assert [line.split()[1] for line in lines[2:4]] == ["m[1]", "m[2]"]
    assert lines[4] == "· z  waiting"
    assert lines[5].endswith("2 success, 1 running, 1 failed, 1 waiting")


def test_a_list_that_is_too_long_shows_what_is_at_work(tmp_path: Path) -> None:
    view = _LiveView(console(height=6))
    names = [f"t{n}" for n in range(50)]
    begin(view, tmp_path, *names)
    for name in names[:48]:
        view.take(task(name, "success"))
    view.take(task("t48", "running"))
    view.console.file = io.StringIO()
    view.console.print(view)
    lines = text(view.console).splitlines()
    assert len(lines) <= 6
    assert "t48" in lines[0] and "t49" in lines[1] and lines[2].strip() == "and 48 more"


def test_a_state_has_a_name_and_a_colour_whatever_it_is() -> None:
    assert dagview.state(None).plain == "waiting"
    assert dagview.state("of_a_later_airflow").plain == "of_a_later_airflow"
    assert dagview.state("failed").style == "red"
