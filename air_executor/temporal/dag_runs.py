"""The DAG runs that have open workflows."""

from __future__ import annotations

import threading

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
    first = cards.workflow_id(who)
    next_id: str | None = first
    while next_id is not None:
        found = await asking.known(client, next_id)
        if found is not None and run_id in found.runs:
            return next_id
        if found is None and next_id != first:
            return None
        # A workflow that was executed anew does not know of those that its former execution has begun.
        next_id = (found.next_id if found is not None else None) or cards.successor_id(who, next_id)
    return None
