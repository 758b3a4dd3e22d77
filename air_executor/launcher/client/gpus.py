"""The GPUs of this machine, for those who order runs: see :class:`air_executor.runs.backend.GpuPool`."""

from __future__ import annotations

import contextlib
from typing import Any

import orjson

from air_executor.machine.gpu_pool import lock_name
from air_executor.machine.safe_files import replace_file
from air_executor.runs.lock import KernelLock, is_held
from air_executor.runs.store import RunStore


class LocalGpus:
    """A GPU is leased while a runner holds its lock."""

    def __init__(self, store: RunStore, names: tuple[str, ...]) -> None:
        """Prepare, but take nothing.

        :param names: the GPUs that can be leased, as ``[air_executor] gpus`` has them.
        """
        self._store = store
        self._names = names
        self._turn = KernelLock(store.gpus / ".turn")
        self._has_turn = False
        self._owner: str | None = None
        self.size = len(names)

    def open(self, owner: str) -> None:
        """Publish what waits under the name of an owner."""
        self._owner = owner

    def free(self) -> int:
        """See :meth:`air_executor.runs.backend.GpuPool.free`."""
        return sum(not is_held(self._store.gpus / lock_name(name)) for name in self._names)

    def take_turn(self) -> bool:
        """See :meth:`air_executor.runs.backend.GpuPool.take_turn`."""
        self._has_turn = self._has_turn or self._turn.acquire(timeout_s=0)
        return self._has_turn

    def leave_turn(self) -> None:
        """See :meth:`air_executor.runs.backend.GpuPool.leave_turn`."""
        if self._has_turn:
            self._turn.release()
            self._has_turn = False

    def publish(self, waiting: list[dict[str, Any]]) -> None:
        """See :meth:`air_executor.runs.backend.GpuPool.publish`.

        :raises StateDirError: it can't be written.
        """
        if self._owner is not None:
            replace_file(self._store.waiting / f"{self._owner}.json", orjson.dumps(waiting))

    def close(self) -> None:
        """Leave the turn, and publish nothing any more."""
        self.leave_turn()
        if self._owner is not None:
            with contextlib.suppress(OSError):
                (self._store.waiting / f"{self._owner}.json").unlink(missing_ok=True)
