"""Airflow's client of the execution API: the rules for retries, and what an error means."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import orjson

if TYPE_CHECKING:
    from airflow.sdk.api.client import ServerResponseError

#: Timeout of a request for the server's health, in seconds.
_HEALTH_S = 5.0

#: Status codes with which the execution API refuses the start of a task that is not wanted any more.
_REFUSALS = frozenset({404, 409, 410})

#: Airflow's own ``Client.request``.
_request: Any = None


def use_retries(
    try_again: Callable[[Any, BaseException], bool],
    give_up: Callable[[Any, BaseException, float], bool],
    sleep: Callable[[float], None],
    wait_s: Callable[[int, float], float],
) -> None:
    """Replace, in this process, the rules by which Airflow's client retries requests.

    :param try_again: takes the client and the error; returns whether the request may be retried.
    :param give_up: takes the client, the error and the monotonic time of the first attempt; returns whether to stop.
    :param sleep: takes a number of seconds.
    :param wait_s: takes the number of attempts and the monotonic time of the first; returns the seconds to wait.
    """
    import tenacity
    from airflow.sdk.api.client import Client, ServerResponseError

    def error_of(state: tenacity.RetryCallState) -> BaseException | None:
        return state.outcome.exception() if state.outcome is not None else None

    def retry(state: tenacity.RetryCallState) -> bool:
        error = error_of(state)
        return error is not None and try_again(state.args[0], error)

    def stop(state: tenacity.RetryCallState) -> bool:
        error = error_of(state)
        return error is not None and give_up(state.args[0], error, state.start_time)

    global _request
    request = _request = _request or Client.request
    retrying = request.retry  # type: ignore[attr-defined]
    retrying.retry, retrying.stop, retrying.sleep = retry, stop, sleep
    retrying.wait = lambda state: wait_s(state.attempt_number, state.start_time)

    def request_once_done(self: Client, *args: Any, **kwargs: Any) -> httpx.Response:
        try:
            answer: httpx.Response = request(self, *args, **kwargs)
            return answer
        except ServerResponseError as error:
            attempts = request.statistics.get("attempt_number", 1)  # type: ignore[attr-defined]
            if not _is_done_already(error, attempts):
                raise
            return httpx.Response(httpx.codes.NO_CONTENT, request=error.request)

    Client.request = request_once_done  # type: ignore[method-assign,assignment]


def _is_done_already(error: ServerResponseError, attempts: int) -> bool:
    """Return whether a request to set a task's state was refused because an earlier attempt has set it.

    When the answer to that attempt was lost, the server answers "conflict" to the next one. Meanwhile the state may
    have changed again.
    """
    if error.response.status_code != httpx.codes.CONFLICT or not error.request.url.path.endswith("/state"):
        return False
    try:
        wanted = orjson.loads(error.request.content)["state"]
        found = _detail_of(error)["previous_state"]
    except (KeyError, TypeError, ValueError):
        return False
    return attempts > 1 or wanted == found


def is_passing(error: BaseException) -> bool:
    """Return whether the same request may succeed later: no answer came, or the server itself failed."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500 or _is_collision(error)
    return isinstance(error, httpx.RequestError)


def _is_collision(error: httpx.HTTPStatusError) -> bool:
    """Return whether the server failed because two attempts of the same request wrote the same row.

    That happens to a request that sets an XCom while the server still works on an earlier attempt that timed out: each
    deletes the row that it finds, and the second one to insert fails.
    """
    from airflow.sdk.api.client import ServerResponseError

    if error.response.status_code != httpx.codes.CONFLICT or not isinstance(error, ServerResponseError):
        return False
    return bool(_detail_of(error).get("reason") == "Unique constraint violation")


def is_internal_error(error: BaseException) -> bool:
    """Return whether the server is reachable and failed at this request."""
    if not isinstance(error, httpx.HTTPStatusError):
        return False
    return error.response.status_code in (500, 501) or _is_collision(error)


def is_well(client: Any, error: BaseException) -> bool:
    """Ask the API server once whether it is healthy; when ``error`` names the database, whether that is healthy too."""
    from airflow.sdk.api.client import ServerResponseError

    url = str(client.base_url).rstrip("/")
    try:
        if httpx.get(f"{url}/health", timeout=_HEALTH_S).status_code != httpx.codes.OK:
            return False
        if not isinstance(error, ServerResponseError) or _detail_of(error).get("reason") != "Database error":
            return True
        report = httpx.get(f"{url.removesuffix('/execution')}/api/v2/monitor/health", timeout=_HEALTH_S).json()
        return bool(report["metadatabase"]["status"] == "healthy")
    except (httpx.HTTPError, KeyError, TypeError, ValueError):
        return False


def is_refused_token(error: BaseException) -> bool:
    """Return whether the server refused the client's token."""
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code in (401, 403)


def refusal(error: Exception) -> str | None:
    """Return why Airflow refused the start of a task; ``None``: ``error`` is something else."""
    from airflow.sdk.api.client import ServerResponseError

    if not isinstance(error, ServerResponseError) or error.response.status_code not in _REFUSALS:
        return None
    detail = _detail_of(error)
    # Airflow gives a reason; a server that is not the execution API at all answers 404 too.
    return f"{error.response.status_code} {detail}" if "reason" in detail else None


def _detail_of(error: ServerResponseError) -> dict[str, Any]:
    """Return the fields in which the execution API describes an error; empty when it sent none."""
    detail: Any = error.detail
    if isinstance(detail, dict) and isinstance(detail.get("detail"), dict):
        detail = detail["detail"]
    return detail if isinstance(detail, dict) else {}
