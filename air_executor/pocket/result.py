"""What became of a run, for programs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from air_executor.pocket.folder import RunFolder
from air_executor.pocket.request import DagError


@dataclass(frozen=True)
class DagResult:
    """What became of a DAG's run."""

    name: str
    """The run's name here: ``air-executor dag show NAME``."""
    dag_id: str
    run_id: str
    state: str
    """``success`` or ``failed``."""
    tasks: tuple[dict[str, Any], ...]
    """A document for each task instance: ``task_id``, ``map_index`` (-1: it is not mapped), ``state``, ``try_number``,
    ``start`` and ``end`` in ISO 8601."""
    folder: Path
    leaves: tuple[str, ...] = ()
    """The tasks that nothing depends on."""
    xcoms: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    triggered: tuple[dict[str, Any], ...] = ()
    """A document for each run that it has triggered: ``dag_id``, ``run_id`` and ``state``. As for Airflow, a task that
    does not wait for such a run does not fail with it, nor does :attr:`ok` tell of it."""

    @classmethod
    def of(cls, folder: RunFolder) -> DagResult:
        """Read what became of the run in a folder.

        :raises DagError: it has not ended, or the file can't be understood.
        """
        result = folder.result()
        if result is None:
            raise DagError(f"run {folder.name} has not ended")
        try:
            return cls(
                name=folder.name,
                dag_id=result["dag_id"],
                run_id=result["run_id"],
                state=result["state"],
                tasks=tuple(result["tasks"]),
                folder=folder.path,
                leaves=tuple(result["leaves"]),
                xcoms=tuple(result["xcoms"]),
                triggered=tuple(result.get("triggered", ())),  # of former commits
            )
        except (KeyError, TypeError) as error:
            raise DagError(f"{folder.path / 'result.json'} can't be understood: {error!r}") from None

    @property
    def ok(self) -> bool:
        """Whether the run is a success."""
        return self.state == "success"

    @property
    def states(self) -> dict[str, Any]:
        """The state of each task by its id; of a mapped one, a list in the order of the map indexes."""
        states: dict[str, Any] = {}
        for task in self.tasks:
            if task["map_index"] < 0:
                states[task["task_id"]] = task["state"]
            else:
                states.setdefault(task["task_id"], []).append(task["state"])
        return states

    def xcom(self, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        """Return what a task has pushed.

        :raises KeyError: it has pushed nothing under that key.
        """
        for each in self.xcoms:
            if (each["task_id"], each["key"], each["map_index"]) == (task_id, key, map_index):
                if "value" not in each:
                    raise KeyError(f"{key} of {task_id} has {each['omitted_bytes']} bytes, and was not kept")
                return each["value"]
        raise KeyError(f"{task_id} has pushed no {key}")

    def log(self, task_id: str, map_index: int = -1, try_number: int | None = None) -> str:
        """Return the log of a task, of its last try unless another is named, as Airflow wrote it: JSON lines.

        :raises KeyError: there is no such task, or it has no log.
        """
        for task in self.tasks:
            if (task["task_id"], task["map_index"]) == (task_id, map_index):
                number = task["try_number"] if try_number is None else try_number
                folder = RunFolder(self.folder)
                try:
                    return folder.task_log(self.dag_id, self.run_id, task_id, map_index, number).read_text()
                except OSError as error:
                    raise KeyError(f"{task_id} has no log of try {number}") from error
        raise KeyError(f"run {self.name} has no task {task_id} with map index {map_index}")
