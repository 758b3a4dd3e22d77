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
from air_executor.jobs import files, inbox, requests
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


@pytest.mark.parametrize(
    ("tasks", "said"),
    [([], "nothing has failed"), (["a"], "task a has completed"), (["b"], "task b was skipped")],
)
def test_what_has_not_failed_is_not_retried(yard: Yard, tasks: list[str], said: str) -> None:
    yard.submit(
        {"id": "a", "command": "true"},
        {"id": "b", "command": "true", "dependencies": ["a"], "when": "failed"},
        on_success="echo good >> hooks",
    )
    before = yard.finish()
    assert said in yard.call("retry", "job", *tasks, code=1)
    # Nor by a manager, if it was asked before the job ended.
    path = yard.store.ask("job", "retry", tasks)
    yard.manager(only=frozenset({"job"})).apply()
    assert said in str(inbox.refusal(path))
    after = yard.store.open("job")
    assert (after.job.state, after.tasks) == (before.job.state, before.tasks)
    assert yard.lines("hooks") == ["good"]


def test_what_was_skipped_is_retried_by_naming_what_failed(yard: Yard) -> None:
    yard.submit({"id": "a", "command": "false"}, {"id": "b", "command": "true", "dependencies": ["a"]})
    yard.finish()
    assert "task b was skipped, as a failed: name that one" in yard.call("retry", "job", "b", code=1)


def test_a_hook_that_has_failed_is_retried(yard: Yard) -> None:
    yard.submit({"id": "a", "command": "true"}, on_success="echo tried >> hooks; [ -e mended ]")
    yard.finish()
    (yard.folder / "mended").touch()
    yard.call("retry", "job")
    yard.finish()
    assert yard.lines("hooks") == ["tried"] * 2
    assert "nothing has failed" in yard.call("retry", "job", code=1)
