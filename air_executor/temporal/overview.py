"""What Temporal knows of hosts, queues and runs, for people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta, timezone
from typing import Any

import orjson
from temporalio.api.enums.v1 import TaskQueueType, WorkerStatus
from temporalio.api.workflowservice.v1 import ListWorkersRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from air_executor.temporal import asking
from air_executor.temporal.settings import WORKER, Settings

#: A worker that has not reported for this many seconds is not shown; it reports four times in that time.
_SILENT_S = 60.0

#: At most this many workflows are looked into.
_MAX_WORKFLOWS = 100


@dataclass
class Host:
    """A worker on its host. What is not known is ``None``."""

    name: str
    queues: list[str] = field(default_factory=list)
    """Airflow's queues that it serves."""
    running: int | None = None
    cpu: float | None = None
    memory: float | None = None
    """How much of the host's CPUs and of its memory is in use, from 0 to 1."""
    started_at: str | None = None


@dataclass
class Queue:
    """One of Airflow's queues."""

    name: str
    waiting: int
    """Orders that no worker has taken yet; about."""
    workers: int


@dataclass
class HostedRun:
    """A run that a host has taken."""

    dag: str
    dag_run: str
    task: str
    """With map index and try."""
    host: str
    since: str


@dataclass
class Overview:
    """All of it."""

    hosts: list[Host]
    queues: list[Queue]
    runs: list[HostedRun]
    workflows: int
    """How many are open."""


async def look(client: Client, settings: Settings, queues: Iterable[str]) -> Overview:
    """Look at everything.

    :param queues: of Airflow, to be shown even if no worker serves them.
    :raises RPCError: Temporal can't be asked.
    """
    beats = await heartbeats(client, settings)
    hosts = await _pollers(client, settings) if beats is None else _hosts(beats, settings)
    names = sorted({*queues, *(name for host in hosts for name in host.queues)})
    query = asking.open_query(settings.prefix)
    runs: list[HostedRun] = []
    async for workflow in client.list_workflows(query, limit=_MAX_WORKFLOWS):
        runs += await _runs(client, workflow.id, await workflow.memo())
    count = (await client.count_workflows(query)).count
    return Overview(hosts, [await _queue(client, settings, name, beats) for name in names], runs, count)


async def heartbeats(client: Client, settings: Settings) -> list[Any] | None:
    """Return the last heartbeats of the workers of ours that live.

    :return: ``None``: the server has none of ours at all, as one of an earlier version or without heartbeats.
    :raises RPCError: Temporal can't be asked.
    """
    try:
        workers = await _workers(client)
    except RPCError as error:
        if error.status is not RPCStatusCode.UNIMPLEMENTED:
            raise
        return None
    starts = (f"{settings.prefix}.", f"{settings.prefix}@")
    ours = [each for each in workers if each.worker_identity.startswith(WORKER) and each.task_queue.startswith(starts)]
    return [each for each in ours if _lives(each)] if ours else None


def _lives(beat: Any) -> bool:
    is_old = beat.elapsed_since_last_heartbeat.ToTimedelta() > timedelta(seconds=_SILENT_S)
    return not is_old and beat.status != WorkerStatus.WORKER_STATUS_SHUTDOWN


def _hosts(beats: list[Any], settings: Settings) -> list[Host]:
    hosts: dict[tuple[str, str], Host] = {}
    prefix = f"{settings.prefix}."
    for each in beats:
        key = (each.worker_identity, each.host_info.worker_grouping_key)
        host = hosts.setdefault(key, Host(each.worker_identity.removeprefix(WORKER), running=0))
        if each.task_queue.startswith(prefix):
            host.queues.append(each.task_queue.removeprefix(prefix))
        host.running = (host.running or 0) + each.activity_task_slots_info.current_used_slots
        host.cpu = round(each.host_info.current_host_cpu_usage, 3)
        host.memory = round(each.host_info.current_host_mem_usage, 3)
        host.started_at = _moment(each.start_time)
    for host in hosts.values():
        host.queues.sort()
    return sorted(hosts.values(), key=lambda host: host.name)


async def _workers(client: Client) -> list[Any]:
    """Return the last heartbeats of all workers."""
    found: list[Any] = []
    request = ListWorkersRequest(namespace=client.namespace)
    while True:
        answer = await client.workflow_service.list_workers(request)
        found += [info.worker_heartbeat for info in answer.workers_info]
        if not answer.next_page_token:
            return found
        request.next_page_token = answer.next_page_token


async def _pollers(client: Client, settings: Settings) -> list[Host]:
    described = await asking.queue(client, settings.prefix, TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW)
    names = {poller.identity for poller in described.pollers if poller.identity.startswith(WORKER)}
    return [Host(name.removeprefix(WORKER)) for name in sorted(names)]


async def _queue(client: Client, settings: Settings, name: str, beats: list[Any] | None) -> Queue:
    described = await asking.queue(client, settings.queue(name))
    if beats is None:
        workers = {poller.identity for poller in described.pollers}
    else:  # also those that are full, and do not poll
        workers = {beat.worker_instance_key for beat in beats if beat.task_queue == settings.queue(name)}
    return Queue(name, int(described.stats.approximate_backlog_count), len(workers))


async def _runs(client: Client, workflow_id: str, memo: Any) -> list[HostedRun]:
    found = await asking.workflow(client, workflow_id)
    if found is None:
        return []  # it has just ended
    runs = []
    for each in found.raw_description.pending_activities:
        for payload in each.heartbeat_details.payloads:
            details = orjson.loads(payload.data)
            task, since = details.get("task", each.activity_id), _moment(each.last_started_time)
            runs.append(HostedRun(memo.get("dag", workflow_id), memo.get("dag_run", ""), task, details["host"], since))
    return runs


def _moment(timestamp: Any) -> str:
    return str(timestamp.ToDatetime(timezone.utc).isoformat())
