"""Starting a run, following it, stopping it: the interface between an executor and whatever gives birth to runners."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from air_executor.errors import ProtocolError
from air_executor.runs.record import Identity, RunRecord, check_id


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """Everything a runner needs to execute one workload. It holds a token, so it is never written.

    A launcher of another version passes over a field that it does not know. So a new field has a default, and where
    passing over it would be wrong, ``launcher.protocol.VERSION`` rises.
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
        """Read a request from plain data. Fields that this version does not know are passed over.

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


class RunBackend(Protocol):
    """Gives birth to runners and tells what becomes of them. No call blocks for longer than a few milliseconds."""

    def order(self, request: RunRequest, record: RunRecord) -> None:
        """Order a run, whose first record is ``record``.

        :raises StateDirError: the run cannot be recorded, so it was not ordered.
        """

    def follow(self, record: RunRecord) -> None:
        """Tell of the end of a run that somebody else ordered: an executor that is gone."""

    def take_ends(self) -> list[RunRecord]:
        """Return the records of the runs that have ended since the last call, each once."""

    def fileno(self) -> int | None:
        """Return a descriptor that becomes readable when there may be news; ``None`` when nothing tells."""

    def has_news(self) -> bool:
        """Take in what there is to be read, and tell whether :meth:`take_ends` should be called."""

    def ends(self) -> list[str]:
        """Take in what there is to be read, and return the ids of the runs that :meth:`take_ends` would tell of."""

    def due_in_s(self) -> float | None:
        """Return in how many seconds :meth:`take_ends` should be called though nothing tells; ``None``: no need to."""

    def stop(self, run_id: str, reason: str, *, unwanted: bool = False) -> None:
        """Ask for a run's end, which :meth:`take_ends` tells. The task gets time for ``on_kill``, then it is killed.

        :param unwanted: Airflow has given the run up already; its outcome interests nobody.
        """

    def kill(self, run_id: str) -> None:
        """End a run that does not end when it is asked to: its runner, and with it its task, are killed."""

    def close(self) -> None:
        """Let go of everything here. Runs go on."""
