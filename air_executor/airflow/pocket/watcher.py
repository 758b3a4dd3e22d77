"""The part that reads the DAG, begins its run, and tells what becomes of it, until it has ended."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from air_executor import jsontext
from air_executor.airflow.compat import AIRFLOW_VERSION, pocketing
from air_executor.airflow.pocket import database, source, state
from air_executor.airflow.pocket.telling import tell, tell_error
from air_executor.errors import AirExecutorError
from air_executor.pocket.folder import RunFolder
from air_executor.pocket.leftover import live_runs, stop_runs
from air_executor.pocket.request import DagError, Request
from air_executor.pocket.settings import BUNDLE
from air_executor.runs.store import RunStore

if TYPE_CHECKING:
    from airflow.sdk import DAG
    from sqlalchemy.orm import Session

#: How often to look at the database, in seconds: less often when that takes long, but at least so often.
_LOOK_S, _SHARE, _MOST_S = 0.2, 20, 2.0

#: Airflow asks for a DAG's callback this many seconds after it has committed the end of the run, at most.
_ASKED_S = 5.0

#: How long callbacks may take when all else has ended, in seconds.
_CALLBACKS_S = 120.0

#: The exit code of a run that was interrupted.
INTERRUPTED = 130


def watch(folder: RunFolder, request: Request, main: socket.socket, *, has_moved: bool, takes_up: bool) -> None:
    """Be the watcher. Leaves with the exit code of the command.

    :param main: takes names of parts that are wanted, and gives the word that the run is interrupted.
    :param has_moved: the API listens at another port than that of the run's former Airflow.
    :param takes_up: what a former Airflow of the run has left is taken up.
    """
    try:
        code = _Watcher(folder, request, main).work(has_moved=has_moved, takes_up=takes_up)
    except AirExecutorError as error:
        code = tell_error(error)
    raise SystemExit(code)


class _Watcher:
    """Watches one run."""

    def __init__(self, folder: RunFolder, request: Request, main: socket.socket) -> None:
        self._folder, self._request, self._main = folder, request, main
        self._dag_id = self._run_id = ""
        #: Whether a DAG processor is executing callbacks (it exits by itself), and whether one was started after the
        #: run ended.
        self._is_calling_back = self._was_asked = False
        #: When the run was seen to have ended, on the monotonic clock.
        self._ended_s: float | None = None
        self._others: list[str] = []

    def work(self, *, has_moved: bool, takes_up: bool) -> int:
        """Work until the run has ended, and return the exit code."""
        dag = self._begin(has_moved=has_moved, takes_up=takes_up)
        instances = state.Instances(self._dag_id, self._run_id)
        from airflow.utils.session import create_session

        while True:
            began_s = time.monotonic()
            with create_session() as session:
                changed = list(instances.changes(session))
                end = self._end(session)
                if pocketing.needs_triggerer(session):
                    self._want("triggerer")
                self._call_back(session)
            took_s = time.monotonic() - began_s
            for task in changed:
                tell("task", **task)
            if end is not None and self._is_over(dag, end):
                return self._finish(dag, end, instances)
            if self._is_interrupted(min(_MOST_S, max(_LOOK_S, _SHARE * took_s))):
                return self._stop()

    def _begin(self, *, has_moved: bool, takes_up: bool) -> DAG:
        """Read the DAG, and begin its run, or go on with it."""
        bag, dag = source.read(self._request)
        note = self._folder.path / "run.json"
        goes_on = self._folder.has_begun()
        database.fill(self._request, is_new=not goes_on)
        source.drop_unfit(bag, dag, database.pools())
        if goes_on:
            begun = jsontext.loads(note.read_bytes())
            if begun["airflow"] != list(AIRFLOW_VERSION):
                version = ".".join(map(str, begun["airflow"]))
                raise DagError(f"the run was begun with Airflow {version}; --restart begins it anew with this one")
        pocketing.save_dags(bag, BUNDLE)
        if goes_on:
            self._dag_id, self._run_id = begun["dag_id"], begun["run_id"]
            if takes_up:
                self._take_up(has_moved=has_moved)
        else:
            self._dag_id, self._run_id = dag.dag_id, self._trigger(dag)
            begun = {"dag_id": self._dag_id, "run_id": self._run_id, "airflow": list(AIRFLOW_VERSION)}
        files = sorted({each.fileloc for each in bag.dags.values()})
        self._folder.write("run.json", {**begun, "files": files})
        self._want("scheduler")
        tell("dag", dag_id=self._dag_id, run_id=self._run_id, tasks=source.order(dag), goes_on=goes_on)
        return dag

    def _take_up(self, *, has_moved: bool) -> None:
        """Have what was interrupted run again. What still runs is left alone, for the executor to take over."""
        from airflow.utils.session import create_session

        store, reason = RunStore(self._folder.state_dir), "the command was interrupted"
        if has_moved:
            tell("warning", warning="the run's API has another port than before: what still ran is begun again")
        # What was asked to stop would end as a failure.
        asked = {run.id for run in live_runs(self._folder.state_dir) if has_moved or store.stop_request(run.id)}
        stopping = {state.key_of(run) for run in live_runs(self._folder.state_dir) if run.id in asked}
        stop_runs(self._folder.state_dir, reason, lambda run: run.id in asked)
        running = {state.key_of(run) for run in live_runs(self._folder.state_dir)}
        with create_session() as session:
            state.clear(session, ({*state.unfinished(session)} - running) | stopping)

    def _trigger(self, dag: DAG) -> str:
        from airflow.sdk.exceptions import AirflowException

        text = self._request.logical_date
        try:
            date = datetime.fromisoformat(text) if text else datetime.now(tz=timezone.utc)
        except ValueError as error:
            raise DagError(f"--logical-date {text!r} is no date in ISO 8601: {error}") from None
        date = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
        try:
            return pocketing.trigger(dag.dag_id, self._request.run_id, self._request.conf, date)
        except (AirflowException, ValueError) as error:
            raise DagError(f"DAG {dag.dag_id} can't be run so: {error}") from None

    def _want(self, part: str) -> None:
        self._main.send(part.encode())

    def _end(self, session: Session) -> str | None:
        """Return the state of the run if it has ended, and so have those that it has triggered."""
        runs = state.dag_runs(session)
        own = runs.get((self._dag_id, self._run_id), "failed")  # somebody has deleted it
        if own not in state.ENDED:
            return None
        # Another run of the same DAG may start the next, and so on.
        others = sorted(
            {dag_id for (dag_id, _), now in runs.items() if now not in state.ENDED and dag_id != self._dag_id}
        )
        if others and others != self._others:
            tell("warning", warning=f"waiting for runs that it has triggered: {', '.join(others)}")
        self._others = others
        return None if others else own

    def _call_back(self, session: Session) -> None:
        """Have the DAG processor execute callbacks that wait.

        The DAG processor saves the whole DAG again. Where only some tasks are to run, that would add the others to a
        run that has not ended, so callbacks wait until then.
        """
        has_ended = self._ended_s is not None
        if self._is_calling_back or (self._request.tasks and not has_ended) or not pocketing.has_callbacks(session):
            return
        self._is_calling_back, self._was_asked = True, has_ended
        self._want("dag-processor")

    def _is_interrupted(self, wait_s: float) -> bool:
        """Wait, and tell whether the run is to stop."""
        readable, _, _ = select.select([self._main], [], [], wait_s)
        word = self._main.recv(256) if readable else b""
        if word == b"dag-processor":
            self._is_calling_back = False
        return word == b"interrupted"

    def _is_over(self, dag: DAG, end: str) -> bool:
        """Tell whether nothing more comes of a run that has ended: its callbacks have been executed, too."""
        now_s = time.monotonic()
        if self._ended_s is None:
            self._ended_s = now_s
        has_callback = dag.on_success_callback if end == "success" else dag.on_failure_callback
        if has_callback and not self._was_asked and now_s < self._ended_s + _ASKED_S:
            return False
        # A task is a success for Airflow before its own callbacks are called.
        if not self._is_calling_back and not live_runs(self._folder.state_dir):
            return True
        if now_s < self._ended_s + _CALLBACKS_S:
            return False
        tell("warning", warning=f"callbacks were not all executed within {_CALLBACKS_S:.0f} s")
        return True

    def _stop(self) -> int:
        """Stop what runs, so that the same command can resume it."""
        from airflow.utils.session import create_session

        if self._request.on != "local":
            tell("warning", warning="what the workers run, they run on; the same command takes it over")
            return INTERRUPTED
        with create_session() as session:
            stopped = state.unfinished(session)
        stop_runs(self._folder.state_dir, "the command was interrupted")
        with create_session() as session:
            state.clear(session, stopped)
        return INTERRUPTED

    def _finish(self, dag: DAG, end: str, instances: state.Instances) -> int:
        """Write down what became of the run, and return the exit code."""
        from airflow.utils.session import create_session

        with create_session() as session:
            for task in instances.changes(session):
                tell("task", **task)
            triggered = [
                {"dag_id": dag_id, "run_id": run_id, "state": now}
                for (dag_id, run_id), now in sorted(state.dag_runs(session).items())
                if (dag_id, run_id) != (self._dag_id, self._run_id)
            ]
            result = {
                "dag_id": self._dag_id,
                "run_id": self._run_id,
                "state": end,
                "tasks": sorted(instances.all(session), key=_place(source.order(dag))),
                "leaves": [task.task_id for task in dag.leaves],
                "xcoms": state.results(session, self._dag_id, self._run_id),
                "triggered": triggered,
            }
        for run in triggered:
            if run["state"] != "success":
                what = "has failed" if run["state"] == "failed" else "has not ended, and ends here"
                tell("warning", warning=f"run {run['run_id']} of DAG {run['dag_id']}, which it triggered, {what}")
        self._folder.write("result.json", result)
        tell("ended", state=end)
        return 0 if end == "success" else 1


def _place(order: tuple[str, ...]) -> Callable[[dict[str, Any]], tuple[int, int]]:
    places = {task_id: number for number, task_id in enumerate(order)}
    return lambda row: (places.get(row["task_id"], len(places)), row["map_index"])
