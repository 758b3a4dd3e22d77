"""The progress of a job, as lines for a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from air_executor.jobs.api import Results
from air_executor.jobs.model import TaskStatus
from air_executor.jobs.store import JobStore

#: At most this share of the time goes into reading the job.
_SHARE = 0.05

#: How many failed tasks are named with their errors.
_NAMED = 20


class Progress:
    """What has changed in a job since the last look."""

    def __init__(self, store: JobStore, name: str) -> None:
        self._store, self._name = store, name
        self._known: dict[str, TaskStatus] = {}
        self._line = ""
        self._looked_s = self._took_s = 0.0
        self.is_over = False

    @property
    def folder(self) -> Path:
        """The job's folder."""
        return self._store.folder(self._name)

    def news(self) -> Iterator[str]:
        """Yield a line for each task that failed, and one with the counts, if they are others than last time.

        :raises JobError: there is no such job.
        """
        self._looked_s = time.monotonic()
        files = self._store.open(self._name)
        for task in files.tasks.values():
            if task.status is TaskStatus.FAILED and self._known.get(task.id) is not TaskStatus.FAILED:
                yield f"task {task.id} failed: {task.error}"
        self._known = {task.id: task.status for task in files.tasks.values()}
        statuses = list(self._known.values())
        counts = [(status, statuses.count(status)) for status in TaskStatus if status in statuses]
        is_paused = files.job.paused and not files.job.state.is_end
        line = f"job {self._name} is {'paused' if is_paused else files.job.state.value}"
        line += ": " + ", ".join(f"{count} {status.value}" for status, count in counts) if counts else ""
        if line != self._line:
            self._line = line
            yield line
        self.is_over = files.job.state.is_end and files.is_over()
        self._took_s = time.monotonic() - self._looked_s

    def news_if_due(self, every_s: float) -> Iterator[str]:
        """Yield the news if the last look was ``every_s`` seconds ago, or if the job has ended."""
        if self._pause_s(every_s) <= 0 or self._store.files(self._name).is_ended():
            yield from self.news()

    def lines(self, every_s: float) -> Iterator[str]:
        """Yield the news until the job has ended, with a look every ``every_s`` seconds."""
        while True:
            yield from self.news()
            if self.is_over:
                return
            time.sleep(max(0.0, self._pause_s(every_s)))

    def _pause_s(self, every_s: float) -> float:
        """Return in how many seconds to look again. A look takes longer for longer jobs."""
        return self._looked_s + max(every_s, self._took_s / _SHARE) - time.monotonic()


def describe_failures(found: Results) -> str:
    """Return why a job has failed, with the errors of its tasks."""
    named = "".join(f"\n- {task.id}: {task.error}" for task in found.failed[:_NAMED])
    more = f"\n- and {len(found.failed) - _NAMED} more" if len(found.failed) > _NAMED else ""
    return f"job {found.job.name} {found.job.state.value}: {found.job.error}{named}{more}"
