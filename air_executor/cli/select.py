"""Finding runs by their dag, task, dag run and map index, or by their ids."""

from __future__ import annotations

import argparse
import sys

from air_executor.cli.table import Argument, whole_number
from air_executor.errors import AirExecutorError
from air_executor.observe.everywhere import AllRuns
from air_executor.runs.record import RunRecord

#: At most this many of the task instances that could be meant are named.
_NAMED = 5

FILTERS = (
    Argument(("-d", "--dag"), {"metavar": "DAG_ID", "help": "only runs of this dag"}),
    Argument(("-t", "--task"), {"metavar": "TASK_ID", "dest": "task_id", "help": "only of this task"}),
    Argument(("-r", "--run"), {"metavar": "RUN_ID", "dest": "run_id", "help": "only of this DAG run"}),
    Argument(
        ("-m", "--map-index"), {"metavar": "N", "type": whole_number, "help": "only of this mapped task instance"}
    ),
)

RUN = Argument(("run",), {"nargs": "?", "metavar": "RUN", "help": "id of the run, or the beginning of it"})

#: The filters again, for commands that take the id of a run.
ARGUMENTS = tuple(
    Argument(each.flags, {**each.options, "help": f"in place of RUN: {each.options['help'].removeprefix('only ')}"})
    for each in FILTERS
)


def names_runs(args: argparse.Namespace) -> bool:
    """Tell whether a command line names runs by their dag, task, dag run or map index.

    :raises AirExecutorError: it names one by its id as well.
    """
    is_so = any(value is not None for value in (args.dag, args.task_id, args.run_id, args.map_index))
    if is_so and args.run is not None:
        raise AirExecutorError("name a run by its id, or by --dag, --task, --run and --map-index, not by both")
    return is_so


def matching(runs: AllRuns, args: argparse.Namespace, *, live: bool = False) -> list[RunRecord]:
    """Return the runs that a command line names, the newest first.

    :param live: only those that have not ended.
    :raises AirExecutorError: there are none.
    """
    found = [record for record in (runs.open_records() if live else runs.records()) if is_wanted(record, args)]
    if live:
        found = [record for record in map(runs.settled, found) if not record.state.is_end]
    if not found:
        what = ", ".join(f"{name} {value}" for name, value in _wanted(args).items())
        raise AirExecutorError(f"there is no {'live ' if live else ''}run of {what} below {runs.here.root}")
    return sorted(found, key=lambda record: record.queued_at or "", reverse=True)


def is_wanted(record: RunRecord, args: argparse.Namespace) -> bool:
    """Tell whether a run has the DAG, task, dag run and map index that a command line names."""
    return all(_is(record, name, value) for name, value in _wanted(args).items())


def _wanted(args: argparse.Namespace) -> dict[str, object]:
    wanted = {"dag_id": args.dag, "task_id": args.task_id, "dag_run_id": args.run_id, "map_index": args.map_index}
    return {name: value for name, value in wanted.items() if value is not None}


def _is(record: RunRecord, name: str, value: object) -> bool:
    found = getattr(record.identity, name)
    return found == value or (name == "map_index" and value == -1 and found is None)


def one(runs: AllRuns, args: argparse.Namespace) -> RunRecord:
    """Return the run that a command line names by its id, or the newest one of the task instance that it names.

    :raises AirExecutorError: there is none, or several task instances are named.
    """
    if not names_runs(args):
        if args.run is None:
            raise AirExecutorError("name a run: by its id, or with --dag, --task, --run and --map-index")
        return runs.find(args.run)
    found = matching(runs, args)
    newest = found[0]
    of_others = {record.label: record for record in found if record.label != newest.label}
    if of_others:
        named = [newest, *of_others.values()]
        lines = "".join(f"\n  {record.id[:8]}  {record.label}" for record in named[:_NAMED])
        more = f"\n  and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        raise AirExecutorError(f"{len(named)} task instances are named so; say more, or choose by id:{lines}{more}")
    if len(found) > 1:
        print(f"the newest of {len(found)} runs of {newest.label}: {newest.id}", file=sys.stderr)
    return newest
