"""Runs on many hosts, ordered through Temporal: the second place behind :class:`air_executor.runs.backend.RunBackend`.

The executor's own records of the runs are below ``temporal`` in its state directory. They say what it has ordered, on
which host that is, and how it ended.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
from temporalio.exceptions import TemporalError

from air_executor.config import Config
from air_executor.errors import AirExecutorError
from air_executor.guard import Guard
from air_executor.launcher.client.claims import Claims
from air_executor.runs.backend import Boundless, EveryGpu, RunRequest
from air_executor.runs.ordered import OrderedRuns
from air_executor.runs.record import UNWANTED, Identity, RunRecord, RunState, queued
from air_executor.temporal import cards
from air_executor.temporal.dag_runs import DagRuns
from air_executor.temporal.followed import Followed
from air_executor.temporal.link import Order, Signal
from air_executor.temporal.news import News
from air_executor.temporal.settings import Settings
from air_executor.temporal.watch import LiveRun, follow
from air_executor.temporal.workflow import MOST_EVENTS, RULES

log = logging.getLogger(__name__)

#: A scheduler that takes runs over waits so long for Temporal to say what it has, in seconds.
_ASK_S = 5.0

#: When it does not say so in time, it is asked again after this many seconds.
_ASK_AGAIN_S = 30.0


class TemporalBackend:
    """Implements :class:`air_executor.runs.backend.RunBackend`."""

    def __init__(
        self,
        config: Config,
        settings: Settings,
        judge: Callable[[Identity, float], str],
        give_back: Callable[[Identity, str], bool] = lambda *_: False,
        waits: Callable[[str, str], None] = lambda *_: None,
    ) -> None:
        """Prepare, but open nothing.

        :param judge: says what became of a run whose host has not answered for this many seconds: one of the verdicts
            in :mod:`.workflow`. It is called in threads of its own, as the next one.
        :param give_back: lets somebody order a workload again whose run (its id) has not begun, and is lost. It returns
            whether somebody will.
        :param waits: is told, in another thread, why a run waits that was ordered: its id, and a sentence.
        """
        self._config = config
        self._settings = settings
        self._store = OrderedRuns.of(config.state_dir)
        self._claims = Claims(self._store)
        self._followed = Followed(self._store, settings)
        self._dag_runs = DagRuns()
        self._news = News(config, settings, self._store, self._followed, self._dag_runs, judge, give_back, waits)
        self._link = self._news.link
        self.gpus = EveryGpu()
        self.room = Boundless()  # each host has its slots
        #: Temporal is not asked before this moment, on the monotonic clock: it did not answer.
        self._ask_at_s = 0.0
        #: The workflows of runs that :meth:`adopt` has found.
        self._found: dict[str, str] = {}
        self._guard = Guard(log)

    # Life

    def open(self, owner: str | None) -> bool:
        """See :meth:`air_executor.runs.backend.RunBackend.open`."""
        Path(self._config.state_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._store.prepare()
        with self._guard("Marking the runs that are open"):
            self._store.mark_open()
        if owner is not None and not self._claims.begin(owner):
            return False
        self._news.begin()
        return True

    def warm_up(self) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.warm_up`."""

    def show_life(self) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.show_life`."""
        self._claims.show_life()

    def close(self) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.close`."""
        self._link.close()
        self._claims.end()
        self._followed.close()

    # Orders

    def order(self, request: RunRequest, record: RunRecord) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.order`."""
        who = request.identity
        card = cards.card(request, record, self._settings)
        if not isinstance(record.limits.get("memory"), int | None):  # a rule, see :meth:`.MemoryRule.public`
            card["learned"] = self._store.learned.document(who)  # the last try may have been on another host
        workflow_id = self._dag_runs.workflow_id(who)
        order = Order(
            workflow_id,
            self._header(who, workflow_id),
            card,
            len(orjson.dumps(card)),
            lambda execution: self._note_execution(record.id, execution),
        )
        self._store.create(record)
        self._claims.claim(record.id)
        self._note(record, workflow_id, order)
        self._link.send(order)

    def _note_execution(self, run_id: str, execution: str) -> None:
        if (run := self._followed.get(run_id)) is not None:
            run.execution, run.is_followed = execution, True

    def _header(self, who: Identity, workflow_id: str) -> dict[str, Any]:
        header: dict[str, Any] = {"dag": who.dag_id, "dag_run": who.dag_run_id, "team": who.team}
        header.update(rules=RULES, most_events=MOST_EVENTS)
        if who.dag_id is not None and who.dag_run_id is not None and self._settings.ui:
            header["airflow"] = f"{self._settings.ui}/dags/{quote(who.dag_id)}/runs/{quote(who.dag_run_id)}"
        if (root := cards.workflow_id(who)) != workflow_id:  # a successor that has ended is started again as one
            header.update(root=root, number=cards.number(str(who.dag_id), str(who.dag_run_id), workflow_id))
        if who.dag_run_id is None:
            header.update(is_single=True, name=who.name)
        return {name: value for name, value in header.items() if value is not None}

    def _note(self, record: RunRecord, workflow_id: str, order: Order | None = None) -> LiveRun:
        run = LiveRun(record.identity, workflow_id, order)
        self._followed.add(record.id, run)
        self._dag_runs.add(record.identity.dag_id, record.identity.dag_run_id, workflow_id)
        return run

    def stop(self, run_id: str, reason: str, *, unwanted: bool = False) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.stop`."""
        if (run := self._followed.get(run_id)) is not None:
            run.is_stopping = True
            self._link.send(Signal(run.workflow_id, "stop", [run_id, reason, unwanted]))

    def is_stopping(self, run_id: str) -> bool:
        """See :meth:`air_executor.runs.backend.RunBackend.is_stopping`."""
        return (run := self._followed.get(run_id)) is not None and run.is_stopping

    def kill(self, run_id: str) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.kill`: its host kills what does not end."""

    def withdraw(self, record: RunRecord, reason: str) -> RunRecord:  # noqa: ARG002
        """See :meth:`air_executor.runs.backend.RunBackend.withdraw`: what was sent to Temporal may begin any time."""
        return record

    def release(self, workload_ids: Iterable[str]) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.release`: nothing is kept here."""

    # DAG runs

    def open_dag_runs(self) -> list[tuple[str, str]]:
        """Return the DAG runs, as DAG and run id, that have a workflow and no live run here."""
        return self._dag_runs.without({run.workflow_id for run in self._followed.live().values()})

    def close_dag_run(self, dag_id: str, dag_run_id: str, state: str) -> None:
        """End a DAG run's workflow, with the state of the DAG run."""
        for workflow_id in self._dag_runs.remove(dag_id, dag_run_id):
            self._link.send(Signal(workflow_id, "close", [state]))

    # Taking over

    def adopt(self, run_id: str, identity: Callable[[], Identity]) -> RunRecord | None:
        """See :meth:`air_executor.runs.backend.RunBackend.adopt`."""
        record = self._store.read(run_id) if self._store.has(run_id) else None
        if record is not None and record.state.is_end:
            return record
        who = record.identity if record is not None else identity()
        workflow_id: str | None = cards.workflow_id(who)
        try:
            if time.monotonic() < self._ask_at_s:
                raise AirExecutorError("it did not answer a moment ago")
            workflow_id = self._link.call(self._link.workflow_of(run_id, who), _ASK_S)
        except (AirExecutorError, TemporalError, FutureTimeoutError) as error:
            self._ask_at_s = max(self._ask_at_s, time.monotonic() + _ASK_AGAIN_S)
            log.warning(
                "Temporal does not say whether it has run %s; it is taken for one of its runs: %s", run_id, error
            )
        if workflow_id is None:
            if record is not None:
                lost = record.advance(
                    RunState.LOST, reason="its scheduler died before it was ordered", outcome=UNWANTED
                )
                self._store.mark_reported(self._store.write(lost))
            return None
        if record is None:
            record = queued(run_id, who, limits={}, log_file=None)
            self._store.create(record)
        self._found[run_id] = workflow_id
        return record

    def follow(self, record: RunRecord) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.follow`."""
        self._claims.claim(record.id)
        if record.state.is_end:
            self._followed.end(record)
            return
        workflow_id = self._found.pop(record.id, None) or cards.workflow_id(record.identity)
        run = self._note(record, workflow_id)
        follow(self._link, workflow_id, {record.id: run})

    def orphans(self, is_ours: Callable[[str], bool]) -> Iterator[RunRecord]:
        """See :meth:`air_executor.runs.backend.RunBackend.orphans`."""
        return self._claims.orphans(is_ours)

    def settle_owners(self, settle: Callable[[str, float], bool]) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.settle_owners`."""
        self._claims.settle_owners(settle)

    # Questions

    def knows(self, run_id: str) -> bool:
        """See :meth:`air_executor.runs.backend.RunBackend.knows`."""
        return self._store.has(run_id)

    def record(self, run_id: str) -> RunRecord:
        """See :meth:`air_executor.runs.backend.RunBackend.record`."""
        return self._store.read(run_id)

    def folder(self, run_id: str) -> str:
        """See :meth:`air_executor.runs.backend.RunBackend.folder`."""
        return self._store.path(run_id)

    def is_mine(self, run_id: str) -> bool:
        """See :meth:`air_executor.runs.backend.RunBackend.is_mine`."""
        return not self._followed.is_left(run_id) and self._claims.is_mine(run_id)

    def is_alive(self, workload_id: str) -> bool:
        """See :meth:`air_executor.runs.backend.RunBackend.is_alive`."""
        runs = [run for run in self._followed.live().values() if run.identity.workload_id == workload_id]
        return any(run.last_beat_s() is not None for run in runs)

    def last_beat_s(self, run_id: str) -> float | None:
        """See :meth:`air_executor.runs.backend.RunBackend.last_beat_s`: as its host tells Temporal."""
        return None if (run := self._followed.get(run_id)) is None else run.last_beat_s()

    def launchers(self) -> None:
        """See :meth:`air_executor.runs.backend.RunBackend.launchers`: each host has metrics of its own."""

    # News

    def ends(self) -> list[str]:
        """See :meth:`air_executor.runs.backend.RunBackend.ends`."""
        return self._followed.ended()

    def take_ends(self) -> list[RunRecord]:
        """See :meth:`air_executor.runs.backend.RunBackend.take_ends`."""
        return self._followed.take()

    def acknowledge(self, record: RunRecord) -> RunRecord:
        """See :meth:`air_executor.runs.backend.RunBackend.acknowledge`."""
        return self._store.mark_reported(record)

    def has_news(self) -> bool:
        """See :meth:`air_executor.runs.backend.RunBackend.has_news`."""
        return bool(self._followed.ended())

    def fileno(self) -> int | None:
        """See :meth:`air_executor.runs.backend.RunBackend.fileno`."""
        return self._followed.fileno()

    def due_in_s(self) -> float | None:
        """See :meth:`air_executor.runs.backend.RunBackend.due_in_s`."""
        return None
