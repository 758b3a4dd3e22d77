"""How a runner waits for an API server that is away: it retries for a long time, while its task runs on."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

from air_executor.airflow.compat import api, options
from air_executor.machine.awake import AwakeClock

#: Backoff: the longest first wait and the longest wait of all, in seconds; the longest wait doubles in between. Each
#: wait is a random part of the longest, so that many runners do not retry at the same moment.
_SHORTEST_S, _LONGEST_S = 1.0, 30.0


class Patience:
    """Decides whether and when a request to the API server is retried.

    :param limit_s: how long to retry, in seconds.
    :param nap: waits for a number of seconds; may raise to end the retries.
    :param awake: measures time; a pause of the machine does not count.
    :param renew_token: gives a client a new token if its own is not valid now, and returns whether it did.
    """

    def __init__(
        self,
        limit_s: float,
        nap: Callable[[float], None],
        awake: AwakeClock | None = None,
        renew_token: Callable[[Any], bool] = lambda _: False,
    ) -> None:
        self.limit_s = limit_s
        self._awake = awake or AwakeClock()
        self._nap = nap
        self._renew_token = renew_token
        self._single = False
        #: When the current request was first made, and how often in a row a healthy server has failed at it.
        self._since_s, self._refusals = 0.0, 0

    def install(self) -> None:
        """Apply these rules to all requests of this process to the API server."""
        api.use_retries(self._try_again, self._give_up, self._sleep, self._wait_s)

    @contextlib.contextmanager
    def only_once(self) -> Iterator[None]:
        """Make requests without retries: requests that are repeated regularly need none."""
        self._single = True
        try:
            yield
        finally:
            self._single = False

    def _try_again(self, client: Any, error: BaseException) -> bool:
        if api.is_refused_token(error) and self._renew_token(client):
            return True
        return not self._single and api.is_passing(error)

    def _give_up(self, client: Any, error: BaseException, since_s: float) -> bool:
        if self._awake.since_s(since_s) >= self.limit_s:
            return True
        if since_s != self._since_s:
            self._since_s, self._refusals = since_s, 0  # another request
        # A healthy server that fails at the same request repeatedly will keep failing. Errors of an unhealthy server do
        # not count.
        is_refusal = api.is_internal_error(error) and api.is_well(client, error)
        self._refusals = self._refusals + 1 if is_refusal else 0
        return self._refusals >= options.stock_attempts()

    def _wait_s(self, attempt: int, since_s: float) -> float:
        longest_s = min(_LONGEST_S, _SHORTEST_S * 2.0 ** min(attempt - 1, 16))
        left_s = self.limit_s - self._awake.since_s(since_s)
        return max(0.0, min(random.uniform(0, longest_s), left_s))

    def _sleep(self, seconds: float) -> None:
        self._nap(seconds)
