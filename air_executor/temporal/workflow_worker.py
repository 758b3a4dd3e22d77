"""Who executes the workflows of DAG runs: each executor and each host's worker, whichever Temporal asks."""

from __future__ import annotations

from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from air_executor.temporal.workflow import DagRunWorkflow


def workflow_worker(client: Client, task_queue: str) -> Worker:
    """Return a worker for the workflows of a task queue, to be entered.

    A replay of a long history has to fit into the ten seconds that Temporal grants, on a machine that is busy with
    tasks. Temporal's sandbox, which finds code that is not deterministic, takes 60 % of its time. So the sandbox is for
    the tests, which replay histories in it.
    """
    return Worker(
        client, task_queue=task_queue, workflows=[DagRunWorkflow], workflow_runner=UnsandboxedWorkflowRunner()
    )
