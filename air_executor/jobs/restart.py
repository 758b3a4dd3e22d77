"""Starting the tasks of a job again: all of them, or those that failed and what depends on them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import fields

from air_executor.errors import JobError
from air_executor.jobs.files import JobFiles
from air_executor.jobs.model import OUTSIDE, JobState, Task, TaskStatus

#: The fields of a task that say how far it has come.
PROGRESS = tuple(
    item.name
    for item in fields(Task)
    if item.metadata.get("is_own") and item.name not in ("job_name", "created_at", "queued_by", "index", "item")
)
_NEW = vars(Task(id=""))

#: The error of a task that did not run because of another one begins so.
NOT_RUN = "not run: "

#: The error of a task that had not begun when its job was cancelled.
CANCELLED = f"{NOT_RUN}the job was cancelled"


def reset(files: JobFiles) -> None:
    """Make all tasks pending. Tasks that others have queued are removed: they will be queued again.

    :raises JobError: as :func:`remove`.
    """
    given = (None, OUTSIDE)
    remove(files, (task for task in files.tasks.values() if task.queued_by not in given or task.hook is not None))
    _make_pending(files, files.tasks.values())


def retry(files: JobFiles, ids: Iterable[str] = ()) -> None:
    """Make pending what failed, what did not run because of a failure, and what has followed from either.

    What these have queued is removed: they will queue it again.

    :param ids: of the failed tasks, only these; none for all.
    :raises JobError: as :func:`remove`.
    """
    again = _to_retry(files, set(ids))
    # Their items may have changed.
    groups = {each.id for each in again.values() if each.is_for_items and again.keys() & set(each.dependencies)}
    remove(
        files,
        (
            task
            for task in files.tasks.values()
            if task.hook is not None or task.queued_by in (again if task.index is None else groups)
        ),
    )
    _make_pending(files, (task for task in again.values() if task.id in files.tasks))


def why_not(files: JobFiles, ids: Iterable[str] = ()) -> str | None:
    """Return why there is nothing that :func:`retry` would begin again; ``None``: there is.

    :param ids: of tasks that exist.
    """
    for task in [files.tasks[each] for each in ids]:
        if task.status is TaskStatus.COMPLETED:
            return f"task {task.id} has completed"
        if task.status is TaskStatus.SKIPPED:
            return f"task {task.id} was skipped" + (f", as {task.cause} failed: name that one" if task.cause else "")
    done = (TaskStatus.COMPLETED, TaskStatus.SKIPPED)
    if files.job.state is JobState.COMPLETED and all(task.status in done for task in files.tasks.values()):
        return f"nothing has failed; `air-executor reset {files.name}` begins the job anew"
    return None


def _to_retry(files: JobFiles, wanted: set[str]) -> dict[str, Task]:
    """Return what failed and is wanted, what was cancelled, and of what depends on these all that has ended.

    What was skipped because of a failure is among the last: its dependencies lead to the task that failed.
    """
    again: dict[str, Task] = {}
    for task in files.tasks.values():
        group = task.queued_by if task.index is not None else None
        is_wanted = not wanted or task.id in wanted or group in wanted
        if (task.status is TaskStatus.FAILED and is_wanted) or _was_cancelled(task):
            again[task.id] = task
            if group in files.tasks:
                again[group] = files.tasks[group]
    dependents: dict[str, list[Task]] = {}
    for task in files.tasks.values():
        for other in task.dependencies:
            dependents.setdefault(other, []).append(task)
    left = deque(again)
    while left:
        for task in dependents.get(left.popleft(), ()):
            if task.id not in again and task.status.is_end:
                again[task.id] = task
                left.append(task.id)
    return again


def _was_cancelled(task: Task) -> bool:
    """Tell whether a task was cancelled with its job, which goes on whole. A former version marks it as failed."""
    is_marked = task.status is TaskStatus.FAILED and task.error == CANCELLED
    return task.status is TaskStatus.CANCELLED or is_marked


def remove(files: JobFiles, tasks: Iterable[Task]) -> None:
    """Remove tasks from a job, with all that they have queued.

    :raises JobError: a task that stays depends on one of them; then none is removed.
    """
    queued: dict[str | None, list[Task]] = {}
    for task in files.tasks.values():
        queued.setdefault(task.queued_by, []).append(task)
    gone: dict[str, Task] = {}
    left = deque(tasks)
    while left:
        task = left.popleft()
        if task.id not in gone:
            gone[task.id] = task
            left += queued.get(task.id, ())
    for task in files.tasks.values() if gone else ():
        if task.id not in gone and (other := next((each for each in task.dependencies if each in gone), None)):
            raise JobError(
                f"task {task.id} depends on {other}, which would be removed, because what has queued it begins again; "
                "`air-executor run FILE --replace` makes the job anew"
            )
    for task in gone.values():
        del files.tasks[task.id]
        files.forget_text(task)
        if task.key is not None and files.keys.get(task.key) == task.id:
            del files.keys[task.key]


def _make_pending(files: JobFiles, tasks: Iterable[Task]) -> None:
    for task in tasks:
        for name in PROGRESS:
            setattr(task, name, _NEW[name])
        files.forget_text(task)
