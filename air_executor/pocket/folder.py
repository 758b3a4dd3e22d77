"""The folder of one run of a DAG, and where all of them are."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from air_executor import config, jsontext
from air_executor.errors import StateDirError
from air_executor.machine.ownership import check_state_dir
from air_executor.machine.safe_files import read_document, replace_file
from air_executor.pocket.leftover import end_launchers, stop_runs
from air_executor.pocket.request import BusyError, DagError, Request
from air_executor.runs.lock import LOOKERS_S, KernelLock, is_held
from air_executor.runs.statedir import FOLDER, VARIABLE

#: A request or a result of more bytes is none of ours.
_MAX_BYTES = 256 << 20

#: This many characters of a file's name are the beginning of a run's name.
_MAX_STEM = 60


def dags_dir(state_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return where the runs of DAGs are: in the state directory that is named, or the nearest from here upwards.

    Airflow's own is never taken: nothing of the user's Airflow is touched.

    :raises StateDirError: the state directory is somebody else's.
    """
    if named := state_dir or os.environ.get(VARIABLE):
        found = Path(named).expanduser().absolute()
    else:
        here = Path.cwd()
        airflows = config.airflow_home() / FOLDER
        near = (folder / FOLDER for folder in (here, *here.parents) if folder / FOLDER != airflows)
        found = next((folder for folder in near if folder.is_dir()), here / FOLDER)
    check_state_dir(found)
    return found / "dags"


class RunFolder:
    """The folder of one run: its Airflow's home, logs, the state of its runners, and its result."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.home = path / "home"
        """AIRFLOW_HOME of its Airflow."""
        self.database = self.home / "airflow.db"
        """Its Airflow's database."""
        self.state_dir = path / "state"
        """The state directory of its runs."""
        self.logs = path / "logs"
        """The logs of its tasks."""
        self.parts = path / "parts"
        """What the parts of its Airflow print."""

    def lock(self) -> KernelLock:
        """Return the lock that whoever works on the run holds."""
        return KernelLock(self.path / "lock")

    def is_busy(self) -> bool:
        """Tell whether somebody works on the run."""
        return is_held(self.path / "lock")

    def request(self) -> Request:
        """Return what was asked for.

        :raises DagError: the file is missing, or can't be understood.
        """
        data = read_document(self.path / "request.json", _MAX_BYTES, DagError)
        if data is None:
            raise DagError(f"{self.path} is not the folder of a run: it has no request.json")
        return Request.from_json(data)

    def result(self) -> dict[str, Any] | None:
        """Return what became of the run; ``None`` if it has not ended.

        :raises DagError: the file can't be understood.
        """
        data = read_document(self.path / "result.json", _MAX_BYTES, DagError)
        try:
            return None if data is None else dict(jsontext.loads(data))
        except (ValueError, TypeError) as error:
            raise DagError(f"{self.path / 'result.json'} can't be understood: {error}") from None

    def has_begun(self) -> bool:
        """Tell whether there is a run in its Airflow, which can be resumed until it has ended."""
        return (self.path / "run.json").exists()

    def has_ended(self) -> bool:
        """Tell whether there is a result, readable or not."""
        return (self.path / "result.json").exists()

    def write(self, name: str, document: Any) -> None:
        """Write a document of the run, for this user alone."""
        replace_file(self.path / name, jsontext.dumps(document), is_durable=True)

    def task_log(self, dag_id: str, run_id: str, task_id: str, map_index: int, try_number: int) -> Path:
        """Return where the log of one try of a task is."""
        mapped = () if map_index < 0 else (f"map_index={map_index}",)
        parts = (f"dag_id={dag_id}", f"run_id={run_id}", f"task_id={task_id}", *mapped, f"attempt={try_number}.log")
        return self.logs.joinpath(*parts)

    def remove(self) -> None:
        """Remove the folder with all that is in it; what still runs of it is stopped first.

        :raises BusyError: somebody works on the run.
        """
        lock = self.lock()
        if not lock.acquire(LOOKERS_S):
            raise BusyError(f"{self.name} is running")
        try:
            self.empty()
        finally:
            lock.release()

    def empty(self) -> None:
        """Remove the folder, by whoever has its lock; what still runs of it is stopped first."""
        stop_runs(self.state_dir, "the run is given up")
        end_launchers(self.state_dir, wait=True)
        shutil.rmtree(self.path)


def all_folders(parent: Path) -> list[RunFolder]:
    """Return the folders of all runs in :func:`dags_dir`, the newest first."""
    with contextlib.suppress(FileNotFoundError):
        found = [entry for entry in parent.iterdir() if (entry / "request.json").is_file()]
        return [RunFolder(path) for path in sorted(found, key=_begun_s, reverse=True)]
    return []


def _begun_s(path: Path) -> float:
    try:
        return (path / "request.json").stat().st_mtime
    except OSError:
        return 0.0


def find(parent: Path, name: str | None) -> RunFolder:
    """Return the folder of a run in :func:`dags_dir` by its name; the newest without one.

    :raises DagError: there is none.
    """
    for folder in all_folders(parent):
        if name is None or folder.name == name:
            return folder
    if name is None:
        raise DagError(f"no DAG was run here: there is nothing in {parent}")
    raise DagError(f"there is no run {name!r} in {parent}; `air-executor dag list` names them")


def claim(parent: Path, request: Request, *, restart: bool) -> tuple[RunFolder, KernelLock, bool]:
    """Return the folder for a request, its lock, which is held, and whether its run was begun before.

    A run that was interrupted is resumed, unless ``restart``, which removes it. Beside one that is running, another
    begins.

    :raises BusyError: a run of that id is being worked on.
    :raises DagError: a run of that id has ended, or was asked for otherwise.
    """
    for each in (parent.parent, parent):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError), open(parent / ".gitignore", "x", encoding="utf-8") as file:
        file.write("*\n")
    while True:
        with FileLock(parent / "claim.lock", mode=0o600):  # two commands may ask for the same at once
            folder, lock, is_begun, is_given_up = _claim(parent, request, restart=restart)
        if not is_given_up:
            return folder, lock, is_begun
        try:
            folder.empty()  # which may take a while
        finally:
            lock.release()


def _claim(parent: Path, request: Request, *, restart: bool) -> tuple[RunFolder, KernelLock, bool, bool]:
    """Return a folder, its lock, whether its run was begun before, and whether it is given up."""
    for folder in _alike(parent, request):
        lock = folder.lock()
        if folder.is_busy() or not lock.acquire(LOOKERS_S):
            if request.run_id is not None:
                raise BusyError(f"run {request.run_id} is running already, as {folder.name}")
            continue
        has_ended = folder.has_ended()
        if restart and (not has_ended or request.run_id is not None):
            return folder, lock, True, True
        if not has_ended and folder.request().identity() == request.identity():
            with _letting_go(lock):
                folder.write("request.json", jsontext.loads(request.to_json()))
            return folder, lock, True, False
        lock.release(keep_file=True)
        if request.run_id is not None:
            is_as = "has ended" if has_ended else "was begun with other options"
            raise DagError(f"run {request.run_id} {is_as}, as {folder.name}; --restart begins it anew")
    return *_new(parent, request), False, False


def _alike(parent: Path, request: Request) -> Iterator[RunFolder]:
    for folder in all_folders(parent):
        with contextlib.suppress(DagError, StateDirError):
            if request.is_same_run(folder.request()):
                yield folder


def _new(parent: Path, request: Request) -> tuple[RunFolder, KernelLock]:
    stem = request.dag_id or Path(request.target.rpartition(":")[2] or request.target).stem
    stem = re.sub(r"[^\w.-]+", "_", stem)[:_MAX_STEM].strip("._-") or "dag"
    number = 1 + max((_number(entry, stem) for entry in os.listdir(parent)), default=0)
    while True:
        folder = RunFolder(parent / f"{stem}-{number}")
        try:
            folder.path.mkdir(mode=0o700)
        except FileExistsError:
            number += 1
            continue
        lock = folder.lock()
        try:
            lock.acquire(0)
            with _letting_go(lock):
                for each in (folder.home, folder.logs, folder.parts, folder.state_dir):
                    each.mkdir(mode=0o700)
                folder.write("request.json", jsontext.loads(request.to_json()))
        except BaseException:
            shutil.rmtree(folder.path, ignore_errors=True)
            raise
        return folder, lock


@contextlib.contextmanager
def _letting_go(lock: KernelLock) -> Iterator[None]:
    """Within this, an error releases a lock."""
    try:
        yield
    except BaseException:
        lock.release(keep_file=True)
        raise


def _number(name: str, stem: str) -> int:
    number = name.removeprefix(f"{stem}-")
    return int(number) if number.isdecimal() else 0


def age_s(folder: RunFolder) -> float:
    """Return for how many seconds the run has been there."""
    return max(0.0, time.time() - _begun_s(folder.path))
