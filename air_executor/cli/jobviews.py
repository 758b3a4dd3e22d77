"""What the commands of the standalone engine show, as rich renderables."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import orjson
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from air_executor.cli.views import duration, table
from air_executor.jobs.model import JobState, Task, TaskStatus
from air_executor.jobs.store import JobFiles

if TYPE_CHECKING:
    from air_executor.cli.jobs import Summary

_COLOURS: dict[str, str] = {
    "waiting": "dim",
    "pending": "dim",
    "working": "cyan",
    "running": "cyan",
    "completed": "green",
    "failed": "red",
    "skipped": "yellow",
    "cancelled": "yellow",
}

#: A result is shown up to so many characters.
_SHOWN = 60


def _state(state: JobState | TaskStatus) -> Text:
    return Text(state.value, style=_COLOURS[state.value])


def jobs(found: Iterable[Summary]) -> RenderableType:
    """Return a list of jobs."""
    numbers = ("DONE", "RUNNING", "FAILED", "NOT RUN")
    shown = table("JOB", "STATE", *numbers, "UPDATED (UTC)", "REASON", right=numbers)
    for job in found:
        shown.add_row(
            escape(job.name),
            Text("paused", style="yellow") if job.paused else _state(job.state),
            f"{job.completed}/{job.tasks}",
            str(job.running),
            str(job.failed),
            str(job.skipped + job.cancelled),
            job.updated_at[:19].replace("T", " "),
            escape(job.error or ""),
        )
    return shown if shown.row_count else Text("no jobs")


def job(files: JobFiles) -> RenderableType:
    """Return a job's tasks as a tree: below each task what it has queued."""
    paused = (" paused", "yellow") if files.job.paused else ""
    head = Text.assemble((files.job.name, "bold"), " ", _state(files.job.state), paused, f" {files.job.error or ''}")
    tree = Tree(head)
    branches: dict[str, Tree] = {}
    for task in files.tasks.values():
        parent = branches.get(task.queued_by or "", tree)
        branches[task.id] = parent.add(_line(task))
    return tree


def _line(task: Task) -> Text:
    parts: list[str | Text] = [_state(task.status), " ", Text(task.id, style="bold"), " ", what(task)]
    took = took_s(task)
    if took is not None:
        parts.append(Text(f"  {duration(took)}", style="dim"))
    if task.tries > 1:
        parts.append(Text(f"  try {task.tries}", style="yellow"))
    if task.dependencies and task.status is TaskStatus.PENDING:
        parts.append(Text(f"  after {', '.join(task.dependencies)}", style="dim"))
    if task.error:
        parts.append(Text(f"  {task.error}", style="red" if task.status is TaskStatus.FAILED else "yellow"))
    return Text.assemble(*parts)


def what(task: Task) -> str:
    """Return what a task executes, in one line."""
    if task.function is not None:
        return f"{task.function}({', '.join(f'{name}={value!r}' for name, value in task.arguments.items())})"[:_SHOWN]
    line = " ".join([task.command or "", *task.args])
    if task.index is not None:
        line = line.replace("${item}", task.item if isinstance(task.item, str) else orjson.dumps(task.item).decode())
    return line[:_SHOWN]


def took_s(task: Task) -> float | None:
    """Return for how long a task has run, in seconds; ``None`` when it has not begun."""
    if task.started_at is None or task.status is TaskStatus.PENDING:
        return None
    end = datetime.fromisoformat(task.completed_at) if task.completed_at else datetime.now(tz=timezone.utc)
    return max(0.0, (end - datetime.fromisoformat(task.started_at)).total_seconds())


def results(files: JobFiles) -> RenderableType:
    """Return what became of a job and its tasks."""
    shown: Table = table("TASK", "STATUS", "TOOK", "TRIES", "RESULT", right=("TOOK", "TRIES"))
    for task in files.tasks.values():
        result = task.error or ("" if task.result is None else orjson.dumps(task.result).decode())
        took = took_s(task)
        shown.add_row(
            escape(task.id),
            _state(task.status),
            "" if took is None else duration(took),
            str(task.tries),
            escape(result[:_SHOWN] + ("…" if len(result) > _SHOWN else "")),
        )
    counts = [task.status for task in files.tasks.values()]
    line = f"{counts.count(TaskStatus.COMPLETED)} of {len(counts)} tasks completed"
    head = Text.assemble("job ", (files.job.name, "bold"), " ", _state(files.job.state), f": {files.job.error or line}")
    return Group(head, shown)
