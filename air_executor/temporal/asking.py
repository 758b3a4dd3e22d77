"""Questions to Temporal that more than one part has."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta, timezone
from typing import Any

import orjson
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, DescribeTaskQueueRequest
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from air_executor.temporal.workflow import NAME, TAKEOVERS

#: An answer may take so long.
ANSWER = timedelta(seconds=10)


async def namespace(client: Client, timeout: timedelta = ANSWER) -> None:
    """Ask whether Temporal is there, and lets us into our namespace.

    :raises RPCError: it is not, or does not.
    """
    request = DescribeNamespaceRequest(namespace=client.namespace)
    await client.workflow_service.describe_namespace(request, timeout=timeout)


async def queue(
    client: Client, name: str, kind: TaskQueueType.ValueType = TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY
) -> Any:
    """Return what Temporal knows of a task queue, with how much waits there.

    :raises RPCError: it can't be asked.
    """
    request = DescribeTaskQueueRequest(
        namespace=client.namespace, task_queue=TaskQueue(name=name), task_queue_type=kind, report_stats=True
    )
    return await client.workflow_service.describe_task_queue(request, timeout=ANSWER)


async def workflow(
    client: Client, workflow_id: str, execution: str | None = None
) -> WorkflowExecutionDescription | None:
    """Return what Temporal knows of an execution of a workflow, the last one unless it is named; ``None``: nothing.

    :raises RPCError: it can't be asked.
    """
    try:
        return await client.get_workflow_handle(workflow_id, run_id=execution).describe(rpc_timeout=ANSWER)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return None
        raise


@dataclass(frozen=True)
class Beat:
    """A sign of life of a run, as its host has given it to Temporal."""

    time_s: float
    """In seconds since the epoch."""
    host: str | None
    """The machine's name; ``None``: a worker of a former version does not say."""


@dataclass(frozen=True)
class Seen:
    """An execution of a workflow, as Temporal knows it."""

    is_open: bool
    runs: set[str]
    """The ids of the runs that it offers to hosts, or that are on one."""
    beats: dict[str, Beat]
    """The last sign of life of each of these that has given one."""
    takeovers: int = 0
    """How often executors have taken runs of it over from others."""


async def look(client: Client, workflow_id: str, execution: str) -> Seen | None:
    """Look at an execution of a workflow; ``None``: Temporal does not know it.

    :raises RPCError: it can't be asked.
    """
    found = await workflow(client, workflow_id, execution)
    if found is None:
        return None
    # An activity has the id of its run, and a number if it is not the first for that.
    if found.status != WorkflowExecutionStatus.RUNNING:
        return Seen(False, set(), {})  # one that was terminated still shows what it had
    activities = {a.activity_id[:36]: a for a in found.raw_description.pending_activities}
    beats = {run_id: _beat(a) for run_id, a in activities.items() if a.HasField("last_heartbeat_time")}
    return Seen(True, set(activities), beats, (await found.memo()).get(TAKEOVERS, 0))


def _beat(pending: Any) -> Beat:
    details = [orjson.loads(payload.data) for payload in pending.heartbeat_details.payloads]
    host = details[0].get("machine") if details else None
    return Beat(pending.last_heartbeat_time.ToDatetime(timezone.utc).timestamp(), host)


@dataclass(frozen=True)
class Known:
    """What a workflow says of itself."""

    runs: set[str]
    """The ids of all runs that it has had."""
    next_id: str | None
    """The id of the workflow that has later ones."""


async def known(client: Client, workflow_id: str, execution: str | None = None) -> Known | None:
    """Ask an execution of a workflow for its runs, the last one unless it is named; ``None``: Temporal knows none.

    :raises RPCError: Temporal can't be asked.
    :raises WorkflowQueryFailedError: the workflow can't say.
    """
    handle = client.get_workflow_handle(workflow_id, run_id=execution)
    try:
        found = await handle.query("known", rpc_timeout=ANSWER)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND or "closed before WorkflowTaskStarted" in error.message:
            return None  # or there was one that ended before anybody executed it
        raise
    return Known(set(found["runs"]), found["next"])


@dataclass(frozen=True)
class RunStatus:
    """What a workflow says of one of its runs."""

    id: str
    follower: str
    """The task queue of the executor that is told its end."""
    end: dict[str, Any] | None
    """Its end, as that one is told it."""


async def status(client: Client, workflow_id: str, execution: str, run_ids: list[str]) -> list[RunStatus]:
    """Ask an execution of a workflow for some of its runs. It answers for the first ones, if its answer is long.

    :raises RPCError: Temporal can't be asked, or knows no such execution.
    :raises WorkflowQueryFailedError: the workflow can't say.
    """
    handle = client.get_workflow_handle(workflow_id, run_id=execution)
    return [RunStatus(**each) for each in await handle.query("status", run_ids, rpc_timeout=ANSWER)]


def open_query(prefix: str) -> str:
    """Return Temporal's query for all workflows of ours that run.

    :param prefix: of the task queues' names, see :class:`.settings.Settings`.
    """
    return f"WorkflowType = '{NAME}' AND ExecutionStatus = 'Running' AND TaskQueue = '{prefix}'"
