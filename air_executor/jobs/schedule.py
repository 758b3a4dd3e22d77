"""Which of a job's tasks may run now, which wait for what, and which are skipped: what follows from its files."""

from __future__ import annotations

import heapq
import itertools
import time
import uuid
from collections import deque
from collections.abc import Iterable
from datetime import datetime

from air_executor.jobs.model import Task, TaskStatus, When
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
        #: Its files could not be written, or read: when it is begun anew from them, on the monotonic clock.
        self.blocked_until_s = 0.0
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
        """Find out when it is the turn of tasks that are pending; return those that can't run any more."""
        skipped: list[Task] = []
        for task in tasks:
            if task.status is not TaskStatus.PENDING:
                continue
            missing, is_lost = 0, False
            for other in task.dependencies:
                status = self.tasks[other].status
                if not status.is_end:
                    missing += 1
                    self._waiting.setdefault(other, []).append(task.id)
                elif status is not TaskStatus.COMPLETED:
                    is_lost = task.when is When.SUCCESS
            self._missing[task.id] = missing
            if (is_lost or not missing) and self._decide(task):
                skipped += [task, *self.follow_up(task)]
        return skipped

    def follow_up(self, *ended: Task) -> list[Task]:
        """Give those that waited for tasks that have ended their turn; return those that can't run any more."""
        skipped: list[Task] = []
        over = deque(ended)
        while over:
            task = over.popleft()
            for waiting in self._waiting.pop(task.id, ()):
                other = self.tasks[waiting]
                self._missing[waiting] -= 1
                is_lost = other.when is When.SUCCESS and task.status is not TaskStatus.COMPLETED
                if (
                    other.status is TaskStatus.PENDING
                    and (is_lost or not self._missing[waiting])
                    and self._decide(other)
                ):
                    skipped.append(other)
                    over.append(other)
        return skipped

    def _decide(self, task: Task) -> bool:
        """Give a task whose dependencies have ended its turn, or skip it; tell whether it is skipped."""
        if self._is_skipped(task):
            return True
        if task.retry_at is not None:
            # Not longer than it was to wait in the first place, if the clock was set back since.
            wait_s = max(0.0, min(_seconds(task.retry_at) - time.time(), task.wait_s()))
            heapq.heappush(self.later, (time.monotonic() + wait_s, task.id))
        else:
            self.ready.push(task)
        return False

    def _is_skipped(self, task: Task) -> bool:
        """Skip a task whose dependencies did not end as its ``when`` asks."""
        others = [self.tasks[other] for other in task.dependencies]
        if task.when is When.SUCCESS:
            ended = (each for each in others if each.status.is_end)
            lost = next((each for each in ended if each.status is not TaskStatus.COMPLETED), None)
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
        return cancelled

    def to_retry(self, ids: Iterable[str]) -> list[Task]:
        """Return the tasks that are begun again when somebody asks for it.

        That is what failed, of that only ``ids`` if there are any, what was not run, and what has followed from it.
        """
        wanted = set(ids)
        again = {
            task.id: task
            for task in self.tasks.values()
            if (task.status is TaskStatus.FAILED and (not wanted or task.id in wanted))
            or task.status in (TaskStatus.SKIPPED, TaskStatus.CANCELLED)
            or (task.error or "").startswith(NOT_RUN)  # by a former version, as failed
        }
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
        return list(again.values())

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


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()
