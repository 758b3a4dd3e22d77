"""A pidfd as a selector and Airflow's service loop want it."""

from __future__ import annotations

import os


class PidFd:
    """Owns a pidfd."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor; -1 once it is closed."""
        return self._fd

    def close(self) -> None:
        """Close it, unless it is closed."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close  # nobody closes that of a run which ended before Airflow heard of its start
