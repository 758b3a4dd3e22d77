"""What the commands show, as rich renderables."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from air_executor.cli.listing import Listing
from air_executor.machine.sizes import mebibytes
from air_executor.observe.budget import ObservedBudget, documents
from air_executor.observe.check import Check
from air_executor.observe.query import ObservedRun
from air_executor.runs.record import RunRecord, RunState
from air_executor.runs.records import public
from air_executor.runs.store import RunStore

_COLOURS = {
    RunState.QUEUED: "dim",
    RunState.STARTING: "cyan",
    RunState.RUNNING: "green",
    RunState.SUCCEEDED: "green",
    RunState.FAILED: "red",
    RunState.KILLED: "red",
    RunState.LOST: "magenta",
}

#: This many characters of an id tell runs apart; commands accept the beginning of one.
_SHORT = 8


def _state(state: RunState) -> Text:
    return Text(state.value, style=_COLOURS[state])


def duration(seconds: float) -> str:
    """Return a duration for people."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02.0f}s" if minutes else f"{rest:.1f}s"


def status(
    launchers: list[dict[str, Any]], runs: list[ObservedRun], waiting: list[dict[str, Any]], *, hosts: bool
) -> RenderableType:
    """Return the launchers, the live runs, and what waits for GPUs.

    :param hosts: show the hosts of the runs.
    """
    parts: list[RenderableType] = []
    for launcher in launchers:
        parts.append(
            Text(
                f"launcher {launcher['key']}: pid {launcher['pid']}, version {launcher['version']}, "
                f"{launcher['launch']}, up {duration(launcher['age_s'])}, {launcher['runners']} runners"
            )
        )
        parts += [Text(f"  {trouble}", style="red") for trouble in launcher.get("troubles", ())]
    if not launchers:
        parts.append(Text("no launcher (one is started with the next workload)"))
    host = ("HOST",) if hosts else ()
    columns = ("RUN", "STATE", *host, "AGE", "MEMORY", "CPU", "PID", "WHAT", "TRY")
    shown = Listing(*columns, right=("AGE", "MEMORY", "CPU", "PID"))
    for run in runs:
        record = run.record
        shown.add_row(
            record.id[:_SHORT],
            _state(record.state),
            *(record.host or "-" for _ in host),
            duration(run.age_s),
            mebibytes(run.memory_bytes) if run.memory_bytes is not None else "-",
            f"{run.cpu_time_s:.1f}s" if run.cpu_time_s is not None else "-",
            str(record.pid or "-"),
            record.label,
            str(record.identity.try_number or "-"),
        )
    parts.append(shown if runs else Text("nothing runs"))
    if waiting:
        line = Listing("WAITS FOR", "SINCE (UTC)", "WHAT")
        for each in waiting:
            gpus = f"{each['gpus']} of {each['of']} GPUs to be free"
            line.add_row(gpus, each["since"][:19].replace("T", " "), each["name"])
        parts.append(line)
    return Group(*parts)


def room(found: ObservedBudget) -> RenderableType:
    """Return what is taken of the machine's budget, and what waits for room."""
    budget, taken = found.budget, found.taken
    of = f" of {mebibytes(budget.memory)}" if budget.memory is not None else ""
    text = f"budget: {mebibytes(taken.memory)}{of} taken"
    if budget.cpus is not None:
        text += f", {taken.cpus:g} of {budget.cpus:g} CPUs"
    parts: list[RenderableType] = [Text(f"{text}, by {taken.runs} runs of this machine")]
    if found.waiting:
        line = Listing("SINCE (UTC)", "WHAT", "WAITS FOR ROOM", wraps="WAITS FOR ROOM")
        for each in documents(found.waiting):
            line.add_row(each["since"][:19].replace("T", " "), each["name"], each["why"])
        parts.append(line)
    return Group(*parts)


def runs(records: list[RunRecord], *, hosts: bool) -> RenderableType:
    """Return a list of runs.

    :param hosts: show their hosts.
    """
    host = ("HOST",) if hosts else ()
    shown = Listing("RUN", "STATE", *host, "QUEUED (UTC)", "WHAT", "TRY", "REASON", wraps="REASON")
    for record in records:
        shown.add_row(
            record.id[:_SHORT],
            _state(record.state),
            *(record.host or "-" for _ in host),
            (record.queued_at or "")[:19].replace("T", " "),
            record.label,
            str(record.identity.try_number or "-"),
            record.why or "",
        )
    return shown if records else Text("no runs")


def run(store: RunStore, record: RunRecord) -> RenderableType:
    """Return everything about one run."""
    shown = Listing("FIELD", "VALUE", wraps="VALUE")
    document = public(record)
    document = {**document.pop("identity"), **document, "record": str(store.folder(record.id) / "state.json")}
    for name, value in document.items():
        text = mebibytes(value) if name in ("peak_memory_bytes", "p95_memory_bytes") else str(value)
        shown.add_row(name, _state(record.state) if name == "state" else text)
    return shown


def checks(results: list[Check]) -> RenderableType:
    """Return the doctor's findings."""
    lines: list[RenderableType] = []
    for check in results:
        mark, style = ("ok  ", "green") if check.ok else ("FAIL", "bold red")
        lines.append(Text.assemble((mark, style), f"  {check.name}: {check.found}"))
        if not check.ok:
            lines.append(Text(f"      {check.remedy}"))
    return Group(*lines)
