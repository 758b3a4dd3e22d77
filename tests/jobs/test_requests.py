"""What becomes of a request that nobody can do now."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from air_executor.errors import ManagedError, StateDirError
from air_executor.jobs import files, requests
from air_executor.jobs.requests import request
from tests.jobs.conftest import Yard
from tests.support.airflow_env import config
from tests.support.waiting import wait_for


def ask(yard: Yard, action: str) -> Any:
    return request(config(yard.state_dir), "job", action)


@pytest.mark.parametrize(("action", "said"), [("pause", "paused"), ("cancel", "cancelled")])
def test_who_asks_a_manager_that_hangs_is_told_that_it_is_not_done(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, action: str, said: str
) -> None:
    monkeypatch.setattr(requests, "_MANAGER_S", 0.0)
    yard.submit({"id": "a", "command": "sleep", "args": ["600"]})
    manager = yard.start_manager()
    yard.runner_of("a")
    manager.send_signal(signal.SIGSTOP)
    with pytest.raises(ManagedError, match=r"has not answered\. The request stays") as caught:
        ask(yard, action)
    assert caught.value.retryable
    manager.send_signal(signal.SIGCONT)
    wait_for(lambda: getattr(yard.store.open("job").job, said), "the request to be done")


def test_a_request_that_came_after_the_managers_last_look_is_done(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    yard.submit({"id": "a", "command": "true"})
    lock = yard.store.open("job").lock()
    assert lock.acquire(timeout_s=0)  # as a manager that is about to leave, and does while this one waits
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: lock.release(keep_file=True))
    monkeypatch.setattr(requests, "time", clock)
    assert ask(yard, "pause").job.paused


def test_a_request_that_can_not_be_written_is_told_with_the_reason(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    yard.submit({"id": "a", "command": "true"})

    def full(path: Path, *_: Any, **__: Any) -> None:
        raise StateDirError(f"cannot write {path}: {os.strerror(errno.ENOSPC)}")

    with monkeypatch.context() as patched:
        patched.setattr(files, "replace_file", full)
        with pytest.raises(ManagedError, match=r"job job has to wait: cannot write .*: No space left"):
            ask(yard, "pause")
    yard.manager(only=frozenset({"job"})).apply()
    assert yard.store.open("job").job.paused
