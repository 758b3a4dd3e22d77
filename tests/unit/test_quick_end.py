"""A task that has nothing to do when it is killed ends at once; one that has gets its time."""

from __future__ import annotations

import inspect
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.bases.operator import BaseOperator
from airflow.sdk.bases.sensor import BaseSensorOperator
from airflow.sdk.execution_time import task_runner

from air_executor.airflow import quick_end


class Plain(BaseOperator):
    pass


class Tidy(BaseOperator):
    def on_kill(self) -> None:
        super().on_kill()
        os.write(1, b"tidied\n")


class TidyToo(Tidy):
    pass


def changed() -> BaseOperator:
    operator = Plain(task_id="changed")
    operator.on_kill = lambda: os.write(1, b"tidied\n")  # type: ignore[method-assign,assignment,misc,return-value]
    return operator


def killed(operator: Any, output: Path) -> int:
    """Do in a child what Airflow's task process does, and return how it ended: 0 when it could go on."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        quick_end.install()
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT, 0o600), 1)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        print("last words")

        def _on_term(*_: Any) -> None:
            operator.on_kill()

        signal.signal(signal.SIGTERM, _on_term)
        os.kill(os.getpid(), signal.SIGTERM)
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        os._exit(99)


def test_the_handler_has_the_name_by_which_it_is_known() -> None:
    assert f"def {quick_end._HANDLER}(" in inspect.getsource(task_runner)


def test_a_time_out_goes_on_to_fail_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BaseOperator, "on_kill", quick_end.on_kill)
    Plain(task_id="too_slow").on_kill()  # nobody has sent a signal, and this process lives


@pytest.mark.parametrize("kind", [Plain, BaseSensorOperator])
def test_it_ends_at_once_where_nothing_handles_the_signal(kind: type[BaseOperator], tmp_path: Path) -> None:
    assert killed(kind(task_id="t"), tmp_path / "out") == -signal.SIGTERM
    assert (tmp_path / "out").read_text() == "last words\n"


@pytest.mark.parametrize("make", [lambda: Tidy(task_id="t"), lambda: TidyToo(task_id="t"), changed])
def test_an_on_kill_comes_to_its_end_also_when_it_calls_the_one_above(make: Any, tmp_path: Path) -> None:
    assert killed(make(), tmp_path / "out") == 0
    assert sorted((tmp_path / "out").read_text().splitlines()) == ["last words", "tidied"]
