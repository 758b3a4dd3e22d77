"""The DAG runs that have open workflows."""

from __future__ import annotations

import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable

from temporalio.client import Client

from air_executor.runs.record import Identity
from air_executor.temporal import asking, cards


class DagRuns:
    """Knows the workflows of each DAG run: several, if it is long. May be used in several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[tuple[str, str], set[str]] = {}
        #: The workflow that takes the orders of a DAG run, if that is not its first.
        self._newest: dict[tuple[str, str], str] = {}

    def workflow_id(self, who: Identity) -> str:
        """Return the id of the workflow that takes the next order.

        :raises ProtocolError: the ids of DAG and DAG run are too long.
        """
        return self._newest.get((who.dag_id or "", who.dag_run_id or ""), cards.workflow_id(who))

    def add(self, dag_id: str | None, dag_run_id: str | None, workflow_id: str) -> None:
        """Note an open workflow; those of other workloads than tasks end by themselves.

        If it is not the DAG run's first, it takes later orders: the history of the former is long enough.
        """
        if dag_id is None or dag_run_id is None:
            return
        dag_run = (dag_id, dag_run_id)
        with self._lock:
            self._open.setdefault(dag_run, set()).add(workflow_id)
            number = cards.number(dag_id, dag_run_id, workflow_id)
            if number > cards.number(dag_id, dag_run_id, self._newest.get(dag_run, "")):
                self._newest[dag_run] = workflow_id

    def add_successor(self, who: Identity, workflow_id: str) -> None:
        """Let another workflow take later orders of a DAG run."""
        self.add(who.dag_id, who.dag_run_id, workflow_id)

    def without(self, busy: set[str]) -> list[tuple[str, str]]:
        """Return the DAG runs, as DAG and run id, none of whose workflows is one of these."""
        with self._lock:
            return [dag_run for dag_run, workflow_ids in self._open.items() if not workflow_ids & busy]

    def remove(self, dag_id: str, dag_run_id: str) -> set[str]:
        """Forget a DAG run, and return the ids of its workflows."""
        with self._lock:
            self._newest.pop((dag_id, dag_run_id), None)
            return self._open.pop((dag_id, dag_run_id), set())


async def workflow_of(client: Client, run_id: str, who: Identity) -> str | None:
    """Return the id of the workflow that has a run: its DAG run's first, or a later one. ``None``: none has it.

    :raises RPCError: Temporal can't be asked.
    :raises WorkflowQueryFailedError: one of the workflows can't say.
    """
    first_id = cards.workflow_id(who)
    first = await asking.known(client, first_id)
    if first is not None and run_id in first.runs:
        return first_id
    async for workflow_id, known in successors(functools.partial(asking.known, client), who, first_id, first):
        if run_id in known.runs:
            return workflow_id
    return None


async def successors(
    ask: Callable[[str], Awaitable[asking.Known | None]], who: Identity, workflow_id: str, known: asking.Known | None
) -> AsyncIterator[tuple[str, asking.Known]]:
    """Yield the ids of the workflows after one of a DAG run, each with what it says of itself.

    :param ask: asks a workflow for that.
    :param known: what the first one says, if it says anything.
    """
    while True:
        # A workflow that was executed anew does not know of those that its former execution has begun.
        next_id = known.next_id if known is not None and known.next_id else cards.successor_id(who, workflow_id)
        if next_id is None or (known := await ask(next_id)) is None:
            return
        yield next_id, known
        workflow_id = next_id
