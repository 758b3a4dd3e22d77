"""Whether the kernel has killed a process for lack of memory."""

from __future__ import annotations

from air_executor.machine import system
from air_executor.machine.sizes import mebibytes


class OomKills:
    """The kernel's kills in this process's control group, since a task began."""

    def __init__(self) -> None:
        self._before: int | None = None

    def begin(self) -> None:
        """Take note that the task begins."""
        self._before = system.oom_kills()

    def has_killed(self) -> bool:
        """Tell whether the kernel has killed a process of this control group since the task began."""
        return bool(self._number())

    def evidence(self, signal_name: str) -> str:
        """Return what is known of the kernel's part in a task's death by ``signal_name``, as the end of a sentence."""
        if signal_name != "SIGKILL":
            return ""
        peak = f"; its largest process held {mebibytes(system.peak_bytes())}"
        number = self._number()
        if number is None:
            return f"; when nobody sent it, the kernel did, for lack of memory{peak}"
        if number:
            return f" by the kernel, for lack of memory in its control group{peak}"
        return f"; its control group had no lack of memory{peak}"

    def _number(self) -> int | None:
        """Return how many it has killed; ``None`` if it does not say."""
        kills = system.oom_kills()
        return None if kills is None or self._before is None else max(0, kills - self._before)
