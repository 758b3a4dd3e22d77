"""The state directory: where runs' records, locks and output lie, and the only code that writes them.

::

    <state_dir>/
      runs/<run id>/state.json   the record; whole at every moment
                    owner        a link that names the executor that follows the run
                    output.log   what the runner process itself printed: empty unless something went wrong
                    heartbeat    touched while the runner lives; says which process it is
                    stop.json    somebody asked for an end, and why
                    imports.json modules that the task had to import, if there were any
      open/<run id>              a link for each run that lives, or of whose end somebody has still to hear
      locks/<workload id>        held by the runner for its whole life
      gpus/<gpu id>              held by the runner that leases the GPU
      waiting/<executor>.json    which tasks wait for GPUs, for people
      executors/<name>           held by an executor for its whole life, and touched while it works
      leftovers/<digest>         what a try left behind that could not be killed: the next one waits for it
      launchers/<key>.sock|.log  where launchers listen, and what they print
      preload.json               which packages launchers import ahead, and which not and why
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import re
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from air_executor import jsontext
from air_executor.errors import RecordError, RecordVersionError, StateDirError
from air_executor.machine import processes, system
from air_executor.machine.processes import Process, ProcessId
from air_executor.machine.safe_files import CLOCK_STEP_S, is_fresh, modified_s, replace_file
from air_executor.runs.leftovers import LeftoverNotes
from air_executor.runs.lock import KernelLock, is_held
from air_executor.runs.open import OpenRuns
from air_executor.runs.record import LATER, UNWANTED, RunRecord, RunState, check_id, now
from air_executor.runs.remains import DeadRun, Undertaker

#: No file that is read whole is larger than this many bytes.
MAX_FILE_BYTES = 1 << 20

#: An executor has read the end of a run after so many seconds.
_READ_S = 600.0

#: A runner leaves a sign of life at least this often, in seconds.
_BEAT_S = 15.0

#: Names of executors of the last release, which gives open runs no links.
_FORMER_NAME = re.compile(r"\d+\.[0-9a-f-]{36}")


@dataclass(frozen=True)
class Pruned:
    """What :meth:`RunStore.prune` removed and left, in runs."""

    removed: int
    kept: int


@dataclass(frozen=True)
class StopRequest:
    """Why a run is to stop, and whether its orderer has given it up."""

    reason: str
    unwanted: bool


class RunStore:
    """Reads and writes the runs below one state directory."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.runs = self.root / "runs"
        self.open = OpenRuns(self.root / "open")
        self.locks = self.root / "locks"
        self.gpus = self.root / "gpus"
        self.waiting = self.root / "waiting"
        self.executors = self.root / "executors"
        self.launchers = self.root / "launchers"
        #: Runs whose record a newer version has written. It stays as it is.
        self._newer: set[str] = set()
        self.leftovers = LeftoverNotes(self.root / "leftovers", replace_file)
        self._undertaker = Undertaker()

    def prepare(self) -> None:
        """Make the folders, and make sure that they are ours alone.

        :raises StateDirError: they cannot be made, belong to somebody else or cannot be written.
        """
        hint = "Set [air_executor] state_dir to a folder that the scheduler's user owns."
        try:
            ours = (self.runs, self.open.folder, self.locks, self.gpus, self.waiting, self.executors, self.launchers)
            for folder in (self.root, *ours):
                folder.mkdir(mode=0o700, parents=folder is self.root, exist_ok=True)
                status = folder.lstat()
                if not stat.S_ISDIR(status.st_mode):
                    raise StateDirError(f"{folder} is not a folder (a link is not followed). {hint}")
                if status.st_uid != os.geteuid():
                    raise StateDirError(f"{folder} belongs to user id {status.st_uid}, not {os.geteuid()}. {hint}")
                if stat.S_IMODE(status.st_mode) != 0o700:
                    folder.chmod(0o700)
            with tempfile.TemporaryFile(dir=self.runs):
                pass
        except OSError as error:
            raise StateDirError(f"the state directory {self.root} cannot be used: {error}. {hint}") from error

    def refuse_strangers(self) -> None:
        """Make sure that this process's user owns the state directory, before it writes there on somebody's behalf.

        :raises StateDirError: it is another's, as for root; what is written would be unreadable to its owner.
        """
        try:
            owner = self.root.stat().st_uid
        except OSError:
            return  # there is nothing to write to, which is said elsewhere
        if owner != os.geteuid():
            raise StateDirError(
                f"{self.root} belongs to {_user(owner)}, who could not read what {_user(os.geteuid())} writes there. "
                f"Do this as that user: sudo -u {_user(owner)} air-executor …"
            )

    def folder(self, run_id: str) -> Path:
        """Return the folder of a run.

        :raises RecordError: ``run_id`` is not an id.
        """
        return self.runs / check_id(run_id)

    def _path(self, run_id: str, *names: str) -> str:
        # Per run no Path is made: it interns each of its parts, and what the interpreter's table of them has grown to
        # stays in the scheduler, 4 MB after a few thousand runs.
        return os.path.join(self.runs, check_id(run_id), *names)

    def has(self, run_id: str) -> bool:
        """Tell whether the run's folder exists. One that can't be looked at counts as there: nothing is lost by it.

        :raises RecordError: ``run_id`` is not an id.
        """
        try:
            os.lstat(self._path(run_id))
        except OSError as error:
            return not isinstance(error, FileNotFoundError | NotADirectoryError)
        return True

    def output_file(self, run_id: str) -> str:
        """Return where the runner process's own output goes."""
        return self._path(run_id, "output.log")

    def lock(self, workload_id: str) -> KernelLock:
        """Return the lock that the runner of a workload holds."""
        return KernelLock(os.path.join(self.locks, check_id(workload_id)))

    # The record

    def create(self, record: RunRecord) -> None:
        """Make a run's folder with its first record.

        :raises StateDirError: it cannot be written, or the run exists.
        """
        folder = self._path(record.id)
        self.open.add(record.id)
        try:
            os.mkdir(folder, mode=0o700)
        except OSError as error:
            if not isinstance(error, FileExistsError):
                self.open.remove(record.id)
            raise StateDirError(f"cannot make {folder}: {error.strerror}") from error
        try:
            self.write(record)
        except StateDirError:
            shutil.rmtree(folder, ignore_errors=True)
            self.open.remove(record.id)
            raise

    def write(self, record: RunRecord) -> RunRecord:
        """Put ``record`` in the place of the former one, whole or not at all, and return it.

        A record that was read here, and is of a newer version, is not replaced.

        :raises StateDirError: it cannot be written.
        """
        if record.id not in self._newer:
            replace_file(self._path(record.id, "state.json"), record.to_json())
        return record

    def set_aside(self, run_id: str) -> None:
        """Move a record that can't be understood to ``state.json.unreadable``, before another takes its place.

        For who writes the end of the run. Others leave it where it is: they may be of an older version.
        """
        path = self._path(run_id, "state.json")
        with contextlib.suppress(OSError):
            os.replace(path, path + ".unreadable")

    def read(self, run_id: str) -> RunRecord:
        """Return a run's record.

        :raises RecordError: there is none, or it can't be understood.
        """
        path = self._path(run_id, "state.json")
        data = self._read(path)
        if data is None:
            raise RecordError(f"there is no run {run_id} below {self.runs}")
        try:
            record = RunRecord.from_json(data)
            if record.id != check_id(run_id):
                raise RecordError(f"it is the document of run {record.id}")
            return self._begun(record) if record.state is RunState.QUEUED else record
        except RecordVersionError:
            self._newer.add(check_id(run_id))
            raise
        except RecordError as error:
            raise RecordError(f"the record of run {run_id} can't be understood: {error}. See {path}") from None

    def _begun(self, record: RunRecord) -> RunRecord:
        """Return the record of a job's run as its runner leaves it to be understood: begun, if there is a heartbeat."""
        if record.identity.kind != "job" or (runner := self._heartbeat(record.id)) is None:
            return record
        return record.advance(RunState.STARTING, pid=runner.pid, boot_id=runner.boot_id, host=system.host())

    def _read(self, path: str | Path) -> bytes | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            kind = RecordError if error.errno == errno.ELOOP else StateDirError  # a link is no document of ours
            raise kind(f"cannot read {path}: {error.strerror}") from error
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
                raise RecordError(f"{path} is not a plain file of at most {MAX_FILE_BYTES} bytes")
            if status.st_uid != (owner := self.root.lstat().st_uid):
                raise RecordError(f"{path} belongs to user id {status.st_uid}, not {owner}")
            return os.read(fd, MAX_FILE_BYTES)
        finally:
            os.close(fd)

    def ids(self) -> list[str]:
        """Return the ids of all runs, in no order."""
        try:
            names = os.listdir(self.runs)
        except FileNotFoundError:
            return []
        return [name for name in names if _is_id(name)]

    def records(self) -> Iterator[RunRecord]:
        """Yield every readable record, in no order."""
        return self._readable(self.ids())

    def open_records(self) -> Iterator[RunRecord]:
        """Yield the readable records of the runs that live, and of others whose ends may have to be told yet.

        That costs what is open, not what has ever run, unless somebody of the last release works here too.
        """
        return self._readable(self.open.ids() if self._marks_open() else self.ids())

    def _marks_open(self) -> bool:
        if self.open.checked_s() is None:
            return False
        try:
            return not any(_FORMER_NAME.fullmatch(name) for name in os.listdir(self.executors))
        except OSError:
            return False

    def mark_open(self) -> None:
        """Give all open runs their links, also those that the last release has begun. The first call looks at all runs.

        :raises StateDirError: they cannot be made.
        """
        began_s, checked_s = time.time(), self.open.checked_s()
        marked = self.open.ids()
        for changed_s, run_id in self._by_age():
            if run_id in marked or (checked_s is not None and changed_s < checked_s - CLOCK_STEP_S):
                continue
            for record in self._readable([run_id]):
                # The end of a job's run takes its link away, and is not noted in the record.
                if not (record.state.is_end and (record.reported_at or record.identity.kind == "job")):
                    self.open.add(run_id)
        self.open.note_checked(began_s)

    def _readable(self, run_ids: Iterable[str]) -> Iterator[RunRecord]:
        for run_id in run_ids:
            try:
                yield self.read(run_id)
            except (RecordError, StateDirError):
                continue  # `doctor` counts them

    def find(self, prefix: str) -> RunRecord:
        """Return the one run whose id starts with ``prefix``.

        :raises RecordError: there is none, or more than one.
        """
        matches = [run_id for run_id in self.ids() if run_id.startswith(prefix.lower())] if prefix else []
        if not matches:
            raise RecordError(f"there is no run {prefix!r} below {self.runs}")
        if len(matches) > 1:
            raise RecordError(f"{len(matches)} runs start with {prefix!r}; give more of the id")
        return self.read(matches[0])

    def unreadable(self) -> list[Path]:
        """Return the documents of open runs that can't be understood, and all that were set aside."""
        run_ids = self.ids()
        aside = (self.folder(run_id) / "state.json.unreadable" for run_id in run_ids)
        found = [path for path in aside if os.path.lexists(path)]
        for run_id in self.open.ids() if self._marks_open() else run_ids:
            try:
                self.read(run_id)
            except (RecordVersionError, StateDirError):
                continue
            except RecordError:
                if self.has(run_id) and os.path.lexists(path := self.folder(run_id) / "state.json"):
                    found.append(path)
        return sorted(found)

    # Life and death

    def has_runner(self, record: RunRecord) -> bool:
        """Tell whether the run's workload has a runner.

        The lock is the evidence. But a lock's file may have been deleted, by who cleans up old files: then the runner's
        process says that it lives.
        """
        path = self.lock(record.identity.workload_id).path
        if is_held(path):
            return True
        if record.state.is_end:
            return False
        return self.is_runner(record) or (not os.path.lexists(path) and self._beats_elsewhere(record))

    def _beats_elsewhere(self, record: RunRecord) -> bool:
        """Tell whether a runner that can't be seen from here, as it is in another container, has just shown itself."""
        known = self.runner(record)
        is_elsewhere = known is not None and known.boot_id == system.boot_id() and not known.is_of_here
        return is_elsewhere and is_fresh(self.last_heartbeat_s(record.id), _BEAT_S)

    def is_runner(self, record: RunRecord) -> bool:
        """Tell whether the process with the runner's pid lives, and is the runner."""
        if record.pid is None or record.boot_id != system.boot_id():
            return False
        if (known := self.runner(record)) is not None:
            return known.lives()
        # Begun by a former version, which did not say more.
        process = processes.look(record.pid)
        return process is not None and not process.is_dead and system.is_process(record.pid, record.pid_started)

    def signal_runner(self, record: RunRecord, signum: signal.Signals) -> bool:
        """Send a signal to a run's runner, and to no other process that has its pid by now.

        :return: whether it was sent.
        """
        return record.pid is not None and system.signal_if(record.pid, lambda: self.is_runner(record), signum)

    def runner(self, record: RunRecord) -> ProcessId | None:
        """Return which process was the runner of a run; ``None`` where it did not say."""
        known = self._heartbeat(record.id)
        return known if known is not None and known.pid == record.pid else None

    def _heartbeat(self, run_id: str) -> ProcessId | None:
        try:
            return ProcessId.from_document(orjson.loads(self._read(self._path(run_id, "heartbeat")) or b"null"))
        except (orjson.JSONDecodeError, RecordError, StateDirError):
            return None

    def settle(self, record: RunRecord) -> RunRecord:
        """Return the record as it is now; one with neither a runner nor an end becomes ``lost``, with the reason.

        First all that is left of it is killed. While that takes, the record stays as it is, and a later call settles
        it. Another user than the owner of the state directory changes nothing. A run that is still ``queued`` is left
        alone: whoever queued it knows what became of its request.
        """
        if record.state.is_end or record.state is RunState.QUEUED or self.has_runner(record):
            return record
        record = self.read(record.id)  # it may have ended between the two looks
        if record.state.is_end or self.root.lstat().st_uid != os.geteuid():
            return record
        # Nobody begins or settles the workload meanwhile.
        lock = self.lock(record.identity.workload_id)
        if not lock.acquire(timeout_s=0):
            return record
        try:
            return self._bury(record)
        finally:
            lock.release()

    def settled(self, record: RunRecord) -> RunRecord:
        """Return the record as :meth:`settle` would leave it, for who only looks: nothing is killed or written."""
        if record.state.is_end or record.state is RunState.QUEUED or self.has_runner(record):
            return record
        record = self.read(record.id)  # it may have ended between the two looks
        return record if record.state.is_end else record.advance(RunState.LOST, reason=_loss(record))

    def _bury(self, record: RunRecord) -> RunRecord:
        survivors: list[Process] | None = []
        if not _is_from_before_boot(record):
            dead = DeadRun(record.id, record.identity.workload_id, self.runner(record), record.task_pid)
            survivors = self._undertaker.end(dead)
        if survivors is None:
            return record
        reason = "; ".join(filter(None, (_loss(record), self.note_survivors(record, survivors))))
        return self.write(record.advance(RunState.LOST, reason=reason))

    def mark_reported(self, record: RunRecord) -> RunRecord:
        """Note that the end of a run was told to whoever ordered it.

        A job's own files say what became of its tasks, so the run's record stays as it is.
        """
        if record.identity.kind != "job":
            record = self.write(replace(record, reported_at=now()))
        self.open.remove(record.id)
        return record

    def note_survivors(self, record: RunRecord, survivors: list[Process]) -> str:
        """Note for the next try what could not be killed of this one, and return it as a sentence."""
        if survivors:
            with contextlib.suppress(StateDirError):
                self.leftovers.write(record.identity, survivors)
        return processes.name_survivors(survivors)

    def begin(self, record: RunRecord) -> RunRecord:
        """Note that the calling process is the runner of a run, and begins it; return its record.

        Of a job's run that stands in the heartbeat file alone, which :meth:`read` heeds: it may be over in a moment,
        and with each file that is replaced, some file systems wait for the disk.

        :raises StateDirError: it cannot be written.
        """
        is_noted = False
        with contextlib.suppress(OSError):  # without it, others know less
            fd = os.open(
                self._path(record.id, "heartbeat"),
                os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
            )
            with open(fd, "wb", buffering=0) as file:
                file.write(orjson.dumps(ProcessId.own().to_document()))
            is_noted = True
        return record if is_noted and record.identity.kind == "job" else self.write(record)

    def heartbeat(self, run_id: str) -> None:
        """Note that the runner lives."""
        path = self._path(run_id, "heartbeat")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.utime(fd)
        finally:
            os.close(fd)

    def request_stop(self, run_id: str, reason: str, *, unwanted: bool = False) -> None:
        """Leave word why a run is about to be stopped, for whoever writes its end.

        :param unwanted: whoever ordered the run has given it up, and wants to hear no outcome.
        :raises StateDirError: it cannot be written.
        """
        request = {"reason": reason, "unwanted": unwanted, "at": now()}
        replace_file(self._path(run_id, "stop.json"), orjson.dumps(request))

    def withdraw_stop(self, run_id: str) -> None:
        """Take a request to stop back: the run is ending by itself."""
        with contextlib.suppress(OSError):
            os.unlink(self._path(run_id, "stop.json"))

    def stop_request(self, run_id: str) -> StopRequest | None:
        """Return why the run is to stop, or ``None`` when nobody asked for it."""
        path = self._path(run_id, "stop.json")
        try:
            data = self._read(path)
            request = orjson.loads(data or b"null")
            return None if request is None else StopRequest(str(request["reason"]), bool(request["unwanted"]))
        except (orjson.JSONDecodeError, KeyError, TypeError, RecordError, StateDirError):
            return None

    def output_tail(self, run_id: str, max_bytes: int = 2000) -> str:
        """Return the end of what the runner process printed, at most ``max_bytes`` bytes of it."""
        try:
            with open(self.output_file(run_id), "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - max_bytes))
                return file.read().decode(errors="replace").strip()
        except OSError:
            return ""

    def last_heartbeat_s(self, run_id: str) -> float | None:
        """Return when the runner last showed that it lives, in seconds since the epoch."""
        return modified_s(self._path(run_id, "heartbeat"))

    # What launchers import ahead

    def write_imports(self, run_id: str, names: list[str]) -> None:
        """Leave word which modules the task of a run has imported.

        :raises StateDirError: it cannot be written.
        """
        replace_file(self._path(run_id, "imports.json"), orjson.dumps(names))

    def imports(self, run_id: str) -> list[str]:
        """Return which modules the task of a run has imported, as far as it has left word."""
        return [name for name in self._read_list(self._path(run_id, "imports.json")) if isinstance(name, str)]

    def write_preload(self, verdicts: list[dict[str, Any]]) -> None:
        """Remember what was learned about packages: of too much to be read again, the last.

        :raises StateDirError: it cannot be written.
        """
        while len(data := orjson.dumps(verdicts, option=orjson.OPT_INDENT_2)) > MAX_FILE_BYTES:
            verdicts = verdicts[len(verdicts) // 10 + 1 :]
        replace_file(self.root / "preload.json", data)

    def preload(self) -> list[dict[str, Any]]:
        """Return what was learned about packages."""
        return [each for each in self._read_list(self.root / "preload.json") if isinstance(each, dict)]

    def _read_list(self, path: str | Path) -> list[Any]:
        try:
            found = orjson.loads(self._read(path) or b"[]")
        except (orjson.JSONDecodeError, RecordError, StateDirError):
            return []
        return found if isinstance(found, list) else []

    # Executors

    def set_owner(self, run_id: str, executor: str) -> None:
        """Note which executor follows a run from now on.

        :raises StateDirError: it cannot be noted.
        """
        path = self._path(run_id, "owner")
        temporary = self._path(run_id, f".owner.{executor}")
        try:
            os.symlink(executor, temporary)
            os.replace(temporary, path)
        except OSError as error:
            raise StateDirError(f"cannot write {path}: {error.strerror}") from error

    def owner(self, run_id: str) -> str | None:
        """Return the name of the executor that follows a run. The link is read, never followed."""
        try:
            return os.readlink(self._path(run_id, "owner"))
        except OSError:
            return None

    def last_reconciled_s(self, run_id: str) -> float | None:
        """Return when the executor that follows a run last reconciled its runs, in seconds since the epoch."""
        owner = self.owner(run_id)
        return None if owner is None or os.sep in owner else modified_s(os.path.join(self.executors, owner))

    # Pruning

    def prune(self, *, keep_days: float, keep_runs: int) -> Pruned:
        """Remove ended, reported runs that are older than ``keep_days`` days or beyond the newest ``keep_runs``.

        A run that is live, or whose end was not told yet, stays however old it is. Lock files that a dead runner
        left go too.

        :raises StateDirError: something could not be looked at or removed; all else was.
        """
        if not self.runs.is_dir():
            return Pruned(removed=0, kept=0)
        troubles: list[str] = []
        self._remove_free_locks(troubles)
        self.leftovers.prune()
        oldest_s = time.time() - keep_days * 86400
        folders = sorted(self._by_age(), key=lambda entry: entry[0], reverse=True)
        removed = 0
        for rank, (changed_s, run_id) in enumerate(folders):
            try:
                if (rank >= keep_runs or changed_s < oldest_s) and self._may_go(run_id, changed_s):
                    _remove_tree(self._path(run_id))
                    self.open.remove(run_id)
                    removed += 1
            except (StateDirError, OSError) as error:
                troubles.append(str(error))
        self.open.remove_stale(set(self.ids()))
        if troubles:
            raise StateDirError(f"{removed} runs were removed; {len(troubles)} could not be, as {troubles[0]}")
        return Pruned(removed=removed, kept=len(folders) - removed)

    def _by_age(self) -> Iterator[tuple[float, str]]:
        with os.scandir(self.runs) as entries:
            for entry in entries:
                if _is_id(entry.name) and entry.is_dir(follow_symlinks=False):
                    yield entry.stat(follow_symlinks=False).st_mtime, entry.name

    def _may_go(self, run_id: str, changed_s: float) -> bool:
        try:
            record = self.read(run_id)
        except RecordVersionError:
            return False
        except RecordError:
            # Nothing can be told of it any more; its age decides, as for the rest.
            return True
        if not record.state.is_end:
            return False
        if record.identity.kind == "job" and self.open.has(run_id):
            return False
        # Of one that Airflow knows from the runner, the executor needs no more than to see it. Connection tests tell
        # their ends themselves, and nobody takes those of a dead scheduler over. Those of jobs have lost their links.
        is_known = record.delivered or record.outcome == UNWANTED or record.identity.kind in ("connection_test", "job")
        return record.reported_at is not None or (is_known and changed_s < time.time() - _READ_S)

    def _remove_free_locks(self, troubles: list[str]) -> None:
        # A runner removes its own lock file as it ends; what is left belonged to one that was killed.
        for name in os.listdir(self.locks):
            try:
                lock = KernelLock(os.path.join(self.locks, name))
                if lock.acquire(timeout_s=0):
                    lock.release()
            except (StateDirError, OSError) as error:
                troubles.append(str(error))


def _remove_tree(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # somebody else prunes too
        shutil.rmtree(path)


def _is_from_before_boot(record: RunRecord) -> bool:
    return record.boot_id != system.boot_id() and record.host == system.host()


def _loss(record: RunRecord) -> str:
    """Return why a run has no outcome."""
    if _is_from_before_boot(record):
        return f"{record.host} was rebooted while the run was {record.state.value}"
    return f"the runner (pid {record.pid} on {record.host}) is gone and left no outcome"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def _is_id(name: str) -> bool:
    try:
        return check_id(name) == name
    except RecordError:
        return False


def public(record: RunRecord) -> dict[str, Any]:
    """Return the record as plain data, for JSON output."""
    document: dict[str, Any] = jsontext.loads(record.to_json())
    document.update(document.get("limits", {}).pop(LATER, {}))
    if record.why is not None:
        document["reason"] = record.why
    return document
