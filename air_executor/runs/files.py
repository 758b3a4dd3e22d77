"""The files below the state directory: where each lies, and those of a run beside its record.

::

    <state_dir>/
      runs/<run id>/state.json   the record; whole at every moment
                    owner        a link that names the executor that follows the run
                    output.log   what the runner process itself printed; normally empty
                    heartbeat    names the runner process, which touches it while it lives
                    stop.json    a request to stop the run, with the reason
                    reported     empty; made when whoever ordered the run knows its end (not for jobs)
                    usage.jsonl  what the task used over time, if it lasted longer than a second
                    imports.json modules that the task had to import, if any
      open/<run id>              a link for each run that lives, or whose end was not reported yet
      locks/<workload id>        locked by the runner for its whole life
      gpus/<gpu id>              locked by the runner that leases the GPU
      waiting/<executor>.json    which tasks wait for GPUs; for display only
      executors/<name>           locked by an executor for its whole life, and touched while it works
      learned/<digest>           what tasks with a memory limit that learns have held; which tries ran out of memory
      leftovers/<digest>         processes of a try that could not be killed; the next try waits for them
      launchers/<key>.sock|.log  the sockets of launchers, and what they print
      preload.json               which packages launchers import ahead; of the others, why not
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

import orjson

from air_executor.errors import RecordError, StateDirError
from air_executor.machine.processes import ProcessId
from air_executor.machine.safe_files import modified_s, read_document, replace_file
from air_executor.runs.learned import Learned
from air_executor.runs.leftovers import LeftoverNotes
from air_executor.runs.lock import KernelLock
from air_executor.runs.open import OpenRuns
from air_executor.runs.record import check_id, now

#: A file that is read as a whole has at most this many bytes.
MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True)
class StopRequest:
    """Why a run is to stop, and whether whoever ordered it has given it up."""

    reason: str
    unwanted: bool


class RunFiles:
    """The folders of one state directory, and the small files of its runs."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.runs = self.root / "runs"
        self.open = OpenRuns(self.root / "open")
        self.locks = self.root / "locks"
        self.gpus = self.root / "gpus"
        self.waiting = self.root / "waiting"
        self.executors = self.root / "executors"
        self.launchers = self.root / "launchers"
        self.leftovers = LeftoverNotes(self.root / "leftovers")
        self.learned = Learned(self.root / "learned")

    def prepare(self) -> None:
        """Make the folders, for this user alone.

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
        """Check that the state directory belongs to this process's user, before a command writes to it.

        :raises StateDirError: it is another user's, who could not read what root writes there.
        """
        try:
            owner = self.root.stat().st_uid
        except OSError:
            return  # nothing to write to; whoever writes reports that
        if owner != os.geteuid():
            raise StateDirError(
                f"{self.root} belongs to {_user(owner)}, who could not read what {_user(os.geteuid())} writes there. "
                f"Do this as that user: sudo -u {_user(owner)} air-executor …"
            )

    # A run's folder

    def folder(self, run_id: str) -> Path:
        """Return the folder of a run.

        :raises RecordError: ``run_id`` is not an id.
        """
        return self.runs / check_id(run_id)

    def path(self, run_id: str, *names: str) -> str:
        """Return the folder of a run, or the path of a file in it.

        :raises RecordError: ``run_id`` is not an id.
        """
        # Not a Path: pathlib interns every part, and the interpreter's table of interned strings never shrinks. In a
        # scheduler that is 4 MB after a few thousand runs.
        return os.path.join(self.runs, check_id(run_id), *names)

    def has(self, run_id: str) -> bool:
        """Tell whether the run's folder exists. A folder that can't be looked at counts as existing.

        :raises RecordError: ``run_id`` is not an id.
        """
        try:
            os.lstat(self.path(run_id))
        except OSError as error:
            return not isinstance(error, FileNotFoundError | NotADirectoryError)
        return True

    def ids(self) -> list[str]:
        """Return the ids of all runs, in no order."""
        try:
            names = os.listdir(self.runs)
        except FileNotFoundError:
            return []
        return [name for name in names if is_id(name)]

    def read_document(self, path: str | Path) -> bytes | None:
        """Return what is in a file below the state directory; ``None`` when there is none.

        :raises RecordError: it is a link, no plain file, larger than :data:`MAX_FILE_BYTES`, or another user's.
        :raises StateDirError: it can't be read.
        """
        return read_document(path, MAX_FILE_BYTES, RecordError, of=self.root)

    def lock(self, workload_id: str) -> KernelLock:
        """Return the lock that the runner of a workload holds."""
        return KernelLock(os.path.join(self.locks, check_id(workload_id)))

    def output_file(self, run_id: str) -> str:
        """Return the file for what the runner process itself prints."""
        return self.path(run_id, "output.log")

    def output_tail(self, run_id: str, max_bytes: int = 2000) -> str:
        """Return the last ``max_bytes`` bytes of what the runner process printed."""
        try:
            with open(self.output_file(run_id), "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - max_bytes))
                return file.read().decode(errors="replace").strip()
        except OSError:
            return ""

    # The runner

    def heartbeat(self, run_id: str) -> None:
        """Touch the heartbeat file of a run.

        :raises OSError: it can't be touched.
        """
        path = self.path(run_id, "heartbeat")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.utime(fd)
        finally:
            os.close(fd)

    def last_heartbeat_s(self, run_id: str) -> float | None:
        """Return when the runner last touched its heartbeat file, in seconds since the epoch; ``None``: never."""
        return modified_s(self.path(run_id, "heartbeat"))

    def runner_process(self, run_id: str) -> ProcessId | None:
        """Return the process that has begun a run, as its heartbeat file says; ``None`` when no runner has."""
        try:
            return ProcessId.from_document(orjson.loads(self.read_document(self.path(run_id, "heartbeat")) or b"null"))
        except (orjson.JSONDecodeError, RecordError, StateDirError):
            return None

    # Requests to stop

    def request_stop(self, run_id: str, reason: str, *, unwanted: bool = False) -> None:
        """Record why a run is about to be stopped. Whoever writes its end reads this.

        :param unwanted: whoever ordered the run has given it up; its outcome is not reported.
        :raises StateDirError: it cannot be written.
        """
        request = {"reason": reason, "unwanted": unwanted, "at": now()}
        replace_file(self.path(run_id, "stop.json"), orjson.dumps(request))

    def withdraw_stop(self, run_id: str) -> None:
        """Withdraw a request to stop: the run is ending by itself."""
        with contextlib.suppress(OSError):
            os.unlink(self.path(run_id, "stop.json"))

    def stop_request(self, run_id: str) -> StopRequest | None:
        """Return why the run is to stop, or ``None`` when nobody has asked."""
        path = self.path(run_id, "stop.json")
        try:
            data = self.read_document(path)
            request = orjson.loads(data or b"null")
            return None if request is None else StopRequest(str(request["reason"]), bool(request["unwanted"]))
        except (orjson.JSONDecodeError, KeyError, TypeError, RecordError, StateDirError):
            return None

    # The executor that follows a run

    def note_reported(self, run_id: str) -> None:
        """Note that whoever ordered a run knows its end, by an empty file beside its record.

        :raises StateDirError: it can't be made.
        """
        path = self.path(run_id, "reported")
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise StateDirError(f"cannot make {path}: {error.strerror}") from error

    def reported_s(self, run_id: str) -> float | None:
        """Return when :meth:`note_reported` was called for a run, in seconds since the epoch; ``None``: never."""
        return modified_s(self.path(run_id, "reported"))

    def set_owner(self, run_id: str, executor: str) -> None:
        """Record which executor follows a run from now on.

        :raises StateDirError: it cannot be written.
        """
        path = self.path(run_id, "owner")
        temporary = self.path(run_id, f".owner.{executor}")
        try:
            os.symlink(executor, temporary)
            os.replace(temporary, path)
        except OSError as error:
            raise StateDirError(f"cannot write {path}: {error.strerror}") from error

    def owner(self, run_id: str) -> str | None:
        """Return the name of the executor that follows a run. The link is read, never followed."""
        try:
            return os.readlink(self.path(run_id, "owner"))
        except OSError:
            return None

    def note_contact(self) -> None:
        """Note that this host's worker has just reached those who order its runs.

        :raises StateDirError: it can't be noted.
        """
        try:
            os.utime(self._contact)  # also on a full disk
        except OSError:
            replace_file(self._contact, b"")

    def last_contact_s(self) -> float | None:
        """Return when this host's worker last reached those who order its runs, in seconds since the epoch."""
        return modified_s(self._contact)

    @property
    def _contact(self) -> str:
        return os.path.join(self.root, "worker.contact")

    def last_reconciled_s(self, run_id: str) -> float | None:
        """Return when the executor that follows a run last reconciled its runs, in seconds since the epoch."""
        owner = self.owner(run_id)
        return None if owner is None or os.sep in owner else modified_s(os.path.join(self.executors, owner))


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def is_id(name: str) -> bool:
    """Tell whether a file's name is a run's id in its canonical form."""
    try:
        return check_id(name) == name
    except RecordError:
        return False
