"""The launcher's children: their ends, and the ends of runs whose runners have died."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from air_executor.errors import AirExecutorError, ProtocolError
from air_executor.launcher.server.clients import Client
from air_executor.launcher.server.strays import DeadRunner, Strays
from air_executor.machine import system
from air_executor.machine.processes import Process
from air_executor.runs.codes import EXIT_ELSEWHERE, EXIT_RECORDED
from air_executor.runs.record import UNWANTED, RunRecord, RunState
from air_executor.runs.store import RunStore
from air_executor.runs.tasklog import append_to_log


@dataclass
class Runner:
    """A runner that was born here."""

    run_id: str
    workload_id: str
    client: Client | None
    """Gets the message about its end."""


class Parent(Protocol):
    """A part of the launcher that has child processes other than runners."""

    @property
    def pids(self) -> set[int]:
        """Those that are not reaped yet."""

    def reaped(self, pid: int) -> None:
        """Take note that a child has ended, whosever it was."""


class Reaper:
    """Reaps the launcher's children. Reports the end of a run once nothing of it is left and its end is on record."""

    def __init__(
        self,
        store: RunStore,
        strays: Strays,
        parents: Sequence[Parent],
        *,
        tell: Callable[[Client | None, dict[str, Any]], None],
        ended: Callable[[str], None],
    ) -> None:
        """Begin without runners.

        :param parents: the other parts of the launcher that have children.
        :param tell: sends a message to a client.
        :param ended: called with the run's id when a runner has ended.
        """
        self._store = store
        self._strays = strays
        self._parents = parents
        self._tell = tell
        self._ended = ended
        #: By their process ids.
        self._runners: dict[int, Runner] = {}
        #: Runners that have died, by their process ids, until nothing of their runs is left.
        self._dying: dict[int, Runner] = {}

    def __len__(self) -> int:
        """Return how many runs have not come to their end."""
        return len(self._runners) + len(self._dying)

    @property
    def runs(self) -> dict[int, str]:
        """The ids of the runs whose runners live, or wait to be reaped, by the runners' process ids."""
        return {pid: runner.run_id for pid, runner in self._runners.items()}

    @property
    def has_runners(self) -> bool:
        """Whether a runner lives, or waits to be reaped."""
        return bool(self._runners)

    @property
    def is_clearing(self) -> bool:
        """Whether what dead runners left is being killed."""
        return self._strays.are_due

    def adopt(self, pid: int, runner: Runner) -> None:
        """Take note that a child is a runner."""
        self._runners[pid] = runner

    def forget(self, client: Client) -> None:
        """Report nothing more to a client: it has gone."""
        for runner in (*self._runners.values(), *self._dying.values()):
            if runner.client is client:
                runner.client = None

    # What clients ask for

    def follow(self, client: Client, run_id: Any) -> None:
        """Report a run's end to ``client``, and to nobody else, from now on."""
        runner = self._find(self._dying, run_id)[1] or self._find(self._runners, run_id)[1]
        if runner is None:
            self._tell(client, {"type": "unknown", "id": run_id, "asked": "follow"})
            return
        if runner.client is not client:
            self._tell(runner.client, {"type": "elsewhere", "id": run_id})
        runner.client = client
        self._tell(client, {"type": "followed", "id": run_id})

    def end(self, client: Client, run_id: Any, kind: str) -> None:
        """Stop or kill a run.

        :param kind: ``stop`` or ``kill``.
        """
        pid, _ = self._find(self._runners, run_id)
        if self._find(self._dying, run_id)[1] is not None:
            self._tell(client, {"type": "followed", "id": run_id})
        elif pid is None:
            self._tell(client, {"type": "unknown", "id": run_id, "asked": kind})
        else:
            # A child that is not reaped: no other process can have its id.
            os.kill(pid, signal.SIGTERM if kind == "stop" else signal.SIGKILL)

    @staticmethod
    def _find(runners: dict[int, Runner], run_id: Any) -> tuple[int | None, Runner | None]:
        return next(((pid, runner) for pid, runner in runners.items() if runner.run_id == run_id), (None, None))

    # Ends

    def reap(self) -> None:
        """Reap the children that have ended, and kill what dead runners left, as far as it is adopted by now."""
        try:
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                self._reap(*found)
        except ChildProcessError:
            pass  # there are no children
        if self._strays.are_due:
            self._strays.end({*self._runners, *(pid for parent in self._parents for pid in parent.pids)})

    def _reap(self, pid: int, status: int) -> None:
        runner = self._runners.pop(pid, None)
        if runner is None:
            for parent in self._parents:
                parent.reaped(pid)
            self._strays.reaped(pid)
            return
        self._ended(runner.run_id)
        code = os.waitstatus_to_exitcode(status)
        if code == EXIT_ELSEWHERE:
            self._tell(runner.client, {"type": "elsewhere", "id": runner.run_id})
        elif code == EXIT_RECORDED and (record := self._end_on_record(runner.run_id)) is not None:
            self._tell_end(runner, code, record)
        else:
            self._dying[pid] = runner
            end = partial(self._end_for, pid, code)
            self._strays.expect(DeadRunner(runner.run_id, runner.workload_id, pid, end))

    def _end_on_record(self, run_id: str) -> RunRecord | None:
        try:
            record = self._store.read(run_id)
        except AirExecutorError:
            return None
        return record if record.state.is_end else None

    def _tell_end(self, runner: Runner, code: int, record: RunRecord | None) -> None:
        message = {"type": "exited", "id": runner.run_id, "exit_code": code}
        if record is not None:
            try:
                self._tell(runner.client, {**message, "record": record.to_document()})
                return
            except ProtocolError as error:  # too long, or nested too deeply: the executor can still read the file
                print(f"run {runner.run_id}: its record is not sent: {error}", flush=True)
        self._tell(runner.client, message)

    def _end_for(self, pid: int, code: int, survivors: list[Process]) -> None:
        """End a run whose runner has died, now that nothing is left of it but ``survivors``."""
        runner = self._dying.pop(pid)
        record = None
        try:
            record = self._write_end(runner.run_id, code, survivors)
        except AirExecutorError as error:
            print(f"run {runner.run_id}: its end (exit code {code}) is not on record: {error}", flush=True)
        except Exception:
            print(f"run {runner.run_id}: its end (exit code {code}) is not on record:", flush=True)
            traceback.print_exc()
        self._tell_end(runner, code, record)

    def _write_end(self, run_id: str, code: int, survivors: list[Process]) -> RunRecord:
        """Write the end of a run whose runner died before it could, and return it.

        :raises AirExecutorError: the record cannot be read or written.
        """
        record = self._store.read(run_id)
        if record.state.is_end:
            return record
        asked, words = self._store.stop_request(run_id), self._store.output_tail(run_id)
        left = self._store.note_survivors(record, survivors)
        more = (f": {asked.reason}" if asked else "") + (f"; {left}" if left else "")
        if record.state is RunState.QUEUED and (names := record.limits.get("environment")):
            more += f"; it began with the environment of its task ({', '.join(names)})"
        more += f". Its last words: {words}" if words else ""
        if code < 0:
            name = system.signal_name(-code)
            reason = f"the runner was killed by {name} (signal {-code}){more}"
            outcome = UNWANTED if asked and asked.unwanted else None
            record = record.advance(RunState.KILLED, signal=name, outcome=outcome, reason=reason)
        else:
            reason = f"the runner ended with exit code {code} before it could record an outcome{more}"
            record = record.advance(RunState.FAILED, exit_code=code, reason=reason)
        self._store.write(record)
        append_to_log(record.log_file, reason, kind=record.identity.kind)
        return record
