"""What ``air-executor dag run`` shows while a DAG runs: a live list on a terminal, else a line for each change."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from air_executor.cli.tasklogs import LogReader
from air_executor.cli.views import duration as duration
from air_executor.machine.sizes import mebibytes
from air_executor.observe.everywhere import AllRuns
from air_executor.observe.query import observe_runs
from air_executor.pocket.folder import RunFolder
from air_executor.pocket.run import Event

_STYLES = {
    "success": "green",
    "running": "cyan",
    "failed": "red",
    "upstream_failed": "red",
    "up_for_retry": "yellow",
    "up_for_reschedule": "yellow",
    "interrupted": "yellow",
    "skipped": "magenta",
    "deferred": "blue",
}
_SYMBOLS = {"success": "✓", "failed": "✗", "upstream_failed": "✗", "running": "●", "skipped": "-", "deferred": "…"}

#: What a list of tasks leaves out first when it is too long.
_DONE = frozenset({"success", "skipped", "removed"})

#: This many lines of a failed task's log are shown, of this many that are read.
_LAST_LINES, _READ_LINES = 10, 200

#: Lines that say nothing of the task: Airflow's frames, and the marks of groups of lines.
_OF_AIRFLOW = re.compile(r"^ +File .*/site-packages/airflow/|::(end)?group::")

#: How often the memory of running tasks is looked up, in seconds.
_LOOK_S = 1.0


def state(name: str | None) -> Text:
    """Return a state for people."""
    return Text(name or "waiting", style=_STYLES.get(name or "", "dim"))


def label(task: dict[str, Any]) -> str:
    """Return the name of a task instance."""
    return task["task_id"] if task["map_index"] < 0 else f"{task['task_id']}[{task['map_index']}]"


def took_s(task: dict[str, Any]) -> float | None:
    """Return how long a task instance has run, in seconds; ``None`` if it has not begun."""
    if task["start"] is None:
        return None
    end = datetime.fromisoformat(task["end"]) if task["end"] else datetime.now(tz=timezone.utc)
    return max(0.0, (end - datetime.fromisoformat(task["start"])).total_seconds())


class View:
    """Shows a line for each change."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.folder: RunFolder | None = None
        self.dag_id = self.run_id = ""
        self.is_resumable = False
        self.order: list[str] = []
        self.tasks: dict[tuple[str, int], dict[str, Any]] = {}

    def take(self, event: Event) -> None:
        """Show an event."""
        match event["event"]:
            case "begun":
                self.folder, self.is_resumable = RunFolder(Path(event["folder"])), event["goes_on"]
                what = "goes on with" if event["goes_on"] else "run"
                self.say(Text(f"{what} {event['name']}  in {event['folder']}", style="dim"))
            case "dag":
                self.dag_id, self.run_id, self.order = event["dag_id"], event["run_id"], event["tasks"]
                self.is_resumable = True
                self.say(Text.assemble((self.dag_id, "bold"), f"  {self.run_id}  {len(self.order)} tasks"))
            case "task":
                self.tasks[event["task_id"], event["map_index"]] = event
                self.change(event)
                if event["state"] in ("failed", "up_for_retry"):
                    self.show_end_of_log(event)
            case "interrupted":
                what = "stopping; the same command resumes this run" if self.is_resumable else "stopping"
                self.say(Text(what, style="yellow"))
            case "warning":
                self.say(Text(event["warning"], style="yellow"))

    def change(self, task: dict[str, Any]) -> None:
        """Show that a task has another state."""
        if task["state"] in (None, "scheduled", "queued"):
            return
        took = took_s(task) if task["end"] else None
        tail = "" if took is None else f"  {duration(took)}"
        tries = f"  try {task['try_number']}" if task["try_number"] > 1 else ""
        self.say(Text.assemble(f"{_time(task)}  ", state(task["state"]), f"  {label(task)}{tail}{tries}"))

    def show_end_of_log(self, task: dict[str, Any]) -> None:
        """Show the last lines of a task's log."""
        if self.folder is None:
            return
        # A task that waits for its next try has the number of that already, or still that of the last.
        for number in (task["try_number"], task["try_number"] - 1):
            path = self.folder.task_log(self.dag_id, self.run_id, task["task_id"], task["map_index"], number)
            if path.exists():
                for line in _last_words(path):
                    self.say(Text(f"    {line}", style="dim"))
                return

    def say(self, text: Text) -> None:
        """Print a line."""
        self.console.print(text, soft_wrap=True)


def _time(task: dict[str, Any]) -> str:
    return datetime.fromisoformat(task["at"]).astimezone().strftime("%H:%M:%S")


def _last_words(path: Path) -> list[str]:
    """Return the last lines of a log, without what Airflow itself adds to each."""
    reader = LogReader(str(path))
    reader.skip_to_tail(_READ_LINES)
    lines = (line for text in reader.lines(is_over=True) for line in text.splitlines())
    return list(deque((line for line in lines if not _OF_AIRFLOW.search(line)), maxlen=_LAST_LINES))


class _LiveView(View):
    """Shows all tasks, as far as there is room, below the lines that stay."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._began_s = time.monotonic()
        self._memory: dict[tuple[str, int], int] = {}
        self._looked_s = 0.0

    def change(self, task: dict[str, Any]) -> None:
        if task["state"] in ("failed", "up_for_retry"):  # what else changes is in the list
            super().change(task)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self._look()
        tasks = dict(self.tasks)  # this is called in a thread of its own
        groups: dict[str, dict[int, dict[str, Any]]] = {}
        for (task_id, index), task in tasks.items():
            groups.setdefault(task_id, {})[index] = task
        lines = [line for task_id in self.order for line in self._lines(task_id, groups.get(task_id, {}))]
        room = max(3, (options.height or console.height) - 2)
        if len(lines) > room:
            busy = [line for line in lines if line[0] not in _DONE]
            hidden = len(lines) - min(len(busy), room - 1)
            lines = [*busy[: room - 1], (None, Text(f"  and {hidden} more", style="dim"))]
        yield from (text for _, text in lines)
        counts = Counter(str(task["state"] or "waiting") for task in tasks.values())
        parts = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        yield Text(f"{duration(time.monotonic() - self._began_s)}  {parts or 'starting Airflow'}", style="dim")

    def _lines(self, task_id: str, own: dict[int, dict[str, Any]]) -> list[tuple[str | None, Text]]:
        """Return the lines of a task: one, and one for each mapped instance that is not just waiting or done."""
        mapped = {index: task for index, task in own.items() if index >= 0}
        if not mapped:
            return [self._line(task_id, own.get(-1))]
        done = sum(task["state"] in _DONE for task in mapped.values())
        failed = sum(task["state"] in ("failed", "upstream_failed") for task in mapped.values())
        whole = "success" if done == len(mapped) else "failed" if failed else "running"
        text = f"{_SYMBOLS.get(whole, ' ')} {task_id}  {done} of {len(mapped)}" + (
            f", {failed} failed" if failed else ""
        )
        lines: list[tuple[str | None, Text]] = [(whole, Text(text, style=_STYLES[whole]))]
        busy = [task for _, task in sorted(mapped.items()) if task["state"] in ("running", "failed", "up_for_retry")]
        return lines + [self._line(f"  {label(task)}", task) for task in busy]

    def _line(self, name: str, task: dict[str, Any] | None) -> tuple[str | None, Text]:
        now = task["state"] if task else None
        parts: list[str | Text | tuple[str, str]] = [
            (f"{_SYMBOLS.get(now or '', '·')} {name}", _STYLES.get(now or "", "dim")),
            "  ",
            state(now),
        ]
        if task is not None:
            if (took := took_s(task)) is not None and (task["end"] or now == "running"):
                parts.append(f"  {duration(took)}")
            if now == "running" and (memory := self._memory.get((task["task_id"], task["map_index"]))) is not None:
                parts.append(f"  {mebibytes(memory)}")
            if task["try_number"] > 1:
                parts.append(f"  try {task['try_number']}")
        return now, Text.assemble(*parts, no_wrap=True, overflow="ellipsis")

    def _look(self) -> None:
        """Look up what running tasks hold, now and then."""
        if self.folder is None or time.monotonic() < self._looked_s + _LOOK_S:
            return
        self._looked_s = time.monotonic()
        found = {}
        for run in observe_runs(AllRuns(self.folder.state_dir)):
            identity = run.record.identity
            if (identity.dag_id, identity.dag_run_id) != (self.dag_id, self.run_id):
                continue  # of a run that it has triggered
            if identity.task_id is not None and run.memory_bytes is not None:
                index = -1 if identity.map_index is None else identity.map_index
                found[identity.task_id, index] = run.memory_bytes
        self._memory = found


@contextlib.contextmanager
def view() -> Iterator[View]:
    """Show a run on stderr, within this."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield View(Console(stderr=True, width=1_000_000, color_system=None))
        sys.stderr.flush()
        return
    shown = _LiveView(console)
    with Live(shown, console=console, refresh_per_second=5, transient=True):
        yield shown
