"""How long a runner waits for an API server, and with which token."""

from __future__ import annotations

import base64
import dataclasses
import inspect
import time
import uuid
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import orjson
import pytest
from airflow.api_fastapi.common import exceptions
from airflow.sdk.api.client import ServerResponseError

from air_executor import AirExecutor
from air_executor.airflow.compat import api, options, tokens
from air_executor.airflow.patience import Patience
from air_executor.airflow.supervision import current
from air_executor.runner.active import ActiveRun
from air_executor.runs.record import RunState, queued
from air_executor.runs.store import RunStore
from tests.support.airflow_env import config
from tests.unit.documents import identity
from tests.unit.test_compat import task_workload

pytestmark = pytest.mark.core


@pytest.fixture
def patience() -> Patience:
    return Patience(100.0, time.sleep)


def test_waits_grow_and_are_never_longer_than_half_a_minute(patience: Patience) -> None:
    now_s = time.monotonic()
    waits = {attempt: [patience._wait_s(attempt, now_s) for _ in range(300)] for attempt in (1, 3, 1000)}
    assert min(waits[1]) >= 0 and max(waits[1]) <= 1
    assert 2 < max(waits[3]) <= 4
    assert 20 < max(waits[1000]) <= 30
    assert len(set(waits[1000])) > 250  # many runners do not come back at the same moment


def test_the_last_wait_ends_when_the_patience_does(patience: Patience) -> None:
    began_s = time.monotonic() - 99.0
    assert max(patience._wait_s(1000, began_s) for _ in range(100)) <= 1
    assert patience._wait_s(1000, began_s - 10) == 0


def test_patience_ends_at_its_limit(patience: Patience) -> None:
    error = OSError("away")
    assert not patience._give_up(None, error, time.monotonic() - 98)
    assert patience._give_up(None, error, time.monotonic() - 100)


def test_only_errors_of_a_server_that_is_well_count(patience: Patience, monkeypatch: pytest.MonkeyPatch) -> None:
    well = True
    monkeypatch.setattr(api, "is_internal_error", lambda error: True)
    monkeypatch.setattr(api, "is_well", lambda client, error: well)
    most, began_s, error = options.stock_attempts(), time.monotonic(), OSError("500")
    assert most > 1
    assert not any(patience._give_up(None, error, began_s) for _ in range(most - 1))
    well = False
    assert not any(patience._give_up(None, error, began_s) for _ in range(10 * most))
    well = True
    assert not any(patience._give_up(None, error, began_s) for _ in range(most - 1))
    assert not any(patience._give_up(None, error, began_s + 1) for _ in range(most - 1))  # another request
    assert patience._give_up(None, error, began_s + 1)


def refusal(status: int, detail: dict[str, Any]) -> ServerResponseError:
    """The error that Airflow's client makes of an answer."""
    request = httpx.Request("POST", "http://localhost/execution/xcoms/d/r/t/return_value")
    response = httpx.Response(status, json={"detail": detail}, request=request)
    error = ServerResponseError.from_response(response)
    assert error is not None
    return error


def test_a_request_that_collides_with_its_former_attempt_is_made_again_a_few_times(
    patience: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "is_well", lambda client, error: True)
    collision = refusal(409, {"reason": "Unique constraint violation", "statement": "hidden"})
    assert patience._try_again(None, collision)
    began_s = time.monotonic()
    given_up = [patience._give_up(None, collision, began_s) for _ in range(options.stock_attempts())]
    assert given_up == [False] * (options.stock_attempts() - 1) + [True]
    assert not patience._try_again(None, refusal(409, {"reason": "invalid_state", "previous_state": "success"}))


def test_airflow_says_so_when_two_write_the_same() -> None:
    source = inspect.getsource(exceptions)
    assert "UniqueConstraint" in source
    assert '"Unique constraint violation"' in source


def client(**claims: Any) -> Any:
    body = base64.urlsafe_b64encode(orjson.dumps(claims)).decode().rstrip("=")
    return SimpleNamespace(auth=SimpleNamespace(token=f"header.{body}.signature"))


@pytest.mark.parametrize(
    ("issued_s", "expires_s", "is_replaced"),
    [(-100, 500, False), (-600, -100, True), (3600, 4200, True)],
    ids=["valid", "expired", "of the future, since the clock was set back"],
)
def test_a_token_that_is_not_valid_now_is_replaced_by_one_that_is(
    monkeypatch: pytest.MonkeyPatch, issued_s: int, expires_s: int, is_replaced: bool
) -> None:
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "x" * 64)
    now_s = time.time()
    old = client(sub="an-id", iat=now_s + issued_s, exp=now_s + expires_s)
    before = old.auth
    assert tokens.replace_bad_token(old) is is_replaced
    assert (old.auth is not before) is is_replaced
    claims = tokens.claims_of(old)
    assert claims["sub"] == "an-id"
    assert (claims["iat"] <= time.time() + 1 < claims["exp"]) is (is_replaced or issued_s == -100)


@pytest.mark.parametrize(
    ("option", "launcher", "is_allowed"),
    [
        ("auto", "own", True),
        ("auto", "service", False),
        ("on", "service", True),
        ("off", "own", False),
    ],
)
def test_a_runner_signs_a_token_only_where_it_may_and_its_record_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: RunStore, option: str, launcher: str, is_allowed: bool
) -> None:
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "x" * 64)
    chosen = config(tmp_path, renew_tokens=option, launcher=launcher)
    record = queued(str(uuid.uuid4()), identity(), limits={}, log_file=None)
    store.create(record)
    run = ActiveRun(store, record.advance(RunState.STARTING), chosen)
    monkeypatch.setattr(current, "run", run)
    refused, old = refusal(403, {"reason": "invalid_token"}), client(sub="an-id", iat=0, exp=1)
    before = old.auth
    patience = Patience(100.0, time.sleep, renew_token=current.renew_token)
    assert patience._try_again(old, refused) is is_allowed
    assert (old.auth is not before) is is_allowed
    run.beat()
    assert store.read(record.id).tokens_signed == (1 if is_allowed else None)
    assert run.record.advance(RunState.RUNNING).advance(RunState.SUCCEEDED).tokens_signed == (1 if is_allowed else None)


def test_airflows_audit_log_tells_of_a_token_that_a_runner_has_signed() -> None:
    executor = AirExecutor(parallelism=1)
    key = task_workload().ti.key
    ended = queued(str(uuid.uuid4()), identity(), limits={}, log_file=None).advance(RunState.STARTING)
    ended = ended.advance(RunState.RUNNING).advance(RunState.SUCCEEDED, outcome="success", delivered=True)
    executor._ends.report(key, ended)
    assert executor._task_event_logs == deque()
    executor._ends.report(key, dataclasses.replace(ended, tokens_signed=2))
    (entry,) = executor._task_event_logs
    assert entry.event == "air_executor token signed"
    assert "signed another, 2 times" in str(entry.extra)


def test_a_token_without_a_subject_cannot_be_replaced() -> None:
    assert not tokens.replace_bad_token(client(iat=0, exp=1))
