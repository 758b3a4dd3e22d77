"""Which tasks of a job are ready to run, which wait, and which are skipped. All of it follows from the job's files."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import time
from collections import deque
from typing import Any

from air_executor.errors import JobError
from air_executor.jobs import templates
from air_executor.jobs.fields import moment
from air_executor.jobs.files import JobFiles
from air_executor.jobs.model import HOOKS, JobState, Task, TaskStatus, When
from air_executor.jobs.places import Places
from air_executor.jobs.restart import CANCELLED, NOT_RUN, remove
from air_executor.runs.record import now

#: At most this many tasks of a job are passed over for lack of room: to try one costs time.
_MAX_ASIDE = 50


class ReadyQueue:
    """Tasks that are ready to run: those of a higher priority first, then in the order in which they became ready."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, str]] = []
        self._numbers = itertools.count()
        #: Those for which the machine had no room when they were to start.
        self._aside: list[tuple[int, int, str]] = []

    def __len__(self) -> int:
        """Return how many there are, with those that were set aside."""
        return len(self._heap) + len(self._aside)

    @property
    def has_next(self) -> bool:
        """Whether there is a next task. After several that find no room, none of the others is tried."""
        return bool(self._heap) and len(self._aside) < _MAX_ASIDE

    def push(self, task: Task) -> None:
        """Add a task."""
        heapq.heappush(self._heap, (-task.priority, next(self._numbers), task.id))

    def first(self) -> str:
        """Return the id of the next task."""
        return self._heap[0][2]

    def pop(self) -> None:
        """Remove the next task."""
        heapq.heappop(self._heap)

    def set_aside(self) -> None:
        """Pass over the next task until :meth:`take_back`."""
        self._aside.append(heapq.heappop(self._heap))

    def take_back(self) -> bool:
        """Put what was set aside back in its place; tell whether there was anything."""
        aside, self._aside = self._aside, []
        for entry in aside:
            heapq.heappush(self._heap, entry)
        return bool(aside)

    def clear(self) -> None:
        """Remove all tasks."""
        self._heap.clear()
        self._aside.clear()


class ActiveJob:
    """A job that a manager works on: its files, and what follows from them.

    Methods that change tasks return the changed ones. The caller commits them.
    """

    def __init__(self, files: JobFiles) -> None:
        self.files = files
        self.name = files.name
        """The job's name."""
        self.ready = ReadyQueue()
        #: How many tasks that a task waits for have not ended, by its id.
        self._missing: dict[str, int] = {}
        #: Ids of the tasks that wait for a task, by its id.
        self._waiting: dict[str, list[str]] = {}
        #: When tasks are tried again, on the monotonic clock, with their ids: a heap.
        self.later: list[tuple[float, str]] = []
        self.places = Places(files.job.id, files.name)
        """The places of its runners."""
        self.blocked_until_s = 0.0
        """When to reload it, on the monotonic clock, after its files could not be read or written; 0: they could."""
        self.missing_since_s: float | None = None
        """Since when its files are gone, on the monotonic clock."""
        #: Tasks that have changed as the job was read, as after an edit of its files, and are not committed yet.
        self.unwritten: list[Task] = []
        self.enlist_all()

    @property
    def tasks(self) -> dict[str, Task]:
        """The job's tasks, by their ids."""
        return self.files.tasks

    def commit(self, *changed: Task) -> None:
        """Write changed tasks to the journal, with those that have changed as the job was read.

        :raises AirExecutorError: as :meth:`JobFiles.commit`.
        """
        tasks = {task.id: task for task in (*self.unwritten, *changed)} if self.unwritten else changed
        if tasks:
            self.files.commit(*(tasks.values() if isinstance(tasks, dict) else tasks))
        self.unwritten = []

    def enlist_all(self) -> None:
        """Find out anew which tasks are ready, wait or are skipped."""
        self.ready.clear()
        self.later.clear()
        self._missing.clear()
        self._waiting.clear()
        self.unwritten = self.enlist(*self.tasks.values())

    def enlist(self, *tasks: Task) -> list[Task]:
        """Find out whether tasks are ready or wait; return what has changed by that: what is skipped, or has ended."""
        changed: list[Task] = []
        for task in tasks:
            if task.status is TaskStatus.RUNNING and task.is_for_items:
                changed += self.begin_items(task)
            if task.status is not TaskStatus.PENDING:
                continue
            missing, is_lost = 0, False
            for other in task.dependencies:
                if not self.tasks[other].status.is_end:
                    missing += 1
                    self._waiting.setdefault(other, []).append(task.id)
                elif self.tasks[other].has_failed:
                    is_lost = task.when is When.SUCCESS
            self._missing[task.id] = missing
            if is_lost or not missing:
                changed += self._passed_on(self._decide(task))
        return changed

    def _passed_on(self, changed: list[Task]) -> list[Task]:
        ended = [task for task in changed if task.status.is_end]
        return [*changed, *self.follow_up(*ended)] if ended else changed

    def follow_up(self, *ended: Task) -> list[Task]:
        """Make ready what has waited for tasks that have ended, or skip it; return what has changed by that."""
        changed: list[Task] = []
        over = deque(ended)
        while over:
            task = over.popleft()
            for waiting in self._waiting.pop(task.id, ()):
                other = self.tasks[waiting]
                self._missing[waiting] -= 1
                is_due = not self._missing[waiting]
                if other.status is TaskStatus.PENDING:
                    # After one that was skipped without a failure, wait for the others: one of them may fail.
                    is_lost = other.when is When.SUCCESS and task.has_failed
                    news = self._decide(other) if is_due or is_lost else []
                else:
                    news = self._end_items(other) if is_due and other.status is TaskStatus.RUNNING else []
                changed += news
                over.extend(each for each in news if each.status.is_end)
        return changed

    def _decide(self, task: Task) -> list[Task]:
        """Make a task ready whose dependencies have ended, or skip it; return what has changed by that."""
        if self._is_skipped(task):
            return [task]
        if task.retry_at is not None:
            # At most the whole wait, even if the clock was set back since.
            wait_s = max(0.0, min(moment(task.retry_at).timestamp() - time.time(), task.wait_s()))
            heapq.heappush(self.later, (time.monotonic() + wait_s, task.id))
        else:
            self.ready.push(task)
        return []

    def begin_items(self, task: Task) -> list[Task]:
        """Make the tasks for the items of ``task``, unless they exist, and let it wait for them.

        :return: what has changed by that.
        """
        try:
            wanted = [_for_item(task, *each) for each in enumerate(templates.items(task, self.tasks))]
            strange = (each.id for each in wanted if each.id in self.tasks and self.tasks[each.id].queued_by != task.id)
            if taken := next(strange, None):
                raise JobError(f"foreach needs the id {taken}, which another task has")
            new = self.files.add([each for each in wanted if each.id not in self.tasks], f"the items of {task.id}")
        except JobError as error:
            task.status, task.error, task.completed_at = TaskStatus.FAILED, str(error), now()
            return self._passed_on([task])
        if task.status is not TaskStatus.RUNNING:
            task.status, task.started_at, task.tries = TaskStatus.RUNNING, now(), task.tries + 1
        still = [each.id for each in wanted if not self.tasks[each.id].status.is_end]
        self._missing[task.id] = len(still)
        for each in still:
            self._waiting.setdefault(each, []).append(task.id)
        changed = [*new, *self.enlist(*new), task]
        return changed if still else [*changed, *self._passed_on(self._end_items(task))]

    def _end_items(self, task: Task) -> list[Task]:
        """End a task whose items have all ended, and return it."""
        items = templates.tasks_for_items(task, self.tasks)
        failed = [each for each in items if each.status not in (TaskStatus.COMPLETED, TaskStatus.CANCELLED)]
        task.status, task.completed_at = TaskStatus.COMPLETED, now()
        if failed:
            named = ", ".join(each.id for each in failed[:5])
            task.status, task.error = TaskStatus.FAILED, f"{len(failed)} of {len(items)} items failed: {named}"
        elif any(each.status is TaskStatus.CANCELLED for each in items):
            task.status, task.error = TaskStatus.CANCELLED, "the job was cancelled"
        return [task]

    def _is_skipped(self, task: Task) -> bool:
        """Skip a task if its dependencies did not end as its ``when`` asks; tell whether it is skipped."""
        others = [self.tasks[other] for other in task.dependencies]
        if task.when is When.SUCCESS:
            not_completed = [each for each in others if each.status.is_end and each.status is not TaskStatus.COMPLETED]
            lost = next((each for each in not_completed if each.has_failed), next(iter(not_completed), None))
            if lost is None:
                return False
            task.cause = lost.id if lost.status is TaskStatus.FAILED else lost.cause
            task.error = f"{NOT_RUN}it depends on {lost.id}, which {_became(lost)}"
        elif task.when is When.FAILED and not any(each.has_failed for each in others):
            task.error = f"{NOT_RUN}it is for a failure, and none of {', '.join(task.dependencies[:5])} failed"
        else:
            return False
        task.status, task.completed_at = TaskStatus.SKIPPED, now()
        return True

    def cancel(self) -> list[Task]:
        """Cancel all pending tasks; return what has changed by that."""
        self.ready.clear()
        self.later.clear()
        cancelled = [task for task in self.tasks.values() if task.status is TaskStatus.PENDING]
        for task in cancelled:
            task.status, task.completed_at = TaskStatus.CANCELLED, now()
            task.error = CANCELLED
        return [*cancelled, *self.follow_up(*cancelled)]

    # The end

    def outcome(self) -> tuple[JobState, str | None]:
        """Return the final state of the job, and why it has not completed. It must be :attr:`is_over`.

        :raises JobError: tasks are left that nothing will ever start.
        """
        stuck = [task.id for task in self.tasks.values() if not task.status.is_end]
        if stuck:
            raise JobError(f"tasks that can never start: {', '.join(stuck[:5])}")
        state, error = self.outcome_before_hooks()
        hooks = [f"its {task.hook} failed: {task.error}" for task in self._hooks() if task.status is TaskStatus.FAILED]
        return state, "; ".join(filter(None, (error, *hooks))) or None

    def outcome_before_hooks(self) -> tuple[JobState, str | None]:
        """Return the final state of the job without its hooks, and why it has not completed."""
        own = [task for task in self.tasks.values() if task.hook is None]
        failed = [task.id for task in own if task.status is TaskStatus.FAILED]
        if self.files.job.cancelled:
            return JobState.CANCELLED, "it was cancelled"
        if failed:
            return JobState.FAILED, f"{len(failed)} of {len(own)} tasks failed: {', '.join(failed[:5])}"
        return JobState.COMPLETED, None

    def _hooks(self) -> list[Task]:
        return [task for task in self.tasks.values() if task.hook is not None]

    def drop_hooks(self) -> None:
        """Remove the tasks of hooks, with all that these have queued. They will run again at the next end of the job.

        :raises JobError: a task that stays depends on one of them.
        """
        remove(self.files, self._hooks())

    def call_hook(self, state: JobState) -> list[Task]:
        """Add the task of the hook for ``state``, unless there is none or it has run; return what has changed.

        :raises JobError: the hook can't be used.
        """
        name = {JobState.COMPLETED: HOOKS[0], JobState.FAILED: HOOKS[1]}.get(state)
        if name is None or any(task.hook == name for task in self._hooks()):
            return []
        hook = self.files.job.hook(name, where=f"job {self.name}")
        if hook is None:
            return []
        while hook.id in self.tasks:
            hook.id += "_"
        new = self.files.add([hook], f"job {self.name}")
        return [*new, *self.enlist(*new)]

    # Turns

    def wake_later(self, at_s: float) -> None:
        """Make ready what is to be tried again at ``at_s``, on the monotonic clock, or before."""
        while self.later and self.later[0][0] <= at_s:
            _, task_id = heapq.heappop(self.later)
            if self.tasks[task_id].status is TaskStatus.PENDING:
                self.ready.push(self.tasks[task_id])

    def due_s(self) -> float | None:
        """Return when it needs attention though nothing happens, on the monotonic clock; ``None``: never."""
        if self.blocked_until_s:
            return self.blocked_until_s
        due_s = [self.later[0][0]] if self.later else []
        if (write_s := self.files.due_s()) is not None:
            due_s.append(write_s)
        return min(due_s, default=None)

    def free_place(self) -> int | None:
        """Return the lowest place that is free for a runner, if the job may have one more."""
        return self.places.free(self.files.job.max_runners)

    @property
    def is_willing(self) -> bool:
        """Whether it has a task that could start now."""
        return (
            self.ready.has_next
            and not self.blocked_until_s
            and not self.files.job.paused
            and self.free_place() is not None
        )

    @property
    def is_over(self) -> bool:
        """Whether no task runs or will run."""
        return not (self.places or self.ready or self.later)


def _for_item(task: Task, index: int, item: Any) -> Task:
    return dataclasses.replace(
        task,
        id=templates.item_id(task, index),
        foreach=None,
        index=index,
        item=item,
        queued_by=task.id,
        key=None,
        status=TaskStatus.PENDING,
        created_at=None,
        started_at=None,
        tries=0,
    )


def _became(task: Task) -> str:
    if task.status is TaskStatus.CANCELLED:
        return "was cancelled"
    if task.status is TaskStatus.SKIPPED:
        return "was skipped" + (f" as {task.cause} failed" if task.cause else "")
    return str(task.status.value)
