"""Runs that wait for room on this machine: those of this process, and what others have published."""

from __future__ import annotations

import contextlib
import heapq
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from air_executor.errors import RecordError, StateDirError
from air_executor.machine.safe_files import is_fresh, read_document, replace_file
from air_executor.runs.budget import Need
from air_executor.runs.lock import KernelLock, is_held

#: After this many seconds, room is left for what waits. Until then the room that there is goes to whatever fits.
_OVERTAKEN_S = 20.0

#: A waiter that has not asked for this many seconds loses its claim to room; after the second time it is dropped.
_PATIENCE_S, _FORGOTTEN_S = 10.0, 600.0

#: How often what waits is shown to others, in seconds, and how much of it.
_PUBLISH_S, _MAX_PUBLISHED = 1.0, 200

#: A longer file was not written by this program.
MAX_BYTES = 1 << 18


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A run that finds no room."""

    key: str
    """By which those who order it know it."""
    name: str
    memory: int
    """Bytes."""
    cpus: float
    since_s: float
    """When it first found none, in seconds since the epoch."""
    asked_s: float
    """When it last did."""
    dag_id: str | None = None
    """Its DAG, for those who may not see all."""
    why: str = ""

    @classmethod
    def from_document(cls, document: Any) -> Waiting:
        """Return what another process has published; unknown fields are ignored.

        :raises ValueError: it is not one; also KeyError, TypeError.
        """
        return cls(
            key=str(document["key"]),
            name=str(document["name"]),
            memory=int(document["memory"]),
            cpus=float(document["cpus"]),
            since_s=float(document["since_s"]),
            asked_s=float(document["asked_s"]),
            dag_id=str(document["dag_id"]) if document.get("dag_id") is not None else None,
            why=str(document["why"]),
        )

    @property
    def rank(self) -> tuple[float, str]:
        """Of two that wait, that with the lesser one comes first: the one that has waited longer."""
        return self.since_s, self.key

    @property
    def right_s(self) -> float:
        """From when on room is left to it, in seconds since the epoch."""
        return self.since_s + _OVERTAKEN_S

    @property
    def is_asking(self) -> bool:
        """Whether it has asked just now, and so may still have its right to room."""
        return is_fresh(self.asked_s, _PATIENCE_S)

    @property
    def has_right(self) -> bool:
        """Whether room has to be left to it now."""
        return self.is_asking and time.time() >= self.right_s


class Line:
    """What waits for room: here, and what other processes have published."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._here: dict[str, Waiting] = {}
        self._others: list[Waiting] = []
        #: Held for the life of this process's file.
        self._life = KernelLock(folder / f"{os.getpid()}-{os.urandom(4).hex()}")
        self._is_open = self._has_news = False
        self._published_s = float("-inf")

    def ask(self, key: str, name: str, need: Need, dag_id: str | None) -> Waiting:
        """Return what asks for room now; it may have waited for some time."""
        now_s = time.time()
        known = self._here.get(key)
        since_s = now_s if known is None else min(known.since_s, now_s)  # the clock may have been set back
        return Waiting(
            key=key,
            name=name,
            memory=need.memory,
            cpus=need.cpus,
            since_s=since_s,
            asked_s=now_s,
            dag_id=dag_id,
        )

    def answer(self, asks: Waiting, why: str | None) -> None:
        """Note why it has to wait; with ``None``, that it does not."""
        self._has_news = True
        if why is None:
            if self._here.pop(asks.key, None) is not None:
                self._published_s = float("-inf")
                self.publish()
        else:
            self._here[asks.key] = replace(asks, why=why)

    def get(self, key: str) -> Waiting | None:
        """Return what waits here under a key."""
        return self._here.get(key)

    def __len__(self) -> int:
        """Return how many wait here."""
        return sum(each.is_asking for each in self._here.values())

    def before(self, asks: Waiting) -> Waiting | None:
        """Return that to which room has to be left, if there is one: of all processes', what has waited longest."""
        waits = (each for each in (*self._here.values(), *self._others) if each.key != asks.key and each.has_right)
        first = min(waits, key=lambda each: each.rank, default=None)
        return first if first is not None and first.rank < asks.rank else None

    def look(self) -> None:
        """Read what others have published, and remove what dead processes have left."""
        found = self._files(removes=True)
        self._others = [each for path, waits in found if path.name != self._life.name for each in waits]

    def published(self) -> list[Waiting]:
        """Return what all processes have published, as far as it still asks. Nothing is changed."""
        return [each for _, found in self._files(removes=False) for each in found if each.is_asking]

    def publish(self) -> None:
        """Write what waits here for others to see, and forget what has not asked for long."""
        if time.monotonic() - self._published_s < _PUBLISH_S or not (self._here or self._has_news):
            return
        forgotten_s = time.time() - _FORGOTTEN_S
        self._here = {key: each for key, each in self._here.items() if each.asked_s > forgotten_s}
        self._published_s, self._has_news = time.monotonic(), False
        if not self._is_open:
            self._is_open = self._life.acquire(timeout_s=0)
        first = heapq.nsmallest(_MAX_PUBLISHED, self._here.values(), key=lambda each: each.rank)
        replace_file(f"{self._life.path}.json", orjson.dumps([asdict(each) for each in first]))

    def close(self) -> None:
        """Wait for nothing any more."""
        self._here.clear()
        if self._is_open:
            with contextlib.suppress(OSError):
                os.unlink(f"{self._life.path}.json")
            self._life.release()
            self._is_open = False

    def _files(self, *, removes: bool) -> Iterator[tuple[Path, list[Waiting]]]:
        for path in sorted(self.folder.glob("*.json")):
            life = path.with_suffix("")
            with contextlib.suppress(StateDirError, RecordError, OSError, ValueError, TypeError, KeyError):
                if not is_held(life):  # its process has died
                    if removes:
                        path.unlink()
                        life.unlink()
                    continue
                found = orjson.loads(read_document(path, MAX_BYTES, RecordError) or b"[]")
                yield life, [Waiting.from_document(each) for each in found]
