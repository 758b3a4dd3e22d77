"""The pages in Airflow's UI: what they ask the API server for, and who may ask.

Everything is read from the state directory, so the API server has to run where that is. A user sees the runs of the
dags that they may read; jobs and launchers, who may see Airflow's own jobs. To stop a run, a user needs the right to
change its task instance. This module is imported with the first request: Airflow's other processes never need it.
"""

from __future__ import annotations

import os
from functools import cached_property
from typing import Annotated, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import AccessView, DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.models.log import Log
from airflow.utils.session import create_session
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from air_executor import config, jsontext
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
    def live(request: Request, user: GetUserDep) -> Response:
        runs, sight = _runs(), _Sight(request, user)
        shown: dict[str, Any] = {"launchers": [], "budget": None, "waiting": []}
        if sight.sees_others:
            shown = documents.machine(runs, sight.sees_dag)
        return _json({**shown, "runs": documents.live(runs, sight.sees, sight.may_stop_of(runs))})

    @app.get("/api/ended")
    def ended(request: Request, user: GetUserDep) -> Response:
        return _json({"runs": documents.ended(_runs(), _Sight(request, user).sees)})

    @app.get("/api/runs/{run_id}")
    def one(run_id: str, request: Request, user: GetUserDep) -> Response:
        runs, sight = _runs(), _Sight(request, user)
        return _json(documents.run(runs, _find(runs, run_id, sight), sight.may_stop_of(runs)))

    @app.get("/api/instance", dependencies=[Depends(requires_access_dag("GET", DagAccessEntity.TASK_INSTANCE))])
    def instance(
        dag_id: str, run_id: str, task_id: str, request: Request, user: GetUserDep, map_index: int = -1
    ) -> Response:
        runs = _runs()
        may_stop = _Sight(request, user).may_stop_of(runs)
        return _json({"runs": documents.instance(runs, dag_id, run_id, task_id, map_index, may_stop)})

    @app.get("/api/jobs")
    def jobs(request: Request, user: GetUserDep) -> Response:
        is_shown = _Sight(request, user).sees_others
        return _json(documents.jobs(_runs()) if is_shown else {"jobs": [], "left_out": 0})

    @app.get("/api/jobs/{name}")
    def job(name: str, request: Request, user: GetUserDep) -> Response:
        if not _Sight(request, user).sees_others:
            raise HTTPException(403, "Forbidden")
        return _json(documents.job(_runs(), name))

    @app.post("/api/runs/{run_id}/stop")
    def stop(
        run_id: str, request: Request, user: GetUserDep, asked: Annotated[str | None, Header(alias=HEADER)] = None
    ) -> Response:
        if asked is None:
            raise HTTPException(403, f"the header {HEADER} is missing")
        runs, sight = _runs(), _Sight(request, user)
        record = _find(runs, run_id, sight)
        who = record.identity
        if who.dag_id is None or who.task_id is None:
            raise HTTPException(403, "only runs of tasks are stopped here")
        if not sight.edits(who.dag_id):
            raise HTTPException(403, "Forbidden")
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
        return _json({"id": record.id})

    return app


class _Sight:
    """What a user may see, and do, for one request."""

    def __init__(self, request: Request, user: Any) -> None:
        self._request, self._user, self._manager = request, user, get_auth_manager()
        self._edits: dict[str, bool] = {}

    @cached_property
    def _dag_ids(self) -> set[str]:
        return self._manager.get_authorized_dag_ids(user=self._user, method="GET")

    @cached_property
    def sees_others(self) -> bool:
        """Whether the user may see what belongs to no dag."""
        return self._manager.is_authorized_view(access_view=AccessView.JOBS, user=self._user)

    @cached_property
    def _sees_connections(self) -> bool:
        return self._manager.is_authorized_connection(method="GET", user=self._user)

    def sees_dag(self, dag_id: str | None) -> bool:
        """Tell whether the user may know of a DAG's tasks."""
        return self.sees_others if dag_id is None else dag_id in self._dag_ids

    def sees(self, who: Identity) -> bool:
        """Tell whether the user may see the runs of a workload. A connection's test has the connection's name."""
        return self.sees_dag(who.dag_id) and (who.kind != "connection_test" or self._sees_connections)

    def edits(self, dag_id: str) -> bool:
        """Tell whether the user may change the task instances of a dag."""
        if dag_id not in self._edits:
            check = requires_access_dag("PUT", DagAccessEntity.TASK_INSTANCE, dag_id)
            try:
                check(self._request, self._user)
                self._edits[dag_id] = True
            except HTTPException:
                self._edits[dag_id] = False
        return self._edits[dag_id]

    def may_stop_of(self, runs: AllRuns) -> documents.MayStop:
        """Return a function that tells which runs the user may stop here."""

        def may_stop(record: RunRecord) -> bool:
            who = record.identity
            is_here = who.dag_id is not None and who.task_id is not None and not runs.is_elsewhere(record.id)
            return is_here and self.edits(who.dag_id or "")

        return may_stop


def _json(document: dict[str, Any]) -> Response:
    # Not FastAPI's own: a reason may hold bytes that are no UTF-8.
    return Response(jsontext.dumps(document), media_type="application/json")


def _runs() -> AllRuns:
    """Return the runs of the scheduler's state directory.

    :raises HTTPException: it is not here.
    :raises StateDirError: it can't be used.
    """
    state_dir = config.plain_state_dir()
    if not os.path.isdir(state_dir):  # nor can it be looked at
        raise HTTPException(503, f"{state_dir} is not here: the API server shows what runs on its own machine")
    check_state_dir(state_dir, is_looking=True)
    return AllRuns(state_dir)


def _find(runs: AllRuns, run_id: str, sight: _Sight) -> RunRecord:
    record = _known(runs, run_id)
    if record is None or not sight.sees(record.identity):
        raise HTTPException(404, f"there is no run {run_id}")
    return record


def _known(runs: AllRuns, run_id: str) -> RunRecord | None:
    try:
        return runs.settled(runs.store_of(run_id).read(run_id))
    except AirExecutorError:
        return None
