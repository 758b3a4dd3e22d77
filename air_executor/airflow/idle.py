"""What the scheduler does when it has nothing to do: it waits for news of runs."""

from __future__ import annotations

import math
import os
import select
import time
from collections.abc import Sequence

from air_executor.airflow.work import Work

#: Batch completions: while there is plenty of work, wait for more at most 3x the last loop's duration.
_GATHER_FACTOR = 3.0

#: This many live runs for each CPU are plenty of work.
PLENTY_PER_CPU = 4

#: After a failed look for news, the scheduler waits this many seconds for the next one.
_FAILED_WAIT_S = 0.1

#: When the last wait for news in this process ended, on the monotonic clock.
woken_s = math.inf


def wait_for_news(works: Sequence[Work], seconds: float) -> None:
    """Wait until a run of one of the executors has ended, for at most ``seconds``.

    What follows a task is scheduled when the task ends, not up to a second later. Only while there is plenty of work
    for every CPU, ends are batched: a loop of the scheduler costs about as much for many of them as for one.
    """
    global woken_s
    begin_s = time.monotonic()
    gather_s = begin_s + min(seconds, max(0.0, _GATHER_FACTOR * (begin_s - woken_s)))
    plenty = PLENTY_PER_CPU * (os.cpu_count() or 1)
    try:
        while (now_s := time.monotonic()) < begin_s + seconds:
            has_news, live, poll = False, 0, select.poll()
            for work in works:
                with work.guard("Waiting for news of runs") as looking:
                    has_news = work.backend.has_news() or has_news
                    live += len(work.runs) - len(work.backend.ends())
                    if (fd := work.backend.fileno()) is not None:
                        poll.register(fd, select.POLLIN)
                if looking.error is not None:
                    time.sleep(min(_FAILED_WAIT_S, max(0.0, begin_s + seconds - now_s)))  # not in a busy loop
            if has_news and (now_s >= gather_s or live < plenty):
                return
            poll.poll(max(0.0, ((gather_s if has_news else begin_s + seconds) - now_s) * 1000))
    finally:
        woken_s = time.monotonic()
