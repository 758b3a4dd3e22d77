"""The record of a run: what is written about one execution of one workload, and which states may follow which."""

from __future__ import annotations

import dataclasses
import enum
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import orjson

from air_executor import jsontext
from air_executor.errors import IllegalTransitionError, RecordError, RecordVersionError

#: Version of the document. A reader refuses a newer one instead of guessing.
VERSION = 1

#: The entry of ``limits`` with the fields that the first release of version 1 does not know: that release rejects a
#: document with an unknown field, but keeps any limit.
LATER = "+"

#: The fields of a record in that release.
_FIRST = frozenset(
    "id state identity limits host boot_id pid pid_started task_pid log_file queued_at starting_at running_at ended_at "
    "reported_at outcome delivered exit_code signal reason peak_memory_bytes cpu_time_s unknown".split()
)

#: How :class:`uuid.UUID` writes an id.
_CANONICAL_ID = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

#: A reason, or an exception, is cut to this many bytes of UTF-8.
_MAX_REASON = 8000

#: ``outcome`` of a run that Airflow, or another runner, made superfluous. It is reported to nobody.
UNWANTED = "unwanted"


class RunState(str, enum.Enum):
    """Where a run is in its life."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    KILLED = "killed"
    LOST = "lost"

    @property
    def is_end(self) -> bool:
        """Whether nothing follows this state."""
        return not _FOLLOWERS[self]


_ENDS = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.KILLED, RunState.LOST})
_FOLLOWERS: dict[RunState, frozenset[RunState]] = {
    RunState.QUEUED: frozenset({RunState.STARTING}) | (_ENDS - {RunState.SUCCEEDED}),
    RunState.STARTING: frozenset({RunState.RUNNING}) | (_ENDS - {RunState.SUCCEEDED}),
    RunState.RUNNING: _ENDS,
    **dict.fromkeys(_ENDS, frozenset[RunState]()),
}

#: The field that holds the moment a run took a state.
_MOMENT = {
    RunState.QUEUED: "queued_at",
    RunState.STARTING: "starting_at",
    RunState.RUNNING: "running_at",
    **dict.fromkeys(_ENDS, "ended_at"),
}


def now() -> str:
    """Return this moment in UTC as ISO 8601, with microseconds."""
    return datetime.now(tz=timezone.utc).isoformat()


def moment(seconds: float) -> str:
    """Return the moment that is ``seconds`` after the epoch, as :func:`now` writes it."""
    return datetime.fromtimestamp(seconds, tz=timezone.utc).isoformat()


def check_id(text: str) -> str:
    """Return ``text`` in the canonical form of a UUID. Ids become file names, so nothing else may pass.

    :raises RecordError: ``text`` is not a UUID.
    """
    if isinstance(text, str) and _CANONICAL_ID.fullmatch(text):
        return text  # nearly always; to parse a UUID is slow
    try:
        return str(uuid.UUID(text))
    except (ValueError, AttributeError, TypeError):
        raise RecordError(f"{text!r} is not a run or workload id (a UUID)") from None


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a run executes, in the words of whoever ordered it. Fields that do not apply are ``None``."""

    kind: str
    """``task``, ``callback`` or ``connection_test`` of Airflow; ``job`` for a task of the standalone engine."""
    workload_id: str
    """UUID of the workload; one runner at a time may execute it. For a task, Airflow's task instance id."""
    name: str
    """A short name for people."""
    dag_id: str | None = None
    task_id: str | None = None
    dag_run_id: str | None = None
    map_index: int | None = None
    try_number: int | None = None
    team: str | None = None
    queue: str | None = None
    job_name: str | None = None

    @property
    def index(self) -> str:
        """Which of a task's mapped instances it is, as ``[3]``; empty if it is not mapped."""
        return f"[{self.map_index}]" if self.map_index is not None and self.map_index >= 0 else ""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as it stands in ``state.json``. Moments are ISO 8601 in UTC."""

    id: str
    """UUID of the run. For an Airflow task it is also the instance's ``external_executor_id``."""
    state: RunState
    identity: Identity
    limits: dict[str, Any] = field(default_factory=dict)
    """The limits that were asked for; of an environment only the names."""
    host: str | None = None
    boot_id: str | None = None
    pid: int | None = None
    pid_started: float | None = None
    """When the runner process started, in seconds since the epoch: tells it from a later one with its pid."""
    task_pid: int | None = None
    gpus: list[str] | None = None
    """The GPUs that the runner holds, by the names of their locks, once it does."""
    log_file: str | None = None
    """Absolute path of the workload's own log."""
    queued_at: str | None = None
    starting_at: str | None = None
    running_at: str | None = None
    ended_at: str | None = None
    reported_at: str | None = None
    """Since when whoever ordered the run knows its end. Not in the document: the file ``reported`` says so."""
    outcome: str | None = None
    """What became of the workload, in the orderer's words (Airflow: the task instance's state)."""
    delivered: bool = False
    """Whether the runner itself told Airflow the outcome."""
    exit_code: int | None = None
    signal: str | None = None
    reason: str | None = None
    """Why the run ended as it did, for a person. ``None`` when there is nothing to explain."""
    exception: str | None = None
    """With which exception the task failed, in a line; its log tells it at length."""
    peak_memory_bytes: int | None = None
    """The most that all processes of the task held together, each page counted once: what a memory limit compares. Of a
    task without one that ended within a second, the largest resident size of a single process, which is all that is
    known; then there is no ``p95_memory_bytes``."""
    p95_memory_bytes: int | None = None
    """How much of that they held at most for 95 % of the time. See ``usage.jsonl`` in the run's folder."""
    cpu_time_s: float | None = None
    tokens_signed: int | None = None
    """How often the runner has signed itself another token."""
    unknown: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Fields of another version's document, of its ``identity`` too. They are written back as they were."""

    @property
    def why(self) -> str | None:
        """Why the run ended as it did, whatever there is to say."""
        return self.reason or self.exception

    @property
    def label(self) -> str:
        """What ran, in a few words."""
        who = self.identity
        if who.dag_id is None:
            return who.name
        return f"{who.dag_id}.{who.task_id or who.name}{who.index}"

    def advance(self, state: RunState, **changes: Any) -> RunRecord:
        """Return the record in a later ``state``, with ``changes`` and the moment noted.

        :raises IllegalTransitionError: ``state`` can not follow the present one.
        """
        if state not in _FOLLOWERS[self.state]:
            raise IllegalTransitionError(f"run {self.id} is {self.state.value} and can not become {state.value}")
        for name in ("reason", "exception"):
            if (text := changes.get(name)) is not None:
                changes[name] = _shortened(text)
        return dataclasses.replace(self, state=state, **{**changes, _MOMENT[state]: now()})

    def to_json(self) -> bytes:
        """Return the document as text: readable, always in the same order, without what is not set."""
        return jsontext.dumps(self.to_document(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

    def to_document(self) -> dict[str, Any]:
        """Return the document as plain data."""
        document: dict[str, Any] = {"version": VERSION, "id": self.id, "state": self.state.value}
        document["identity"] = {**_filled(vars(self.identity)), **self.unknown.get("identity", {})}
        for name, value in _filled(vars(self)).items():
            document.setdefault(name, value)
        del document["unknown"]
        if later := {name: document.pop(name) for name in _LATER if name in document}:
            document["limits"] = {**document["limits"], LATER: later}
        for name, value in self.unknown.items():
            document.setdefault(name, value)
        return document

    @classmethod
    def from_json(cls, data: bytes) -> RunRecord:
        """Read a document back from its text. See :meth:`from_document`.

        :raises RecordError: it is not one, or of a newer version.
        """
        try:
            document = jsontext.loads(data)
        except ValueError as error:
            raise RecordError(f"it is not a run's document: {error}") from None
        return cls.from_document(document)

    @classmethod
    def from_document(cls, document: Any) -> RunRecord:
        """Read a document back from plain data, which is used up.

        Fields that this version does not know are kept in :attr:`unknown`.

        :raises RecordError: it is not one, or of a newer version.
        """
        try:
            version = document.pop("version")
            if version != VERSION:
                raise RecordVersionError(f"a record's version is {version}; this AirExecutor understands {VERSION}")
            known_identity, strange = _divided(Identity, document.pop("identity"))
            identity = Identity(**known_identity)
            check_id(identity.workload_id)
            state = RunState(document.pop("state"))
            run_id = check_id(document.pop("id"))
            if isinstance(limits := document.get("limits"), dict) and LATER in limits:
                document.update(limits.pop(LATER))
            known, unknown = _divided(cls, document)
            if strange:
                unknown["identity"] = strange
            return cls(state=state, identity=identity, id=run_id, unknown=unknown, **known)
        except RecordError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RecordError(f"it is not a run's document: {error}") from None


#: The fields of a record that the first release of version 1 does not know.
_LATER = tuple(each.name for each in dataclasses.fields(RunRecord) if each.name not in _FIRST)


#: What a field may be in a document, by its annotation.
_TYPES: dict[Any, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int | None": (int, type(None)),
    "float | None": (float, int, type(None)),
    "bool": (bool,),
    "dict[str, Any]": (dict,),
    "list[str] | None": (list, type(None)),
}

#: The same by the names of the fields, for each kind of document. Fields that are read separately are left out.
_FIELDS: dict[type, dict[str, tuple[type, ...]]] = {
    kind: {each.name: _TYPES[each.type] for each in dataclasses.fields(kind) if each.type in _TYPES}
    for kind in (Identity, RunRecord)
}


def _divided(kind: type, document: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of a document that dataclass ``kind`` has, and the others.

    :raises ValueError: one of the former has a wrong type, or is no moment or process id though it has to be one.
    """
    types = _FIELDS[kind]
    known: dict[str, Any] = {}
    unknown: dict[str, Any] = {}
    for name, value in document.items():
        if name not in types:
            unknown[name] = value
            continue
        is_right = isinstance(value, types[name]) and (not isinstance(value, bool) or bool in types[name])
        if is_right and value is not None and name.endswith("_at"):
            is_right = _is_moment(value)
        elif is_right and value is not None and name in ("pid", "task_pid"):
            is_right = value > 0  # others name groups of processes, or all of them
        if not is_right:
            raise ValueError(f"{name} is {value!r}"[:200])
        known[name] = value
    return known, unknown


def _is_moment(text: Any) -> bool:
    """Tell whether this is a moment as :func:`now` writes it, with its time zone."""
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _filled(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _shortened(text: str) -> str:
    data = text.encode("utf-8", "surrogatepass")
    return text if len(data) <= _MAX_REASON else data[:_MAX_REASON].decode("utf-8", "ignore") + " [shortened]"


def queued(run_id: str, identity: Identity, *, limits: dict[str, Any], log_file: str | None) -> RunRecord:
    """Return the first record of a run."""
    return RunRecord(
        id=check_id(run_id),
        state=RunState.QUEUED,
        identity=identity,
        limits=limits,
        log_file=log_file,
        queued_at=now(),
    )
