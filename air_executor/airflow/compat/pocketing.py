"""What a run of one DAG needs of Airflow beside its public interface: its parts, and the way of a DAG into them."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from air_executor.airflow.compat.version import AIRFLOW_VERSION

if TYPE_CHECKING:
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy.orm import Session


#: The module that reads DAGs.
_BAGS = "airflow.dag_processing.dagbag" if AIRFLOW_VERSION >= (3, 2) else "airflow.models.dagbag"


def import_what_all_need() -> None:
    """Import what the parts have in common, so that they share its memory, and the time that it takes."""
    import airflow.dag_processing.bundles.manager
    import airflow.jobs.job
    import airflow.jobs.triggerer_job_runner
    import airflow.models
    import airflow.models.dagbag
    import airflow.models.serialized_dag
    import airflow.models.xcom
    import airflow.sdk.definitions.dag
    import airflow.serialization.serialized_objects
    import airflow.settings
    import airflow.utils.db  # noqa: F401


def make_database() -> None:
    """Make Airflow's tables in the configured database, which is empty."""
    from airflow.utils.db import initdb

    initdb()


def serve_execution_api(listener: socket.socket) -> None:
    """Be an API server for tasks only, as ``airflow api-server --apps execution`` is. Returns when it gets SIGTERM."""
    os.environ["AIRFLOW_API_APPS"] = "execution"
    serve_own_version_only()
    import uvicorn
    from airflow.api_fastapi.main import app

    options = {"access_log": False, "log_config": None, "log_level": "warning", "timeout_graceful_shutdown": 1}
    uvicorn.Server(uvicorn.Config(app, **options)).run(sockets=[listener])  # type: ignore[arg-type]


def serve_own_version_only() -> None:
    """Leave out the API's former versions: who asks is of this version. To make them takes seconds, once."""
    if AIRFLOW_VERSION >= (3, 4):
        return  # nobody has tried
    import airflow.api_fastapi.execution_api.routes as routes
    import airflow.api_fastapi.execution_api.versions as versions
    from cadwyn import HeadVersion, Version, VersionBundle
    from cadwyn.route_generation import _DELETED_ROUTE_TAG

    versions.bundle = VersionBundle(HeadVersion(), Version(versions.bundle.versions[0].value))
    for router in (routes.execution_api_router, routes.authenticated_router):
        router.routes[:] = [route for route in router.routes if _DELETED_ROUTE_TAG not in getattr(route, "tags", ())]


def be_scheduler(wait: Callable[[], None]) -> None:
    """Be a scheduler, as ``airflow scheduler`` is. Returns when it gets SIGTERM.

    :param wait: called when all is imported; returns when there is something to schedule.
    """
    from airflow.executors.executor_loader import ExecutorLoader
    from airflow.jobs.job import Job, run_job
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner

    for name in ExecutorLoader.get_executor_names():
        ExecutorLoader.import_executor_cls(name)
    wait()
    runner = SchedulerJobRunner(job=Job())
    run_job(job=runner.job, execute_callable=runner._execute)


def be_triggerer() -> None:
    """Be a triggerer, as ``airflow triggerer`` is. Returns when it gets SIGTERM."""
    from airflow.jobs.job import Job, run_job
    from airflow.jobs.triggerer_job_runner import TriggererJobRunner

    runner = TriggererJobRunner(job=Job())
    run_job(job=runner.job, execute_callable=runner._execute)


def be_dag_processor(files: Sequence[str]) -> None:
    """Be a DAG processor, until it has executed the callbacks that wait.

    :param files: the only ones that it reads, whether Airflow would list them or not.
    """
    from airflow.dag_processing.manager import DagFileProcessorManager
    from airflow.jobs.dag_processor_job_runner import DagProcessorJobRunner
    from airflow.jobs.job import Job, run_job
    from airflow.utils.file import correct_maybe_zipped

    class UntilAllAreCalled(DagFileProcessorManager):
        """Ends when it has read each file, and has executed what it has fetched meanwhile."""

        def _find_files_in_bundle(self, bundle: Any) -> list[Path]:
            found = {Path(str(correct_maybe_zipped(file))) for file in files}
            return sorted(path.relative_to(bundle.path) for path in found if path.is_relative_to(bundle.path))

        def _add_callback_to_queue(self, request: Any) -> None:
            # Airflow asks for the file inside an archive, which the processor can't read; give it the archive.
            for file in files:
                inside = len(file) - len(str(correct_maybe_zipped(file)))
                if inside and file.endswith(os.sep + request.filepath):
                    request.filepath = request.filepath[:-inside]
            super()._add_callback_to_queue(request)

        def max_runs_reached(self) -> bool:
            # A callback that comes while its file is being read is executed when that is read again.
            is_busy = self._callback_to_execute or self._processors or not self._file_stats
            return not is_busy and all(stat.run_count for stat in self._file_stats.values())

    runner = DagProcessorJobRunner(job=Job(), processor=UntilAllAreCalled(max_runs=-1))
    run_job(job=runner.job, execute_callable=runner._execute)


def read_dags(path: Path, bundle: Path, bundle_name: str) -> Any:
    """Return the bag of the DAGs in a file or folder: ``dags`` by id, and ``import_errors`` by relative path."""
    bags: Any = importlib.import_module(_BAGS)
    options: dict[str, Any] = {"bundle_path": bundle, "load_op_links": False}
    if AIRFLOW_VERSION >= (3, 2):
        options["bundle_name"] = bundle_name
    if not path.is_dir():
        options["safe_mode"] = False  # a file that was named is read, whatever is in it
    return bags.DagBag(dag_folder=path, **options)


def check_serializable(dag: Any) -> None:
    """Check that a DAG can be saved.

    :raises Exception: it can't, for one of many reasons.
    """
    from airflow.serialization.serialized_objects import LazyDeserializedDAG

    LazyDeserializedDAG.from_dag(dag)


def save_dags(bag: Any, bundle_name: str) -> None:
    """Have the database know the bundle, and the DAGs of a bag: they are active, and not paused."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.models.dag import DagModel
    from airflow.utils.session import create_session
    from sqlalchemy import update

    DagBundlesManager().sync_bundles_to_db()
    importlib.import_module(_BAGS).sync_bag_to_db(bag, bundle_name, None)
    with create_session() as session:
        session.execute(update(DagModel).values(is_paused=False))


def trigger(dag_id: str, run_id: str | None, conf: dict[str, Any], logical_date: datetime) -> str:
    """Create a DAG run, and return its id.

    :raises ValueError: ``conf`` or the date does not fit the DAG. Airflow's own exceptions are of this kind, or of
        ``AirflowException``.
    """
    from airflow.api.common.trigger_dag import trigger_dag
    from airflow.utils.types import DagRunTriggeredByType

    run = trigger_dag(
        dag_id=dag_id,
        triggered_by=DagRunTriggeredByType.CLI,
        run_id=run_id,
        conf=conf,
        logical_date=logical_date,
        replace_microseconds=False,
    )
    assert run is not None
    return str(run.run_id)


def needs_triggerer(session: Session) -> bool:
    """Tell whether something is deferred."""
    from airflow.jobs.triggerer_job_runner import TriggererJobRunner

    return bool(TriggererJobRunner.is_needed(session=session))


def has_callbacks(session: Session) -> bool:
    """Tell whether callbacks wait for a DAG processor."""
    from airflow.models.db_callback_request import DbCallbackRequest
    from sqlalchemy import select

    return session.scalar(select(DbCallbackRequest.id).limit(1)) is not None


def clear_interrupted(ti: TaskInstance, session: Session) -> None:
    """Have a task run again that was interrupted, in a new try that costs none of its retries."""
    from airflow.models.taskinstance import clear_task_instances

    max_tries = ti.max_tries + 1
    ti.state = "failed"  # one that is running would wait for its runner to notice
    clear_task_instances([ti], session, dag_run_state=False)
    ti.max_tries = max_tries
