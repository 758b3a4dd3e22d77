"""Which of a job's tasks may run now, which wait for what, and which are skipped: what follows from its files."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import time
import uuid
from collections import deque
from collections.abc import Iterable
from typing import Any

from air_executor.errors import JobError
from air_executor.jobs import templates
from air_executor.jobs.fields import moment
from air_executor.jobs.model import HOOKS, OUTSIDE, JobState, Task, TaskStatus, When
from air_executor.jobs.store import JobFiles
from air_executor.runs.record import now

#: What a task that was not run, for the sake of another one, has as its error begins so.
NOT_RUN = "not run: "


class ReadyQueue:
    """Tasks whose turn it is: those of a higher priority first, then in the order in which they came."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, str]] = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, task: Task) -> None:
        """Add a task."""
        heapq.heappush(self._heap, (-task.priority, next(self._numbers), task.id))

    def first(self) -> str:
        """Return the id of the task that is next."""
        return self._heap[0][2]

    def pop(self) -> None:
        """Remove the task that is next."""
        heapq.heappop(self._heap)

    def clear(self) -> None:
        """Remove all tasks."""
        self._heap.clear()


class ActiveJob:
    """A job that is being worked on: its files, and what follows from them.

    Methods that change tasks return those that they have changed; the caller writes them down.
    """

    def __init__(self, files: JobFiles) -> None:
        self.files = files
        self.ready = ReadyQueue()
        #: How many of the tasks that a task waits for have not ended yet.
        self._missing: dict[str, int] = {}
        #: Who waits for a task.
        self._waiting: dict[str, list[str]] = {}
        #: Tasks that are tried again later: when, on the monotonic clock, and which.
        self.later: list[tuple[float, str]] = []
        #: Tasks that run: the slots of their runners.
        self.running: dict[str, int] = {}
        #: How many places were taken at once, at most, as far as this manager knows.
        self.places = 0
        #: Its files could not be written, or read: when it is begun anew from them, on the monotonic clock.
        self.blocked_until_s = 0.0
        #: Since when its files are not there, on the monotonic clock.
        self.missed_s: float | None = None
        #: What has changed as the job was read, as after an edit of its files; not written yet.
        self.unwritten = self.enlist(*files.tasks.values())

    @property
    def name(self) -> str:
        """The job's name."""
        return self.files.path.name

    @property
    def tasks(self) -> dict[str, Task]:
        """The job's tasks, by their ids."""
        return self.files.tasks

    def enlist(self, *tasks: Task) -> list[Task]:
        """Find out when it is the turn of tasks; return what has changed by that: what is skipped, or has ended."""
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
        """Give those that waited for tasks that have ended their turn; return what has changed by that."""
        changed: list[Task] = []
        over = deque(ended)
        while over:
            task = over.popleft()
            for waiting in self._waiting.pop(task.id, ()):
                other = self.tasks[waiting]
                self._missing[waiting] -= 1
                is_due = not self._missing[waiting]
                if other.status is TaskStatus.PENDING:
                    # Of one that was skipped with no failure it is not known yet whether there is a failure beside.
                    is_lost = other.when is When.SUCCESS and task.has_failed
                    news = self._decide(other) if is_due or is_lost else []
                else:
                    news = self._end_items(other) if is_due and other.status is TaskStatus.RUNNING else []
                changed += news
                over.extend(each for each in news if each.status.is_end)
        return changed

    def _decide(self, task: Task) -> list[Task]:
        """Give a task whose dependencies have ended its turn, or skip it; return what has changed by that."""
        if self._is_skipped(task):
            return [task]
        if task.retry_at is not None:
            # Not longer than it was to wait in the first place, if the clock was set back since.
            wait_s = max(0.0, min(moment(task.retry_at).timestamp() - time.time(), task.wait_s()))
            heapq.heappush(self.later, (time.monotonic() + wait_s, task.id))
        else:
            self.ready.push(task)
        return []

    def begin_items(self, task: Task) -> list[Task]:
        """Make the tasks for the items of ``task``, or find those that are there already, and let it wait for them.

        Return what has changed by that.
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
        """End a task whose items have all ended."""
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
        """Skip a task whose dependencies did not end as its ``when`` asks."""
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
        """Cancel all tasks that have not begun, and return them."""
        self.ready.clear()
        self.later.clear()
        cancelled = [task for task in self.tasks.values() if task.status is TaskStatus.PENDING]
        for task in cancelled:
            task.status, task.completed_at = TaskStatus.CANCELLED, now()
            task.error = f"{NOT_RUN}the job was cancelled"
        return [*cancelled, *self.follow_up(*cancelled)]

    # Beginning again

    def reset(self) -> None:
        """Begin all tasks again. What they have queued, they queue again."""
        given = (None, OUTSIDE)
        self._remove(task for task in self.tasks.values() if task.queued_by not in given or task.hook is not None)
        self._begin_again(self.tasks.values())

    def retry(self, ids: Iterable[str] = ()) -> None:
        """Begin again what failed, of that only ``ids`` if there are any, what was not run, and what has followed."""
        self._remove(task for task in self.tasks.values() if task.hook is not None)
        again = self._to_retry(set(ids))
        # Their items may be others now.
        groups = {each.id for each in again.values() if each.is_for_items and again.keys() & set(each.dependencies)}
        self._remove(task for task in self.tasks.values() if task.queued_by in groups and task.index is not None)
        self._begin_again(task for task in again.values() if task.id in self.tasks)

    def _to_retry(self, wanted: set[str]) -> dict[str, Task]:
        again: dict[str, Task] = {}
        for task in self.tasks.values():
            of = task.queued_by if task.index is not None else None
            is_wanted = not wanted or task.id in wanted or of in wanted
            was_not_run = task.status in (TaskStatus.SKIPPED, TaskStatus.CANCELLED) or (
                (task.error or "").startswith(NOT_RUN)  # as failed, by a former version
            )
            if was_not_run or (task.status is TaskStatus.FAILED and is_wanted):
                again[task.id] = task
                if of in self.tasks:
                    again[of] = self.tasks[of]
        followers: dict[str, list[Task]] = {}
        for task in self.tasks.values():
            for other in task.dependencies:
                followers.setdefault(other, []).append(task)
        below = deque(again)
        while below:
            for task in followers.get(below.popleft(), ()):
                if task.id not in again and task.status.is_end:
                    again[task.id] = task
                    below.append(task.id)
        return again

    def _remove(self, tasks: Iterable[Task]) -> None:
        for task in list(tasks):
            del self.tasks[task.id]
            self.files.forget_text(task)
            if task.key is not None and self.files.keys.get(task.key) == task.id:
                del self.files.keys[task.key]

    def _begin_again(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            task.status, task.tries, task.error, task.exit_code, task.result = TaskStatus.PENDING, 0, None, None, None
            task.started_at = task.completed_at = task.retry_at = task.run_id = task.cause = None
            self.files.forget_text(task)

    # The end

    def outcome(self) -> tuple[JobState, str | None]:
        """Return what has become of the job, over which nothing is left to do, and why it has not completed.

        :raises JobError: there is something left.
        """
        stuck = [task.id for task in self.tasks.values() if not task.status.is_end]
        if stuck:
            raise JobError(f"tasks wait for what never comes: {', '.join(stuck[:5])}")
        state, error = self.outcome_before_hooks()
        hooks = [f"its {task.hook} failed: {task.error}" for task in self._hooks() if task.status is TaskStatus.FAILED]
        return state, "; ".join(filter(None, (error, *hooks))) or None

    def outcome_before_hooks(self) -> tuple[JobState, str | None]:
        """Return what has become of the job's own tasks, and why they have not all completed."""
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
        """Remove the tasks of hooks, for the job goes on."""
        self._remove(self._hooks())

    def call_hook(self, state: JobState) -> list[Task]:
        """Add the task that is to run when the job has ended in ``state``, unless it has; return what has changed.

        :raises JobError: it can't be used.
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
        """Give those whose wait is over at ``at_s``, on the monotonic clock, their turn."""
        while self.later and self.later[0][0] <= at_s:
            _, task_id = heapq.heappop(self.later)
            if self.tasks[task_id].status is TaskStatus.PENDING:
                self.ready.push(self.tasks[task_id])

    def free_slot(self) -> int | None:
        """Return the number of a runner that the job may have and has not."""
        taken = set(self.running.values())
        return next((slot for slot in range(self.files.job.max_runners) if slot not in taken), None)

    def workload_id(self, slot: int) -> str:
        """Return the id whose lock the runner in ``slot`` holds: as many slots as the job may have runners."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"air-executor:{self.files.job.id}/{slot}"))

    @property
    def is_willing(self) -> bool:
        """Whether it has a task whose turn it is, and may start one."""
        return bool(self.ready) and not self.blocked_until_s and not self.files.job.paused

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.running or self.ready or self.later)


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


def in_order(jobs: Iterable[ActiveJob]) -> list[list[ActiveJob]]:
    """Return jobs that are willing, those of the highest priority first, each with its equals."""
    willing = sorted((job for job in jobs if job.is_willing), key=lambda job: -job.files.job.priority)
    return [list(equals) for _, equals in itertools.groupby(willing, key=lambda job: job.files.job.priority)]


def _became(task: Task) -> str:
    if task.status is TaskStatus.CANCELLED:
        return "was cancelled"
    if task.status is TaskStatus.SKIPPED:
        return "was skipped" + (f" as {task.cause} failed" if task.cause else "")
    return str(task.status.value)
