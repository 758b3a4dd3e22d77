"""The owner of a job, a task instance of Airflow, and the name that the job gets from it.

A job belongs to one DAG, task, run and map index. Two of these never get the same name here, whatever letters and
lengths their ids have. The owner is recorded as ``made_by`` in ``state.json``.
"""

from __future__ import annotations

import enum
import hashlib
import re
from dataclasses import asdict, dataclass
from typing import Any

#: Characters that a name can't have, see :func:`air_executor.jobs.names.check_name`.
_FORBIDDEN = re.compile(r"[^A-Za-z0-9_.:+@=-]")

#: How many characters of each id a name may show.
_SHOWN = 57

_DIGEST = 16


class Since(enum.Enum):
    """What has happened to a task instance since its job was made."""

    NOTHING = "nothing"
    """It is the same try, in another process."""
    FAILED = "failed"
    """A try has failed, and another one follows."""
    CLEARED = "cleared"
    """It was cleared, or its run was deleted and created again."""


@dataclass(frozen=True)
class Owner:
    """A task instance, as ``made_by`` in ``state.json``."""

    dag_id: str
    task_id: str
    run_id: str
    map_index: int = -1
    try_number: int = 1
    max_tries: int = 0
    """Airflow increases it when the task instance is cleared."""
    clear_number: int = 0
    """How often tasks of the run were cleared, as Airflow counts."""
    instance: str = ""
    """Airflow's id of the task instance: another one for each try."""

    @classmethod
    def of(cls, context: Any) -> Owner:
        """Return the task instance of a context."""
        instance, run = context["ti"], context.get("dag_run")
        index = getattr(instance, "map_index", None)
        return cls(
            dag_id=instance.dag_id,
            task_id=instance.task_id,
            run_id=instance.run_id,
            map_index=-1 if index is None else index,
            try_number=instance.try_number,
            max_tries=getattr(instance, "max_tries", None) or 0,
            clear_number=getattr(run, "clear_number", None) or 0,
            instance=str(instance.id),
        )

    @classmethod
    def from_document(cls, document: Any) -> Owner | None:
        """Read what :meth:`to_document` returned; ``None`` if it is anything else."""
        if not isinstance(document, dict):
            return None
        try:
            values = {name: document[name] for name in ("dag_id", "task_id", "run_id")}
        except KeyError:
            return None
        more = {name: document.get(name, 0) for name in ("try_number", "max_tries", "clear_number")}
        more["map_index"] = document.get("map_index", -1)
        if not all(isinstance(text, str) for text in values.values()):
            return None
        if not all(isinstance(number, int) for number in more.values()):
            return None
        return cls(**values, **more, instance=str(document.get("instance", "")))

    def to_document(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    @property
    def place(self) -> tuple[str, str, str, int]:
        """What is the same for all tries of the task instance."""
        return self.dag_id, self.task_id, self.run_id, self.map_index

    def since(self, former: Owner) -> Since:
        """Tell what has happened to the task instance since it was ``former``."""
        if self.instance and self.instance == former.instance:
            return Since.NOTHING
        was_cleared = (self.max_tries, self.clear_number) != (former.max_tries, former.clear_number)
        # A run that was deleted and created again begins with the first try.
        return Since.CLEARED if was_cleared or self.try_number <= former.try_number else Since.FAILED

    def job_name(self) -> str:
        """Return the name for its job: ``dag.task.run``, and ``.index`` if it is mapped.

        If a part had to be replaced or shortened, or if another owner's name could be the same, it ends with ``@`` and
        a digest of the parts. No other name ends so.
        """
        ids = [self.dag_id, self.task_id, self.run_id, *([str(self.map_index)] if self.map_index >= 0 else [])]
        name = ".".join(ids)
        is_plain = bool(
            not _FORBIDDEN.search(name)
            and re.match("[A-Za-z0-9_]", name)
            and all(len(each) <= _SHOWN for each in ids)
            # With any of these, the name could be that of another DAG, task or map index.
            and "." not in self.dag_id + self.task_id
            and not (self.map_index < 0 and re.search(r"\.[0-9]+$", name))
            and not re.search(r"@[0-9a-f]{16}$", name)
        )
        if is_plain:
            return name
        digest = hashlib.sha256(repr(self.place).encode()).hexdigest()[:_DIGEST]
        shown = _FORBIDDEN.sub("_", ".".join(each[:_SHOWN] for each in ids))
        return f"{'' if shown[:1].isalnum() else '_'}{shown}@{digest}"

    def __str__(self) -> str:
        index = f", map index {self.map_index}" if self.map_index >= 0 else ""
        return f"task {self.task_id!r} of dag {self.dag_id!r}, run {self.run_id!r}{index}"


def is_of(made_by: Any, asking: Any) -> bool:
    """Tell whether the owner in ``made_by`` is still the one that is ``asking``, if that is said."""
    owner, whose = Owner.from_document(asking), Owner.from_document(made_by)
    return owner is None or (whose is not None and whose.instance == owner.instance)
