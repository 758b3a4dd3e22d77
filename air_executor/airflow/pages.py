"""The pages in Airflow's UI: what they ask the API server for, and who may ask.

Everything is read from the state directory, so the API server has to run where that is. A user sees the runs of the
dags that they may read; jobs and launchers, who may see Airflow's own jobs. To stop a run, a user needs the right to
change its task instance. This module is imported with the first request: Airflow's other processes never need it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import AccessView, DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.models.log import Log
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskinstancehistory import TaskInstanceHistory
from airflow.utils.session import create_session
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse
from sqlalchemy import select

from air_executor import config
from air_executor.errors import AirExecutorError, UnknownJobError
from air_executor.machine.ownership import check_state_dir
from air_executor.observe.everywhere import AllRuns
from air_executor.observe.stopping import stop_here
from air_executor.runs.record import Identity, RunRecord
from air_executor.web import STATIC, documents

#: Name of the entry in Airflow's audit log for a run that was stopped here.
STOP_EVENT = "air_executor stop"

#: A request that changes something has this header. A page of another site can't send it.
HEADER = "X-Air-Executor"


def make_app() -> FastAPI:
    """Return the app that the API server serves below ``/air-executor``."""
    app = FastAPI(title="AirExecutor", docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(AirExecutorError)
    def tell(_: Request, error: AirExecutorError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=404 if isinstance(error, UnknownJobError) else 409)

    @app.get("/static/{name}")
    def static(name: str) -> FileResponse:
        if name not in {path.name for path in STATIC.iterdir()}:
            raise HTTPException(404)
        return FileResponse(STATIC / name, headers={"Cache-Control": "no-cache"})

    @app.get("/api/runs")
    def live(user: GetUserDep) -> dict[str, Any]:
        runs, sees = _runs(), _Sight(user)
        shown = documents.machine(runs) if sees.others else {"launchers": [], "budget": None, "waiting": []}
        return {**shown, "runs": documents.live(runs, sees), "may_stop": True}

    @app.get("/api/ended")
    def ended(user: GetUserDep) -> dict[str, Any]:
        return {"runs": documents.ended(_runs(), _Sight(user))}

    @app.get("/api/runs/{run_id}")
    def one(run_id: str, user: GetUserDep) -> dict[str, Any]:
        runs = _runs()
        return documents.run(runs, _find(runs, run_id, _Sight(user)))

    @app.get("/api/instance", dependencies=[Depends(requires_access_dag("GET", DagAccessEntity.TASK_INSTANCE))])
    def instance(dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, Any]:
        runs = _runs()
        found = []
        for each in _run_ids(dag_id, run_id, task_id, map_index):
            record = _known(runs, each)
            if record is not None and record.identity.dag_id == dag_id:
                found.append(documents.run(runs, record))
        return {"runs": found}

    @app.get("/api/jobs")
    def jobs(user: GetUserDep) -> dict[str, Any]:
        return documents.jobs(_runs()) if _Sight(user).others else {"jobs": [], "left_out": 0}

    @app.get("/api/jobs/{name}")
    def job(name: str, user: GetUserDep) -> dict[str, Any]:
        if not _Sight(user).others:
            raise HTTPException(403, "Forbidden")
        return documents.job(_runs(), name)

    @app.post("/api/runs/{run_id}/stop")
    def stop(
        run_id: str, request: Request, user: GetUserDep, asked: Annotated[str | None, Header(alias=HEADER)] = None
    ) -> dict[str, Any]:
        if asked is None:
            raise HTTPException(403, f"the header {HEADER} is missing")
        runs = _runs()
        record = _find(runs, run_id, _Sight(user))
        who = record.identity
        if who.dag_id is None or who.task_id is None:
            raise HTTPException(403, "only runs of tasks are stopped here")
        requires_access_dag("PUT", DagAccessEntity.TASK_INSTANCE, who.dag_id)(request, user)
        if runs.is_elsewhere(record.id):
            raise HTTPException(409, f"it runs on {record.host}: mark its task in Airflow, or use air-executor stop")
        name = user.get_name()
        stop_here(runs, runs.settled(record), f"stopped in Airflow's UI, by {name}")
        with create_session(scoped=False) as session:
            session.add(
                Log(
                    event=STOP_EVENT,
                    owner=name,
                    extra=f"run {record.id}",
                    dag_id=who.dag_id,
                    task_id=who.task_id,
                    run_id=who.dag_run_id,
                    map_index=who.map_index,
                    try_number=who.try_number,
                )
            )
        return {"id": record.id}

    return app


class _Sight:
    """Tells which runs a user may see."""

    def __init__(self, user: Any) -> None:
        manager = get_auth_manager()
        self._dag_ids = manager.get_authorized_dag_ids(user=user, method="GET")
        self.others: bool = manager.is_authorized_view(access_view=AccessView.JOBS, user=user)
        """Whether the user may see what belongs to no dag."""

    def __call__(self, who: Identity) -> bool:
        return self.others if who.dag_id is None else who.dag_id in self._dag_ids


def _runs() -> AllRuns:
    """Return the runs of the scheduler's state directory.

    :raises HTTPException: it is not here.
    :raises StateDirError: it can't be used.
    """
    state_dir = config.plain_state_dir()
    if not Path(state_dir).is_dir():
        raise HTTPException(503, f"{state_dir} is not here: the API server shows what runs on its own machine")
    check_state_dir(state_dir, is_looking=True)
    return AllRuns(state_dir)


def _find(runs: AllRuns, run_id: str, sees: _Sight) -> RunRecord:
    record = _known(runs, run_id)
    if record is None or not sees(record.identity):
        raise HTTPException(404, f"there is no run {run_id}")
    return record


def _known(runs: AllRuns, run_id: str) -> RunRecord | None:
    try:
        return runs.settled(runs.store_of(run_id).read(run_id))
    except AirExecutorError:
        return None


def _run_ids(dag_id: str, run_id: str, task_id: str, map_index: int) -> list[str]:
    """Return the ids of the last run of each try of a task instance, the last try first."""
    found: dict[int, str] = {}
    with create_session(scoped=False) as session:
        for model in (TaskInstanceHistory, TaskInstance):
            columns: Any = select(model.try_number, model.external_executor_id)
            query = columns.where(
                model.dag_id == dag_id, model.run_id == run_id, model.task_id == task_id, model.map_index == map_index
            )
            found.update((number, run) for number, run in session.execute(query) if run)
    return [found[number] for number in sorted(found, reverse=True)]
