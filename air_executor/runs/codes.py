"""Exit codes of a runner process, as its launcher reads them."""

from __future__ import annotations

#: The end is on record.
EXIT_RECORDED = 0
#: The runner failed in a way that it did not expect (``EX_SOFTWARE``).
EXIT_RUNNER_ERROR = 70
#: The end could not be recorded (``EX_IOERR``).
EXIT_UNRECORDED = 74
#: The run is, or was, another runner's (``EX_TEMPFAIL``).
EXIT_ELSEWHERE = 75
