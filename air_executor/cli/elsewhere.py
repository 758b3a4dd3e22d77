"""Runs that other hosts execute: how they are stopped, and how their logs are read."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from air_executor.cli.tasklogs import LogReader
from air_executor.cli.temporal_options import option, with_temporal
from air_executor.errors import AirExecutorError, WrongStateError
from air_executor.runs.record import RunRecord
from air_executor.runs.store import RunStore

if TYPE_CHECKING:
    from air_executor.temporal.settings import Settings


def stop(record: RunRecord, reason: str) -> None:
    """Ask Temporal to have a run stopped.

    :raises WrongStateError: Temporal does not know it, or not any more.
    :raises AirExecutorError: Temporal can't be reached.
    """
    with with_temporal():
        from air_executor.temporal.settings import Settings
    asyncio.run(_stop(Settings.load(option), record, reason))


async def _stop(settings: Settings, record: RunRecord, reason: str) -> None:
    from temporalio.service import RPCError

    from air_executor.temporal import asking, cards, dag_runs

    client = await settings.connect()
    try:
        try:
            workflow_id = await dag_runs.workflow_of(client, record.id, record.identity)
        except RPCError:
            # Nobody answers questions now, as while no scheduler runs; a signal waits.
            workflow_id = cards.workflow_id(record.identity)
        if workflow_id is None:
            raise WrongStateError(f"Temporal has no open workflow with run {record.id}")
        handle = client.get_workflow_handle(workflow_id)
        await handle.signal("stop", args=[record.id, reason, False], rpc_timeout=asking.ANSWER)
    except RPCError as error:
        raise AirExecutorError(f"Temporal can't be asked to stop run {record.id}: {error}") from None


class HostLog(LogReader):
    """Reads a task's log from the log server of the host that has it, as Airflow's UI does."""

    every_s = 2.0

    def __init__(self, store: RunStore, run_id: str) -> None:
        """Ask nothing yet."""
        self._store, self._run_id = store, run_id
        self._copy = tempfile.NamedTemporaryFile(prefix="air-executor-log-")  # noqa: SIM115 - as long as this object
        self._tail: int | None = None
        self._is_followed = self._is_away = False
        super().__init__(self._copy.name)

    def skip_to_tail(self, count: int) -> None:
        """See :meth:`.LogReader.skip_to_tail`: as soon as there is a log."""
        self._tail = count

    def lines(self, *, is_over: bool) -> Iterator[str]:
        """See :meth:`.LogReader.lines`. While the run goes on, a host that does not answer has nothing new.

        :raises AirExecutorError: the host's log server refuses, or does not answer, and nobody has followed the run.
        """
        self._is_followed |= not is_over
        try:
            self._fetch()
            self._is_away = False
        except AirExecutorError as error:
            if not self._is_followed or not (is_over or _is_passing(error)):
                raise
            if is_over:
                print(f"the end of the log is missing: {error}", file=sys.stderr, flush=True)
            elif not self._is_away:
                print(f"{error}; waiting for it", file=sys.stderr, flush=True)
            self._is_away = True
        yield from super().lines(is_over=is_over)

    def _fetch(self) -> None:
        record = self._store.read(self._run_id)
        if record.log_file is None:
            raise AirExecutorError(
                f"run {record.id} was taken over from another scheduler: see its log in Airflow's UI"
            )
        try:
            from air_executor.airflow import task_instances
            from air_executor.airflow.compat import served_logs
        except ModuleNotFoundError as error:
            why = f"the log is on {record.host}; to read it from here needs Airflow: {error}"
            raise AirExecutorError(why) from None
        host = task_instances.hostname(record.identity.workload_id) or record.host
        if not host:
            return  # it has not begun
        if served_logs.update(self._copy.file, host, record.log_file):
            self._position = 0
        if self._tail is not None:
            super().skip_to_tail(self._tail)
            self._tail = None


def _is_passing(error: AirExecutorError) -> bool:
    """Tell whether a log may be there later."""
    with contextlib.suppress(ModuleNotFoundError):
        from air_executor.airflow.compat.served_logs import LogAwayError

        return isinstance(error, LogAwayError)
    return False
