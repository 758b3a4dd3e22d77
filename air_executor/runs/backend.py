"""The seam between those who want runs and the places where runs happen."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from air_executor.errors import ProtocolError
from air_executor.runs.record import Identity, RunRecord, check_id


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """Everything a runner needs to execute one workload. It holds a token, so it is never written.

    A launcher of another version ignores a field that it does not know. So a new field has a default, and if ignoring
    it would be wrong, ``launcher.protocol.VERSION`` rises.
    """

    id: str
    identity: Identity
    workload: dict[str, Any] = field(repr=False)
    """The workload as its own JSON document."""
    air: Any = field(default=None, repr=False)
    """``executor_config["air"]`` as the user wrote it; the runner checks it."""
    server: str | None = None
    """URL of Airflow's execution API."""
    log_file: str | None = None

    def to_message(self) -> dict[str, Any]:
        """Return the request as plain data, without what is not set."""
        message = {name: value for name, value in vars(self).items() if value is not None}
        return {**message, "identity": vars(self.identity)}

    @classmethod
    def from_message(cls, message: Any) -> RunRequest:
        """Read a request from plain data. Fields that this version does not know are ignored.

        :raises ProtocolError: it is not one.
        """
        try:
            identity = Identity(**_known(Identity, message["identity"]))
            check_id(message["id"])
            check_id(identity.workload_id)
            return cls(**{**_known(cls, message), "identity": identity})
        except Exception as error:
            raise ProtocolError(f"not a run request: {type(error).__name__}: {error}") from None


def _known(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of fields that dataclass ``kind`` has."""
    return {name: value for name, value in values.items() if name in kind.__dataclass_fields__}  # type: ignore[attr-defined]


class GpuPool(Protocol):
    """The GPUs of a place where runs happen, for those who order runs."""

    size: int
    """How many there are."""

    def free(self) -> int:
        """Return how many nobody has leased."""

    def take_turn(self) -> bool:
        """Try to become the only one that orders runs that need GPUs; tell whether this one is."""

    def leave_turn(self) -> None:
        """Let others order runs that need GPUs."""

    def publish(self, waiting: list[dict[str, Any]]) -> None:
        """Show people what waits for GPUs: ``name``, ``gpus``, ``of`` and ``since`` of each."""


class EveryGpu:
    """Implements :class:`GpuPool` for a place whose GPUs are leased elsewhere: here they are no reason to wait."""

    size = 0

    def free(self) -> int:
        """See :meth:`GpuPool.free`."""
        return sys.maxsize

    def take_turn(self) -> bool:
        """See :meth:`GpuPool.take_turn`."""
        return True

    def leave_turn(self) -> None:
        """See :meth:`GpuPool.leave_turn`."""

    def publish(self, waiting: list[dict[str, Any]]) -> None:
        """See :meth:`GpuPool.publish`."""


class Room(Protocol):
    """What the runs of a place may take of its memory and CPUs together, for those who order runs."""

    def admit(self, who: Identity, air: Any, *, key: str | None = None) -> bool:
        """Claim room for a run that is to be ordered now; tell whether there is any.

        If there is none, ask again later. Smaller runs may overtake it, but not for ever.

        :param air: the run's limits, as in its request.
        :param key: by which it is known while it waits; unless given, the id of its workload.
        """

    def why(self, key: str) -> str | None:
        """Return why something has to wait for room; ``None`` when it does not wait."""

    def release(self, workload_id: str) -> None:
        """Give up the room of a workload that is not ordered after all."""

    def waiting(self) -> int:
        """Return how many runs of this process wait for room."""


class Boundless:
    """Implements :class:`Room` for a place where everything has room."""

    def admit(self, who: Identity, air: Any, *, key: str | None = None) -> bool:  # noqa: ARG002
        """See :meth:`Room.admit`."""
        return True

    def why(self, key: str) -> str | None:  # noqa: ARG002
        """See :meth:`Room.why`."""
        return None

    def release(self, workload_id: str) -> None:
        """See :meth:`Room.release`."""

    def waiting(self) -> int:
        """See :meth:`Room.waiting`."""
        return 0


@dataclass
class LauncherCounts:
    """What became of the launchers of a place, since it was opened."""

    live: int = 0
    """Connections to launchers: to the one that gets orders, and to former ones that still have runs."""
    generations: int = 0
    """How many were met that were to get orders, one after the other."""
    spare_deaths: int = 0
    """How many processes that they had forked ahead died before their orders came."""


class RunBackend(Protocol):
    """A place where runs happen: all that an executor, or a manager of jobs, knows of them.

    It keeps the claims on runs, their locks and their owners. An *owner* is an executor that has named itself to
    :meth:`open`. A user without a name, such as a manager of jobs, follows its runs without a claim that others could
    take over. No call but :meth:`open` and :meth:`close` blocks for longer than a few milliseconds.
    """

    @property
    def gpus(self) -> GpuPool:
        """The GPUs that its runs can lease."""

    @property
    def room(self) -> Room:
        """The memory and CPUs that its runs can take."""

    # Life

    def open(self, owner: str | None) -> bool:
        """Prepare the place, and begin the life of an owner, which others see.

        :param owner: its name, unlike all others; ``None`` to own nothing.
        :return: ``False`` if somebody holds that name.
        :raises StateDirError: the place can't be used.
        """

    def warm_up(self) -> None:
        """Have everything ready for the first run. A failure is logged; the first run meets it again."""

    def show_life(self) -> None:
        """Show that the owner reconciles its runs: while it does, runners need send no heartbeats."""

    def close(self) -> None:
        """Release everything here. Runs continue, and the next owner takes them over."""

    # Orders

    def order(self, request: RunRequest, record: RunRecord) -> None:
        """Order a run, whose first record is ``record``, and follow it.

        :raises StateDirError: the run cannot be recorded, so it was not ordered.
        :raises ProtocolError: the request cannot be sent to a runner.
        """

    def stop(self, run_id: str, reason: str, *, unwanted: bool = False) -> None:
        """Ask for the end of a run. The task gets time for ``on_kill``, then it is killed.

        :param unwanted: Airflow has given the run up already; nobody needs its outcome.
        """

    def is_stopping(self, run_id: str) -> bool:
        """Tell whether a run was asked to end and has not begun to end by itself."""

    def kill(self, run_id: str) -> None:
        """Kill the runner of a run that does not end when it is asked to, and with it its task."""

    def withdraw(self, record: RunRecord, reason: str) -> RunRecord:
        """Return the record of a run as it is now. If it has not begun, it ends as ``lost`` and never begins.

        :raises RecordError: it is gone, or can't be understood.
        :raises StateDirError: it can't be looked up, or recorded, now.
        """

    def release(self, workload_ids: Iterable[str]) -> None:
        """Release what is kept for workloads that nobody will order again. One that has a runner is left alone."""

    # Taking over

    def adopt(self, run_id: str, identity: Callable[[], Identity]) -> RunRecord | None:
        """Return the record of a run as it is now, so that it can be followed.

        :param identity: returns what it executes; called only if its record is lost.
        :return: ``None``: it never began, and will not any more.
        :raises RecordError: nothing is known of it, and it has no runner.
        :raises StateDirError: that can't be looked up now.
        """

    def follow(self, record: RunRecord) -> None:
        """Follow a run that somebody else ordered, and own it.

        :raises AirExecutorError: it can't be followed.
        """

    def orphans(self, is_ours: Callable[[str], bool]) -> Iterator[RunRecord]:
        """Yield the records of runs whose end nobody has acknowledged, and whose owner is gone.

        :param is_ours: tells of a dead owner, by its name, whether its runs may be taken over.
        """

    def settle_owners(self, settle: Callable[[str, float], bool]) -> None:
        """Call ``settle`` for each owner that is dead.

        :param settle: gets its name, and when it last showed its life in seconds since the epoch. It returns whether
            the owner's trace is kept, for others to find.
        """

    # Questions

    def knows(self, run_id: str) -> bool:
        """Tell whether there is such a run, whatever is known of it."""

    def record(self, run_id: str) -> RunRecord:
        """Return the record of a run.

        :raises RecordError: there is none, or it can't be understood.
        :raises StateDirError: it can't be read now.
        """

    def folder(self, run_id: str) -> str:
        """Return the folder in which a run that has ended has left its result, and the tasks that it queued."""

    def is_mine(self, run_id: str) -> bool:
        """Tell whether no other owner follows a run."""

    def is_alive(self, workload_id: str) -> bool:
        """Tell whether a workload has a runner."""

    def last_beat_s(self, run_id: str) -> float | None:
        """Return when a runner last showed that it lives, in seconds since the epoch; ``None``: it never did."""

    def launchers(self) -> LauncherCounts | None:
        """Return what became of its launchers; ``None``: others count them."""

    # News

    def ends(self) -> list[str]:
        """Read what there is to be read, and return the ids of the runs whose ends :meth:`take_ends` would return."""

    def take_ends(self) -> list[RunRecord]:
        """Return the records of the runs that have ended since the last call, each once."""

    def acknowledge(self, record: RunRecord) -> RunRecord:
        """Record that whoever ordered a run knows of its end: no other owner needs to.

        :return: the record as it is now.
        :raises StateDirError: that can't be recorded.
        """

    def has_news(self) -> bool:
        """Read what there is to be read, and tell whether :meth:`take_ends` should be called."""

    def fileno(self) -> int | None:
        """Return a descriptor that becomes readable when there may be news; ``None`` if there is none now."""

    def due_in_s(self) -> float | None:
        """Return in how many seconds to call :meth:`take_ends` even without news; ``None``: no need to."""
