"""What users see of a run, without what differs between any two, so that runs of two executors can be compared."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

#: What differs between any two runs: patterns, and what is put in their place.
_DIFFERING = [
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "<uuid>"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)?"), "<time>"),
    (re.compile(r"\b\d{8}T\d{6}\b|\b20\d{6}\b"), "<time>"),
    (re.compile(r"\b(datetime\.datetime|DateTime)\([\d, ]+"), r"\1(<time>, "),
    (re.compile(r"context_carrier=(None|\{[^}]*\})"), "context_carrier=<trace>"),
    (re.compile(r"\b0x[0-9a-f]+\b"), "<address>"),
    (re.compile(r"/tmp/(airflowtmp|tmp)\w+"), "<temporary>"),
    (re.compile(r"(localhost|127\.0\.0\.1):\d+"), "<address>"),
    (re.compile(r"\b(pid|process|PID)([ =:]+)\d+"), r"\1\2<pid>"),
    (re.compile(r"\bvenv(-call)?[a-z0-9_]{8}(?![a-z0-9_])"), r"venv\1<temporary>"),
    (re.compile(r"\bjob-[a-z0-9]{8}\b"), "job-<random>"),
    (re.compile(r"created_dagruns=\[.*?\](?= source_)"), "created_dagruns=<chance>"),
    (re.compile(r"\bunusual_prefix_[0-9a-f]+_"), "unusual_prefix_"),
]

#: Fields of log lines and database rows that tell when, how long, where and by which process.
_VOLATILE = frozenset(
    "timestamp duration dag_file_parse_ms bundle_prepare_ms pid hostname queued_by_job_id start_date end_date "
    "queued_dttm scheduled_dttm last_heartbeat_at updated_at created_at dttm id external_executor_id trigger_id "
    "trigger_timeout task_instance_id dag_version_id dag_run_id timeout logical_date data_interval_start "
    "data_interval_end scheduled_by_job_id created_dagruns creating_job_id last_scheduling_decision run_after "
    "queued_at next_schedulable clear_number ti_id owner_display_name expiration context_carrier span_status".split()
)


#: Airflow's own packages warn of each other when @task imports them: that is done once ahead, not in each task.
WARNS_OF_ITSELF = re.compile(r"py\.warnings: .*The `airflow\.[\w.]+` attribute is deprecated")


class Normaliser:
    """Takes out of texts what differs between any two runs."""

    def __init__(self, *own: tuple[str, str]) -> None:
        """Prepare.

        :param own: literal texts, each with what is to be put in its place.
        """
        self._own = sorted(own, key=lambda pair: -len(pair[0]))

    def text(self, text: str) -> str:
        for literal, place in self._own:
            text = text.replace(literal, place)
        for pattern, place in _DIFFERING:
            text = pattern.sub(place, text)
        return text

    def value(self, value: Any) -> Any:
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                document = json.loads(value)
                if isinstance(document, (dict, list)):
                    return self.value(document)
            return self.text(value)
        if isinstance(value, dict):
            return {
                self.text(str(key)): self.value(each) for key, each in sorted(value.items()) if key not in _VOLATILE
            }
        if isinstance(value, list):
            return [self.value(each) for each in value]
        return value

    def line(self, value: Any) -> str:
        return json.dumps(self.value(value), ensure_ascii=False, default=repr)

    def log(self, path: Path) -> dict[str, list[str]]:
        """Return the lines of a task's log, in their order, by logger."""
        found: dict[str, list[str]] = {}
        for raw in path.read_text(errors="replace").splitlines():
            try:
                line = json.loads(raw)
            except ValueError:
                line = {"logger": "no JSON", "raw": raw}
            found.setdefault(str(line.get("logger")), []).append(self.line(line))
        return found


def _files(folder: Path) -> list[Path]:
    """Return the logs of a run's tasks; what triggers log comes from the triggerer, and may depend on the time."""
    return [path for path in sorted(folder.rglob("*.log")) if ".trigger." not in path.name]


def logs_of(folder: Path, normaliser: Normaliser) -> dict[str, list[str]]:
    """Return the lines of all logs below a run's folder, by file and logger."""
    return {
        f"{normaliser.text(str(path.relative_to(folder)))} {logger}": lines
        for path in _files(folder)
        for logger, lines in normaliser.log(path).items()
    }


def events_of(folder: Path, normaliser: Normaliser) -> list[str]:
    """Return the level, logger and event of all lines below a run's folder, without numbers, but for those meant."""
    found = []
    for path in _files(folder):
        for raw in path.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                line = json.loads(raw)
                event = re.sub(r"\d+", "#", normaliser.text(str(line.get("event"))))
                name = normaliser.text(str(path.relative_to(folder)))
                found.append(f"{name}: {line.get('level')} {line.get('logger')}: {event}")
    return [line for line in found if not WARNS_OF_ITSELF.search(line)]


def rows_of(database: Path, run_id: str, normaliser: Normaliser, tables: Iterable[str]) -> dict[str, list[str]]:
    """Return a run's rows in tables that have a ``run_id``, sorted."""
    found = {}
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=60)) as connection:
        connection.row_factory = sqlite3.Row
        for table in tables:
            columns = [row["name"] for row in connection.execute(f"PRAGMA table_info({table})")]
            column = "run_id" if "run_id" in columns else "source_run_id"
            rows = connection.execute(f"SELECT * FROM {table} WHERE {column} = ?", (run_id,)).fetchall()
            found[table] = sorted(
                normaliser.line({k: _plain(v) for k, v in dict(row).items() if v is not None}) for row in rows
            )
    return found


def _plain(value: Any) -> Any:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def differences(first: dict[str, Sequence[str]], second: dict[str, Sequence[str]]) -> list[str]:
    """Return what is not the same, a line each: ``-`` of the first only, ``+`` of the second only."""
    import difflib

    found = []
    for name in sorted(first.keys() | second.keys()):
        for line in difflib.ndiff(list(first.get(name, ())), list(second.get(name, ()))):
            if line[:1] in "-+":
                found.append(f"{line[0]} {name}: {line[2:]}")
    return found
