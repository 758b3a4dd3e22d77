"""The entry point of a runner that is a fresh process."""

from __future__ import annotations

import io
import sys
from typing import Any

import orjson
import pytest

from air_executor.machine import system
from air_executor.runner import __main__ as entry
from air_executor.runs.backend import RunRequest
from air_executor.runs.store import RunStore
from tests.support.airflow_env import config
from tests.unit.documents import identity
from tests.unit.processes import result_of


def is_private() -> bool:
    libc = system._libc()
    assert libc is not None
    return bool(libc.prctl(3, 0, 0, 0, 0) == 0)  # PR_GET_DUMPABLE


class Input(io.BytesIO):
    """Standard input that notes whether the process is private when its request, with a token, is read."""

    was_private = False

    def read(self, *args: Any) -> bytes:
        self.was_private = is_private()
        return super().read(*args)


def test_no_other_process_can_look_into_a_runner_from_before_it_has_its_token(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = RunRequest(id="11111111-2222-4333-8444-555555555555", identity=identity(), workload={}, log_file=None)

    def run() -> list[bool]:
        stdin = Input(orjson.dumps(request.to_message()))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stdin))
        monkeypatch.setattr(entry, "run", lambda *_: int(is_private()))
        before = is_private()
        during = entry.main([config(store.root).to_json()])
        return [before, stdin.was_private, bool(during)]

    assert result_of(run) == [False, True, True]
