"""What the runs of this machine take of its memory and CPUs: one folder for all who start runs here.

Before a run is ordered, whoever orders it *claims* what the run needs. The claims of all live runs together may not
exceed the budget. A run counts for its claim, or for what it was last seen to hold if that is more. A claim is a small
file; it is void when nobody holds the lock of its workload any more, so what dies gives its room back.

**Nobody starves.** What finds no room waits, and smaller runs may overtake it. When it has waited for a while, those
that begin from then on leave so much room that it fits beside them: it waits for the end of runs that were there
before, and for no others. Of all that wait on the machine, the one that has waited longest has this right: one order
for all, so that no two wait for each other. Priorities decide in which order the scheduler asks.

**Somebody always runs.** When nothing else runs, what has waited longest may begin, whatever it needs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from air_executor.errors import RecordError, StateDirError
from air_executor.machine.ownership import check_state_dir
from air_executor.machine.safe_files import is_fresh, modified_s, read_document, replace_file
from air_executor.machine.sizes import mebibytes
from air_executor.runs import usage
from air_executor.runs.budget import Budget, Need
from air_executor.runs.line import MAX_BYTES, Line, Waiting
from air_executor.runs.lock import KernelLock, is_held
from air_executor.runs.pressure import Machine

#: The suffix of a reason that starts with another run's name: the pages hide that name.
BEFORE = " waits before it"

#: A runner takes its workload's lock at most this many seconds after the claim; on a crowded machine it may take long.
_BIRTH_S = 120.0

#: How long others may keep the folder from this process, in seconds: they work on a few small files.
_BUSY_S = 0.2

#: How often to look again what runs hold and which have ended, in seconds.
_LOOK_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What one run may take."""

    lock: str
    """The lock of its workload, held by its runner."""
    name: str
    memory: int
    cpus: float
    at_s: float
    """When it was made, in seconds since the epoch."""
    run: str | None = None
    """The folder of its run."""
    held: int = 0
    """How many bytes it was last seen to hold."""

    @classmethod
    def from_document(cls, document: Any) -> Claim:
        """Return the claim in a document; unknown fields are ignored.

        :raises ValueError: it is none; also KeyError, TypeError.
        """
        if not isinstance(document, dict):
            raise TypeError("no object")
        run = document.get("run")
        return cls(
            lock=str(document["lock"]),
            name=str(document["name"]),
            memory=int(document["memory"]),
            cpus=float(document["cpus"]),
            at_s=float(document["at_s"]),
            run=None if run is None else str(run),
        )

    @property
    def takes(self) -> int:
        """How many bytes it counts for."""
        return max(self.memory, self.held)


@dataclass
class Taken:
    """What a set of claims counts for."""

    runs: int = 0
    memory: int = 0
    cpus: float = 0.0

    @classmethod
    def by(cls, claims: Iterable[Claim]) -> Taken:
        """Return the sum of claims."""
        taken = cls()
        for claim in claims:
            taken.runs, taken.memory, taken.cpus = taken.runs + 1, taken.memory + claim.takes, taken.cpus + claim.cpus
        return taken


def default_folder() -> Path:
    """Return the folder that all of this user's processes on this machine, or in this container, use."""
    shared = Path("/dev/shm")
    return (shared if shared.is_dir() else Path(tempfile.gettempdir())) / f"air-executor-{os.geteuid()}"


class Ledger:
    """The claims of all, as one process that orders runs sees and makes them."""

    def __init__(self, budget: Budget, folder: str | Path = "") -> None:
        """Prepare, but open nothing.

        :param folder: where the claims are; :func:`default_folder` unless given.
        """
        self.budget = budget
        self._folder = Path(folder) if folder else default_folder()
        self._lock = KernelLock(self._folder / "lock")
        self._claims: dict[str, Claim] = {}
        self._line = Line(self._folder / "waiting")
        self._machine = Machine()
        self._looked_s = float("-inf")

    def open(self) -> None:
        """Make the folder.

        :raises StateDirError: it can't be used.
        """
        try:
            for folder in self._folders:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                check_state_dir(folder)
        except OSError as error:
            raise StateDirError(f"cannot make {error.filename}: {error.strerror}") from error

    def close(self) -> None:
        """Wait for nothing any more. Claims stay: their runs may go on."""
        self._line.close()

    @property
    def _folders(self) -> tuple[Path, Path, Path]:
        return self._folder, self._claims_folder, self._line.folder

    @property
    def _claims_folder(self) -> Path:
        return self._folder / "claims"

    # Claims

    def admit(self, lock: str, name: str, need: Need, *, key: str, dag_id: str | None = None) -> bool:
        """Claim room for a run that is to be ordered now, if there is any.

        :param lock: the path of its workload's lock.
        :param name: for people.
        :param key: by which it is known here while it waits.
        :param dag_id: of whose DAG it is.
        :return: whether there is. If not, ask again later; :meth:`waits` tells the reason.
        :raises StateDirError: the folder can't be used.
        """
        if not self._lock.acquire(timeout_s=_BUSY_S):
            return False
        try:
            self._look()
            asks = self._line.ask(key, name, need, dag_id)
            why = self._objection(asks, lock)
            if why is None:
                self._write(Claim(lock=lock, name=name, memory=need.memory, cpus=need.cpus, at_s=time.time()))
            self._line.answer(asks, why)
        finally:
            self._lock.release(keep_file=True)
        return why is None

    def waits(self, key: str) -> Waiting | None:
        """Return since when something waits here, and why; ``None`` when it does not."""
        return self._line.get(key)

    def order(self, lock: str, run: str, name: str, need: Need) -> None:
        """Note the folder of the run that a claim is for. A run without a claim, as one taken over, gets one.

        :raises StateDirError: that can't be written.
        """
        claim = self._claims.get(_file_name(lock)) or self._read(_file_name(lock), removes=False)
        if claim is None:
            claim = Claim(lock=lock, name=name, memory=need.memory, cpus=need.cpus, at_s=time.time())
        self._write(replace(claim, run=run))

    def release(self, lock: str, *, run: str | None = None) -> None:
        """Give up a claim. One that can't be removed is void when its workload's lock is free.

        :param run: the folder of the run that has ended; if the claim is another one's, it stays.
        """
        name = _file_name(lock)
        claim = self._claims.get(name)
        if run is not None and claim is not None and claim.run != run:
            return
        self._claims.pop(name, None)
        with contextlib.suppress(OSError):
            os.unlink(self._claims_folder / name)

    def keep(self, lock: str) -> None:
        """Keep a claim whose run is ordered and not born yet, as while its launcher is away."""
        with contextlib.suppress(OSError):
            os.utime(self._claims_folder / _file_name(lock))

    def __len__(self) -> int:
        """Return how many runs wait here."""
        return len(self._line)

    def publish(self) -> None:
        """Show others what waits here, if that has changed, and forget what asks no more."""
        self._line.publish()

    # Looking

    @property
    def is_there(self) -> bool:
        """Whether anybody has a ledger here.

        :raises StateDirError: somebody else owns it, or may write there.
        """
        if not os.path.lexists(self._claims_folder):
            return False
        for folder in self._folders:
            check_state_dir(folder, is_looking=True)
        return True

    def claims(self) -> list[Claim]:
        """Return the claims that hold now, the oldest first. Nothing is changed.

        :raises StateDirError: they can't be read.
        """
        self._looked_s = float("-inf")
        self._look(removes=False)
        return sorted(self._claims.values(), key=lambda claim: claim.at_s)

    def waiting(self) -> list[Waiting]:
        """Return what waits for room on this machine, the longest first."""
        return sorted(self._line.published(), key=lambda each: each.since_s)

    def _objection(self, asks: Waiting, lock: str) -> str | None:
        """Return why there is no room for a run. Its own claim, left by a scheduler that died, is no reason."""
        own = _file_name(lock)
        claims = [claim for name, claim in self._claims.items() if name != own]
        budget, now, first = self.budget, Taken.by(claims), self._line.before(asks)
        if not now.runs:
            return None if first is None else first.name + BEFORE
        if (excess := budget.excess(Need(asks.memory, asks.cpus))) is not None:
            return f"{excess}: it waits to run alone"
        if budget.memory is not None and asks.memory + now.memory > budget.memory:
            free = mebibytes(max(0, budget.memory - now.memory))
            return f"it needs {mebibytes(asks.memory)} of memory; {free} of {mebibytes(budget.memory)} are free"
        if budget.cpus is not None and asks.cpus + now.cpus > budget.cpus:
            free = f"{max(0.0, budget.cpus - now.cpus):g}"
            return f"it needs {asks.cpus:g} CPUs; {free} of {budget.cpus:g} are free"
        if first is not None:
            later = Taken.by(claim for claim in claims if claim.at_s > first.right_s)
            if (budget.memory is not None and later.memory + asks.memory + first.memory > budget.memory) or (
                budget.cpus is not None and later.cpus + asks.cpus + first.cpus > budget.cpus
            ):
                return first.name + BEFORE
        if budget.memory is None:
            return None
        growth = sum(max(0, claim.memory - claim.held) for claim in claims)
        return self._machine.objection(asks.memory, growth)

    # Files

    def _write(self, claim: Claim) -> None:
        name = _file_name(claim.lock)
        document = {field: value for field, value in asdict(claim).items() if field != "held"}
        replace_file(self._claims_folder / name, orjson.dumps(document))
        self._claims[name] = claim

    def _look(self, *, removes: bool = True) -> None:
        """Read what claims there are; now and then also what they hold, and how the machine is.

        :param removes: whether to remove those that are void.
        """
        is_due = time.monotonic() - self._looked_s >= _LOOK_S
        known = self._claims
        try:
            names = [name for name in os.listdir(self._claims_folder) if not name.startswith(".")]
        except OSError as error:
            raise StateDirError(f"cannot read {self._claims_folder}: {error.strerror}") from error
        self._claims = {}
        for name in names:
            claim = None if is_due else known.get(name)
            if (claim := claim or self._read(name, removes=removes)) is not None:
                self._claims[name] = claim
        if is_due:
            self._looked_s = time.monotonic()
            if removes:
                self._line.look()
            if self.budget.memory is not None:
                self._machine.look()

    def _read(self, name: str, *, removes: bool) -> Claim | None:
        """Return the claim in a file, unless it is void."""
        path = self._claims_folder / name
        claim = None
        with contextlib.suppress(RecordError, StateDirError, ValueError, TypeError, KeyError):
            claim = Claim.from_document(orjson.loads(read_document(path, MAX_BYTES, RecordError) or b""))
            if is_held(claim.lock) or is_fresh(modified_s(path), _BIRTH_S):
                point = None if claim.run is None else usage.last_point(claim.run)
                return claim if point is None else replace(claim, held=point.memory_bytes)
        if removes:
            with contextlib.suppress(OSError):
                os.unlink(path)
        return None


def _file_name(lock: str) -> str:
    return hashlib.sha256(os.fsencode(lock)).hexdigest()[:32]
