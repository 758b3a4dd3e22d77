"""Whether the host that executes a run is cut off from those who ordered it, who may give the run up then."""

from __future__ import annotations

import time

from air_executor.machine.safe_files import is_fresh
from air_executor.runs.store import RunStore

#: A host's worker that has not reached Temporal for this many seconds counts as cut off.
_CUT_OFF_S = 20.0

#: The task of a job is ended when its host's worker has not reached Temporal for this many seconds.
JOB_FENCE_S = 150.0

#: A worker that reaches Temporal notes it about every five seconds.
_TOUCH_S = 7.0

#: A task that its host's isolation ends has at most this many seconds for ``on_kill``.
FENCE_GRACE_S = 5.0


class Isolation:
    """Looks whether a host's worker reaches Temporal. A run that was ordered on this machine is never isolated."""

    def __init__(self, store: RunStore, fence_s: float | None) -> None:
        """Look at nothing yet.

        :param fence_s: a run that has not reached Airflow for this many seconds may be given up; ``None``: it is not.
        """
        self._store, self._fence_s = store, fence_s
        #: Since when the host's worker seems not to reach Temporal, on the monotonic clock.
        self._untouched_s: float | None = None

    @property
    def is_possible(self) -> bool:
        """Whether the run was ordered from elsewhere."""
        return self._fence_s is not None

    def is_cut_off(self, silent_s: float) -> bool:
        """Tell whether the run may have been given up by Airflow.

        :param silent_s: for this many seconds it has not reached Airflow.
        """
        is_out_of_touch = self._is_out_of_touch(_CUT_OFF_S, _TOUCH_S)
        return self._fence_s is not None and silent_s > self._fence_s and is_out_of_touch

    def is_job_cut_off(self) -> bool:
        """Tell whether the task of a job may have been given up: nobody but the worker tells of it."""
        return self._is_out_of_touch(JOB_FENCE_S, 2 * _TOUCH_S)

    def _is_out_of_touch(self, limit_s: float, for_s: float) -> bool:
        """Tell whether the host's worker has not reached Temporal for this many seconds.

        It looks so for a moment, too, when the clock was set or the machine slept: until the worker's next touch.

        :param for_s: it has to look so for this many seconds.
        """
        if is_fresh(self._store.last_contact_s(), limit_s):
            self._untouched_s = None
            return False
        now_s = time.monotonic()
        self._untouched_s = since_s = self._untouched_s or now_s  # another thread may look, too
        return now_s - since_s >= for_s
