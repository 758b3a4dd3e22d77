"""An order as it stands in Temporal: a card that people can read, with its secret part sealed."""

from __future__ import annotations

import os
import time
from typing import Any

from air_executor import jsontext
from air_executor.errors import ProtocolError
from air_executor.runs.backend import RunRequest
from air_executor.runs.record import Identity, RunRecord
from air_executor.temporal.settings import MAX_ORDER, Settings

#: Workflow ids have at most 1,000 bytes.
_MAX_ID = 900

#: Keys by which Temporal shares workers fairly have at most 64 bytes; a character may have four.
_MAX_FAIRNESS = 16


def workflow_id(who: Identity) -> str:
    """Return the id of the workflow that has the runs of a DAG run; of other workloads, each has its own."""
    if who.job_name is not None:
        return f"air-job-{who.job_name}-{who.workload_id}"
    if who.dag_run_id is None:
        return f"airflow-{who.kind}-{who.workload_id}"
    name = _of_dag_run(who.dag_id, who.dag_run_id)
    if len(name.encode()) > _MAX_ID:
        raise ProtocolError(f"the ids of DAG and DAG run have more than {_MAX_ID} bytes, too many for Temporal")
    return name


def _of_dag_run(dag_id: str | None, dag_run_id: str) -> str:
    return f"airflow-{dag_id}-{dag_run_id}"


def number(dag_id: str, dag_run_id: str, workflow_id: str) -> int:
    """Return which workflow of a DAG run one is, from 1, by the id that its predecessor gave it."""
    text = workflow_id.removeprefix(f"{_of_dag_run(dag_id, dag_run_id)}~")
    return int(text) if text != workflow_id and text.isdecimal() else 1


def successor_id(who: Identity, workflow_id: str) -> str | None:
    """Return the id of the workflow after this one of a DAG run; ``None``: what is no DAG run's has but one."""
    if who.dag_id is None or who.dag_run_id is None:
        return None
    return f"{_of_dag_run(who.dag_id, who.dag_run_id)}~{number(who.dag_id, who.dag_run_id, workflow_id) + 1}"


def summary(who: Identity) -> str:
    """Return a run's title in Temporal's UI."""
    attempt = f" try {who.try_number}" if who.try_number is not None else ""
    return f"{who.task_id or who.name}{who.index}{attempt}"[:200]


def card(request: RunRequest, record: RunRecord, settings: Settings) -> dict[str, Any]:
    """Return the card of a run.

    :raises ProtocolError: it is too large for Temporal, or its secret part no JSON.
    """
    who = request.identity
    secret = {"workload": request.workload, "air": request.air}
    try:
        sealed = settings.seal(jsontext.dumps(secret))
    except TypeError as error:
        raise ProtocolError(f"the order is no JSON: {error}") from None
    if len(sealed) > MAX_ORDER:
        raise ProtocolError(f"the order takes {len(sealed)} bytes, and Temporal takes {MAX_ORDER} at most")
    return {
        "id": request.id,
        "identity": {name: value for name, value in vars(who).items() if value is not None},
        "summary": summary(who),
        "queue": settings.queue(who.queue),
        "limits": record.limits,
        "priority": _priority(request.workload),
        "fairness": (who.team or who.dag_id or who.kind)[:_MAX_FAIRNESS],
        "until": time.time() + settings.wait_s,
        "server": request.server,
        "sealed": sealed,
    }


def _priority(workload: dict[str, Any]) -> int:
    """Return Temporal's priority, 1 (first) to 5, for Airflow's, a number of any size that is 1 by default."""
    weight = (workload.get("ti") or {}).get("priority_weight", 1)
    return next((key for key, least in ((1, 100), (2, 10), (3, 2), (4, 1)) if weight >= least), 5)


def request(card: dict[str, Any], settings: Settings) -> RunRequest:
    """Return the order of a card, with the paths and addresses of this host.

    :raises ProtocolError: it can't be understood, or no key here opens it.
    """
    secret = jsontext.loads(settings.unseal(card["sealed"]))
    log_path = secret["workload"].get("log_path")
    here = {
        "server": settings.server or card.get("server"),
        "log_file": os.path.join(settings.log_folder, log_path) if log_path else None,
    }
    return RunRequest.from_message({**card, **secret, **here})
