"""How much memory of GPUs is in use, from NVIDIA's management library (the package ``nvidia-ml-py``, if it is here)."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any


class GpuMemory:
    """Looks at GPUs that a task has for itself."""

    def __init__(self, gpus: Sequence[str]) -> None:
        """Look at nothing yet.

        :param gpus: the numbers of their devices, or their UUIDs: see :func:`.gpu_pool.lock_name`.
        """
        self._names = list(gpus)
        self._library: Any = None
        self._devices: list[Any] | None = None if self._names else []

    def used_bytes(self) -> int | None:
        """Return how much is in use; ``None``: there are none, or it can't be told."""
        try:
            if self._devices is None:
                self._devices = []
                self._library = importlib.import_module("pynvml")
                self._library.nvmlInit()
                self._devices = list(map(self._device, self._names))
            if not self._devices:
                return None
            return sum(int(self._library.nvmlDeviceGetMemoryInfo(device).used) for device in self._devices)
        except Exception:  # the library has an exception of its own for each fault of a driver
            return None

    def _device(self, name: str) -> Any:
        if not name.isdigit():
            return self._library.nvmlDeviceGetHandleByUUID(name)
        every = map(self._library.nvmlDeviceGetHandleByIndex, range(self._library.nvmlDeviceGetCount()))
        return next(device for device in every if self._library.nvmlDeviceGetMinorNumber(device) == int(name))
