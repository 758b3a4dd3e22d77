"""What must hold between the tasks of a job: ids and keys are unique, dependencies exist, nothing waits in a circle."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from air_executor.errors import JobError
from air_executor.jobs.model.task import Task


def new_tasks(
    tasks: Iterable[Task], ids: Container[str], keys: Mapping[str, str], where: str
) -> tuple[dict[str, Task], dict[str, str]]:
    """Return those of ``tasks`` that are new to a job by their ids, and the ids of those that have a key by their keys.

    A task whose key the job knows already is left out. What depends on it will depend on the task that has the key.

    :param ids: of the tasks that the job has already.
    :param keys: ids of the tasks that the job has already, by their keys.
    :raises JobError: an id is taken, or a dependency is unknown or leads back.
    """
    new: dict[str, Task] = {}
    new_keys: dict[str, str] = {}
    doubles: dict[str, str] = {}
    for task in tasks:
        known = None if task.key is None else keys.get(task.key) or new_keys.get(task.key)
        if known is not None:
            if task.id not in ids:
                doubles[task.id] = known
            continue
        if task.id in ids or task.id in new:
            raise JobError(f"{where}: there are two tasks {task.id!r}")
        new[task.id] = task
        if task.key is not None:
            new_keys[task.key] = task.id
    for task in new.values() if doubles else ():
        task.dependencies = [each if each in new else doubles.get(each, each) for each in task.dependencies]
    check_dependencies(ids, new.values(), where)
    return new, new_keys


def check_dependencies(ids: Container[str], new: Iterable[Task], where: str) -> None:
    """Check that the dependencies of ``new`` tasks exist, and that no tasks wait for each other in a circle.

    :param ids: of the tasks that the job has already.
    :raises JobError: the message shows the path.
    """
    coming = {task.id: task for task in new}
    for task in coming.values():
        for other in task.dependencies:
            if other not in coming and other not in ids:
                raise JobError(f"{where}: task {task.id!r} depends on {other!r}, which is not a task of the job")
    done: set[str] = set()
    for start in coming:
        # The path from ``start`` down; each task with those of its dependencies that were not followed yet.
        path = {start: iter(coming[start].dependencies)} if start not in done else {}
        while path:
            current = next(reversed(path))
            other = next(path[current], "")
            if not other:
                del path[current]
                done.add(current)
            elif other in path:
                names = list(path)
                circle = " → ".join([*names[names.index(other) :], other])
                raise JobError(f"{where}: tasks wait for each other in a circle: {circle}")
            elif other in coming and other not in done:
                path[other] = iter(coming[other].dependencies)
