"""Starting an ended job again, or continuing it, with other tasks than it had."""

from __future__ import annotations

import enum
from collections.abc import Container, Iterable, Mapping
from dataclasses import fields, replace

from air_executor.errors import JobError
from air_executor.jobs.logs import separate_logs
from air_executor.jobs.model import OUTSIDE, Job, JobState, Task, TaskStatus, check_dependencies
from air_executor.jobs.restart import PROGRESS
from air_executor.jobs.store import JobFiles
from air_executor.runs.record import now

#: The fields that define a job and a task. The other fields say what became of them.
_OF_JOB, _OF_TASK = (
    tuple(item.name for item in fields(model) if "is_own" in item.metadata and not item.metadata["is_own"])
    for model in (Job, Task)
)


class Keep(enum.Enum):
    """What is kept of a job when it starts again."""

    NOTHING = "nothing"
    """All tasks run again."""
    UNCHANGED = "unchanged"
    """A completed task is kept, unless its definition has changed or it depends on a task that runs again."""
    COMPLETED = "completed"
    """A completed task is kept, even if its definition has changed."""


def is_same(files: JobFiles, job: Job, tasks: Iterable[Task]) -> bool:
    """Tell whether a job has the definition of ``job`` and ``tasks``, whatever became of it."""
    ours, wanted = [task for task in files.tasks.values() if task.queued_by is None and not task.hook], list(tasks)
    return (
        all(getattr(files.job, name) == getattr(job, name) for name in _OF_JOB)
        and [task.id for task in ours] == [task.id for task in wanted]
        and all(map(_is_same, ours, wanted))
    )


def renew(files: JobFiles, job: Job, tasks: Iterable[Task], keep: Keep, changed: Container[str] = frozenset()) -> None:
    """Give a job that has ended the definition of ``job`` and ``tasks``, and write it.

    :param changed: ids of tasks whose private variables have changed.
    :raises JobError: the definition contradicts what is kept.
    :raises StateDirError: it can't be written.
    """
    wanted, where = list(tasks), f"job {job.name}"
    if len({task.id for task in wanted}) < len(wanted):
        raise JobError(f"{where}: two tasks have the same id")
    renewed = _kept(files.tasks, wanted, keep, changed)
    check_dependencies((), renewed, where)
    files.tasks = {task.id: task for task in renewed}
    files.keys = {task.key: task.id for task in renewed if task.key is not None}
    for task in renewed:
        files.forget_text(task)
    for name in ("made_by", *_OF_JOB):
        setattr(files.job, name, getattr(job, name))
    files.job.cancelled, files.job.definition = False, None
    if keep is Keep.NOTHING:
        files.job.generation += 1
        separate_logs(files)
    files.set_state(JobState.WAITING)


def _is_same(one: Task, other: Task) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in _OF_TASK)


def _kept(former: Mapping[str, Task], wanted: list[Task], keep: Keep, changed: Container[str]) -> list[Task]:
    """Return the tasks of the renewed job: completed ones that are kept, and others as new ones."""
    if keep is Keep.NOTHING:
        return [_fresh(task) for task in wanted]
    known = {task.id for task in wanted}
    # These include tasks for items: the task with ``foreach`` has queued them.
    queued = [task for task in former.values() if task.queued_by is not None and task.id not in known]
    again = {task.id for task in wanted if not _may_stay(former.get(task.id), task, keep, changed)}
    followers: dict[str, list[str]] = {}
    for task in (*wanted, *queued):
        for other in (*task.dependencies, *([task.queued_by] if task.queued_by else [])):
            followers.setdefault(other, []).append(task.id)
    # What depends on a completed task that runs again, or was queued by it, runs again, too.
    redone = {task_id for task_id in again if _is_completed(former.get(task_id))}
    redone |= {task.id for task in wanted if task.is_for_items and task.id in again and _has_other_items(task, former)}
    left = list(redone)
    while left:
        for follower in followers.get(left.pop(), ()):
            if follower not in redone:
                redone.add(follower)
                left.append(follower)
    again |= redone
    by = {task.id: task.queued_by for task in queued}
    staying = [task for task in queued if _stays(task.id, by, redone, known)]
    return [
        *(_fresh(task) if task.id in again else former[task.id] for task in wanted),
        *(task if _is_completed(task) and task.id not in again else _fresh(task) for task in staying),
    ]


def _has_other_items(task: Task, former: Mapping[str, Task]) -> bool:
    """Tell whether the items of a task that runs again may have changed."""
    there = former.get(task.id)
    of_others = any(not _is_completed(former.get(other)) for other in task.dependencies)
    return there is None or not _is_same(there, task) or of_others


def _stays(task_id: str, queued_by: Mapping[str, str | None], redone: set[str], known: set[str]) -> bool:
    """Tell whether a queued task is kept: the task that queued it is, and does not run again."""
    while (by := queued_by.get(task_id)) is not None:
        if by == OUTSIDE:
            return True
        if by in redone:
            return False
        task_id = by
    return task_id in known


def _is_completed(task: Task | None) -> bool:
    return task is not None and task.status is TaskStatus.COMPLETED


def _may_stay(former: Task | None, wanted: Task, keep: Keep, changed: Container[str]) -> bool:
    if former is None or not _is_completed(former):
        return False
    return keep is Keep.COMPLETED or (_is_same(former, wanted) and wanted.id not in changed)


def _fresh(task: Task) -> Task:
    """Return a task with its definition alone, as a new one."""
    blank = Task(id=task.id)
    return replace(task, **{name: getattr(blank, name) for name in PROGRESS}, created_at=task.created_at or now())
