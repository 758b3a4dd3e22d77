"""What the commands of the standalone engine show, as rich renderables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from air_executor import jsontext
from air_executor.cli.listing import Listing, flat
from air_executor.cli.views import duration
from air_executor.jobs import trust
from air_executor.jobs.fields import moment
from air_executor.jobs.model import JobState, Task, TaskStatus
from air_executor.jobs.store import JobFiles
from air_executor.observe.jobs import Summary
from air_executor.runs.record import RunRecord

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

#: What a task executes is shown up to this many characters, and its result.
_SHOWN, _RESULT_SHOWN = 60, 1000

#: Tasks that were queued by others in this many generations are not indented any more.
_DEEPEST = 6

NO_MANAGER = "no manager works on it: `air-executor start`"


def _state(state: JobState | TaskStatus) -> Text:
    return Text(state.value, style=_COLOURS.get(state.value, "yellow"))


def jobs(found: Iterable[Summary]) -> RenderableType:
    """Return a list of jobs."""
    numbers = ("DONE", "RUNNING", "FAILED", "NOT RUN")
    shown = Listing("JOB", "STATE", *numbers, "UPDATED (UTC)", "REASON", right=numbers, wraps="REASON")
    for job in found:
        shown.add_row(
            job.name,
            Text("paused", style="yellow") if job.paused else _state(job.state),
            f"{job.completed}/{job.tasks}",
            str(job.running),
            str(job.failed),
            str(job.skipped + job.cancelled),
            job.updated_at[:19].replace("T", " "),
            job.error or (NO_MANAGER if job.has_manager is False else ""),
        )
    return shown if shown.row_count else Text("no jobs")


def job(files: JobFiles, leftover: Mapping[str, RunRecord | None] | None = None) -> RenderableType:
    """Return a job's tasks as a tree: below each task what it has queued.

    :param leftover: of a job that has no manager: what is on record of the tasks that are running, as its files say.
    """
    paused = (" paused", "yellow") if files.job.paused else ""
    head = Text.assemble(
        (files.job.name, "bold"), " ", _state(files.job.state), paused, f" {flat(files.job.error or '')}"
    )
    if leftover is not None:
        head.append(NO_MANAGER, style="yellow")
    tree = Tree(head)
    parents: dict[str, tuple[Tree, int]] = {}
    for task in files.tasks.values():
        parent, depth = parents.get(task.queued_by or "", (tree, 0))
        branch = parent.add(_line(task, leftover, is_deep=depth >= _DEEPEST))
        parents[task.id] = (branch, depth + 1) if depth < _DEEPEST else (parent, depth)
    return tree


def definition(files: JobFiles) -> RenderableType:
    """Return all that a job would execute, uncut, for whoever is asked to trust it."""
    lines = [Text(f"{name}: {_whole(value)}") for name, value in trust.of_job(files.job).items()]
    for task in files.tasks.values():
        lines.append(Text(f"task {task.id}", style="bold"))
        lines += [Text(f"  {name}: {_whole(value)}") for name, value in trust.of_task(task).items()]
    return Group(*lines)


def _whole(value: Any) -> str:
    return flat(jsontext.dumps(value).decode())


def _line(task: Task, leftover: Mapping[str, RunRecord | None] | None, *, is_deep: bool) -> Text:
    parts: list[str | Text] = [_state(task.status), " ", Text(task.id, style="bold"), " ", what(task)]
    if is_deep:
        parts.append(Text(f"  queued by {task.queued_by}", style="dim"))
    took = took_s(task)
    if leftover is not None and task.id in leftover and ((record := leftover[task.id]) is None or record.state.is_end):
        # It does not get older. What became of it, the next manager writes down.
        took = None
        became = "is not on record" if record is None else f"ended as {record.state.value}"
        parts.append(Text(f"  its run {became}; the next manager goes on from there", style="yellow"))
    if took is not None:
        parts.append(Text(f"  {duration(took)}", style="dim"))
    if task.tries > 1:
        parts.append(Text(f"  try {task.tries}", style="yellow"))
    if task.dependencies and task.status is TaskStatus.PENDING:
        parts.append(Text(f"  after {', '.join(task.dependencies)}", style="dim"))
    if task.error:
        parts.append(Text(f"  {flat(task.error)}", style="red" if task.status is TaskStatus.FAILED else "yellow"))
    return Text.assemble(*parts)


def what(task: Task) -> str:
    """Return what a task executes, in one line."""
    if task.function is not None:
        return _cut(f"{task.function}({', '.join(f'{name}={value!r}' for name, value in task.arguments.items())})")
    line = " ".join([task.command or "", *task.args])
    if task.index is not None:
        line = line.replace("${item}", task.item if isinstance(task.item, str) else jsontext.dumps(task.item).decode())
    return _cut(line)


def _cut(line: str) -> str:
    line = flat(line)
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"


def took_s(task: Task) -> float | None:
    """Return for how long a task has run, in seconds; ``None`` when it has not begun."""
    if task.started_at is None or task.status is TaskStatus.PENDING:
        return None
    end = moment(task.completed_at) if task.completed_at else datetime.now(tz=timezone.utc)
    return max(0.0, (end - moment(task.started_at)).total_seconds())


def results(files: JobFiles) -> RenderableType:
    """Return what became of a job and its tasks."""
    shown = Listing("TASK", "STATUS", "TOOK", "TRIES", "RESULT", right=("TOOK", "TRIES"), wraps="RESULT")
    for task in files.tasks.values():
        result = task.error or ("" if task.result is None else jsontext.dumps(task.result).decode())
        took = took_s(task)
        shown.add_row(
            task.id,
            _state(task.status),
            "" if took is None else duration(took),
            str(task.tries),
            result[:_RESULT_SHOWN] + ("…" if len(result) > _RESULT_SHOWN else ""),
        )
    counts = [task.status for task in files.tasks.values()]
    line = f"{counts.count(TaskStatus.COMPLETED)} of {len(counts)} tasks completed"
    head = Text.assemble("job ", (files.job.name, "bold"), " ", _state(files.job.state), f": {files.job.error or line}")
    return Group(head, shown)
