"""Which jobs a manager has to look at: those that have changed. Jobs that have ended cost next to nothing.

The folder of the jobs and the folders of active jobs are watched. Jobs that have ended may be many, and are not: a
request to one is announced in the folder of the jobs (:meth:`JobStore.announce`), and an edit of its files is found by
looking at a few jobs at a time.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable

from air_executor.jobs.store import CHANGED, JobStore
from air_executor.machine.watch import Watch

#: The least time between two looks at the files, in seconds.
_LOOK_S = 0.05

#: At most this share of the time goes into looking at settled jobs, but at least this many are looked at each time.
_SHARE = 0.005
_AT_LEAST = 50

#: When the folder of the jobs can't be read, how long to wait before the next try, in seconds.
_RETRY_S = 1.0

#: What tells the files of a job at one moment from those at another.
Glance = tuple[object, ...]


class Lookout:
    """Says which jobs below one state directory to look at, and when."""

    def __init__(self, store: JobStore, *, poll_s: float, only: frozenset[str] | None) -> None:
        """Begin with all of them.

        :param poll_s: how often to look though nothing tells of a change, in seconds.
        :param only: names of the jobs that matter; ``None`` for all.
        """
        self._store, self._poll_s, self._only = store, poll_s, only
        self._watch = Watch()
        #: Jobs that have changed, as the file system tells.
        self._told: set[str] = set()
        #: Whether all may have changed.
        self._is_all_told = True
        #: When to look at a job again in any case, on the monotonic clock.
        self._again: dict[str, float] = {}
        #: Jobs with which nothing is to be done, with their files at that time; and in which order to look at them.
        self._settled: dict[str, Glance] = {}
        self._turns: deque[str] = deque()
        self._has_turn: set[str] = set()
        self._looked_s = self._listed_s = float("-inf")
        #: When to list the jobs again after that was not possible, on the monotonic clock.
        self._list_again_s = float("inf")

    def close(self) -> None:
        """Watch nothing any more."""
        self._watch.close()

    def fileno(self) -> int | None:
        """Return a descriptor that becomes readable when something has changed, if there is one."""
        return self._watch.fileno()

    def watch(self, name: str) -> None:
        """Watch a job's folder and its inbox."""
        self._watch.add(self._store.root / name)
        self._watch.add(self._store.root / name / "inbox")

    def unwatch(self, name: str) -> None:
        """Watch them no longer."""
        self._watch.remove(self._store.root / name)
        self._watch.remove(self._store.root / name / "inbox")

    def settle(self, name: str, glance: Glance) -> None:
        """Note that nothing is to be done with a job until its files differ from ``glance``."""
        if name not in self._has_turn:
            self._has_turn.add(name)
            self._turns.append(name)
        self._settled[name] = glance
        self._again.pop(name, None)

    def is_settled(self, name: str) -> bool:
        """Tell whether a job was settled and its files have not changed since."""
        return name in self._settled and self._settled[name] == self.glance(name)

    def look_again(self, name: str, in_s: float) -> None:
        """Look at a job in ``in_s`` seconds, whether or not it changes."""
        self._again[name] = time.monotonic() + in_s

    def forget(self, name: str) -> None:
        """Note that a job is gone."""
        self.unwatch(name)
        self._settled.pop(name, None)
        self._again.pop(name, None)

    def glance(self, name: str) -> Glance:
        """Return what tells a job's files and inbox as they are now from what they were or will be."""
        found: list[object] = []
        for file in ("state.json", "tasks.json", "journal.jsonl", "inbox"):
            try:
                status = os.stat(os.path.join(self._store.root, name, file))
            except OSError as error:
                found.append(error.errno)
            else:
                found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(found)

    def take_in(self) -> None:
        """Read what the file system tells."""
        root = self._store.root
        for folder, name in self._watch.drain():
            if folder is None:
                self._is_all_told = True
            elif folder == root:
                # A former version makes the file without a job's name.
                self._is_all_told |= name in (CHANGED, "")
                self._tell(name.removeprefix(f"{CHANGED}-"))
            else:
                self._tell((folder.parent if folder.name == "inbox" and folder.parent != root else folder).name)

    def _tell(self, name: str) -> None:
        if name and not name.startswith(".") and (self._only is None or name in self._only):
            self._told.add(name)

    def due_s(self) -> float:
        """Return when to look, on the monotonic clock."""
        listed_s = self._listed_s + self._poll_s
        told_s = self._looked_s + _LOOK_S if self._told or self._is_all_told else listed_s
        return min(told_s, listed_s, self._list_again_s, *self._again.values())

    def names(self, active: Iterable[str]) -> list[str]:
        """Return the jobs to look at now, in alphabetical order.

        :param active: names of the jobs that the manager works on.
        :raises StateDirError: the folder of the jobs can't be read; the next call looks again.
        """
        now_s = self._looked_s = time.monotonic()
        names = {name for name, at_s in self._again.items() if at_s <= now_s}
        for name in names:
            del self._again[name]
        if self._is_all_told or now_s >= min(self._list_again_s, self._listed_s + self._poll_s):
            is_all_told, self._is_all_told = self._is_all_told, False
            self._listed_s, self._list_again_s = now_s, now_s + _RETRY_S
            self._watch.add(self._store.root)  # it may have been made since
            names |= self._list(everything=is_all_told)
            names.update(active)
            self._list_again_s = float("inf")
        names |= self._told
        self._told.clear()
        return sorted(names)

    def _list(self, *, everything: bool) -> set[str]:
        """Return the names of all jobs, without the settled ones that have not changed as far as this looks."""
        if self._only is not None:
            return set(self._only)
        there = set(self._store.folders())
        until_s = time.monotonic() + (float("inf") if everything else _SHARE * self._poll_s)
        changed: set[str] = set()
        for turn in range(len(self._turns)):
            if turn >= _AT_LEAST and time.monotonic() > until_s:
                break
            name = self._turns.popleft()
            if name not in self._settled:
                self._has_turn.discard(name)
                continue
            self._turns.append(name)
            if name not in there or self.glance(name) != self._settled[name]:
                changed.add(name)
        return (there - self._settled.keys()) | changed
