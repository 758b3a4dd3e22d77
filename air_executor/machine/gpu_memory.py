"""How much memory of GPUs is in use, from NVIDIA's management library (the package ``nvidia-ml-py``, if it is here)."""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any


class GpuMemory:
    """Looks at GPUs that a task has for itself."""

    def __init__(self, gpus: Sequence[str]) -> None:
        """Look at nothing yet.

        :param gpus: the numbers of their devices, or their UUIDs: see :func:`.gpu_pool.lock_name`.
        """
        self._names = list(gpus)
        self._looks: list[Callable[[], int]] | None = None

    @property
    def are_there(self) -> bool:
        """Whether there is a GPU to look at."""
        return bool(self._names)

    def used_bytes(self) -> int | None:
        """Return how much is in use; ``None``: there are none, it can't be told, or not yet.

        The first call only begins to load the library, in a thread: a driver may take seconds for it, or hang.
        """
        if self._names and self._looks is None:
            self._looks = []
            threading.Thread(target=self._load, name="gpus", daemon=True).start()
        if not self._looks:
            return None
        try:
            return sum(look() for look in self._looks)
        except Exception:  # the library has an exception of its own for each fault of a driver
            return None

    def _load(self) -> None:
        try:
            library = importlib.import_module("pynvml")
            library.nvmlInit()
            self._looks = list(self._found(library))
        except Exception:  # likewise; then there is nothing to look at
            return

    def _found(self, library: Any) -> Iterator[Callable[[], int]]:
        every = list(map(library.nvmlDeviceGetHandleByIndex, range(library.nvmlDeviceGetCount())))
        numbers = {str(library.nvmlDeviceGetMinorNumber(device)): device for device in every}
        for name in self._names:
            # Not found: a part of a GPU, whose name is not that of its lock.
            if (device := numbers.get(name) or self._by_uuid(library, name)) is not None:
                yield functools.partial(_used_bytes, library, device)

    @staticmethod
    def _by_uuid(library: Any, name: str) -> Any:
        try:
            return library.nvmlDeviceGetHandleByUUID(name)
        except Exception:  # likewise
            return None


def _used_bytes(library: Any, device: Any) -> int:
    return int(library.nvmlDeviceGetMemoryInfo(device).used)
