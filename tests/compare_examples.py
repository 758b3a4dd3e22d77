"""Run Airflow's own example DAGs under LocalExecutor and another executor, and compare how every task ended.

``python -m tests.compare_examples [--executor NAME] [--dags REGEX] [--timeout S] [--json FILE]``

The example DAGs use most of what a DAG can use, and none of them was written with AirExecutor in mind: a task that
ends otherwise than under Airflow's own executor points to a mistake of ours. What is compared:

- A run that this script triggers: the state of the run, and the state and the try number of each task instance.
- What the logs of its tasks say: level, logger and event of each line, without numbers, in any order; not of DAGs that
  branch at random or make virtual environments, nor of runs that do not end.
- A run that such a run starts, through an asset or an operator: likewise, see :data:`SCENARIOS`. Several events of an
  asset may or may not fall into one run of an unpartitioned dag, so of those only the first run is compared.
- Not the runs that a schedule starts beside them: whether they end before their dag is paused again is chance.
- A DAG that fails by design, or for want of a package index or a network, is "same" if it fails in the same way.
- A run that does not end in time, as ``example_sensors`` with its sensor that waits for an hour: state "timeout", and
  its tasks as they are then.
- A DAG that branches at random: see :data:`RANDOM`.

LocalExecutor itself fails a task now and then: when a deferred task is resumed before the scheduler has read that its
first part ended ("reported that the task instance finished with state success, but the task instance's state attribute
is queued"); and on a busy machine a run may be late. So what differs runs a second time under LocalExecutor, never
under AirExecutor, and AirExecutor has to agree with one of the two; the table and the lines below it tell when it took
the second.

A few DAGs depend on the day or the hour; around midnight UTC they may differ for no fault of an executor.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from airflow import example_dags

from tests.support import airflow_env
from tests.support.airflow_env import Airflow
from tests.support.api import ENDED, DagRun, quote
from tests.support.sameness import Normaliser, events_of
from tests.support.waiting import wait_for
from tests.temporal.conftest import Temporal, Worker

EXAMPLES = Path(example_dags.__path__[0])

#: What is compared: LocalExecutor with the one that was asked for.
EXECUTORS = {"LocalExecutor": "LocalExecutor"}

#: What can be asked for.
#: ``dag run`` is no executor, but the command that runs one DAG: with it, only dags that need no other are compared.
DAG_RUN = "dag run"
OURS = {
    "AirExecutor": "air_executor.AirExecutor",
    "TemporalExecutor": "air_executor.TemporalExecutor",
    DAG_RUN: DAG_RUN,
}

#: The bundles that ``[core] load_examples`` makes of Airflow's core and of its standard provider.
BUNDLES = {"example_dags", "apache-airflow-providers-standard-example-dags"}

#: Scenarios that run at the same time.
AT_ONCE = 6

#: How often the API server, which the tasks need too, is asked for the state of the runs.
POLL_S = 1.0

#: A Monday. The examples of ``example_bash_decorator`` would sleep for an hour on a weekend.
LOGICAL_DATE = "2026-01-05T00:00:00Z"

_ONE_ASSET_TWO_NAMES = (
    "depends on chance: two example files name the asset s3://output/1.txt differently, so Airflow lets one of them "
    "have it and fails the tasks of the other"
)

#: Dags that are left out, with the reason.
EXCLUDED = {
    "asset_with_extra_by_context": _ONE_ASSET_TWO_NAMES,
    "asset_with_extra_by_yield": _ONE_ASSET_TWO_NAMES,
    "asset_with_extra_from_classic_operator": _ONE_ASSET_TWO_NAMES,
    "example_dag_decorator": "needs an outside service: it asks a public web service for its address",
    "example_hitl_operator": "waits for a human",
    "example_kubernetes_executor": "needs Kubernetes",
    "example_local_kubernetes_executor": "needs Kubernetes",
    "example_retry_policy": "needs an outside service: it asks a public web service, and retries for minutes",
    "read_asset_event": _ONE_ASSET_TWO_NAMES,
    "read_asset_event_from_classic": _ONE_ASSET_TWO_NAMES,
    "tutorial_objectstorage": "needs outside services: S3 and a public web service",
}

#: Dags that need classes by names that Airflow gives them only where it loads all its examples: not by ``dag run``.
BY_EXAMPLES = {"example_custom_weight", "example_workday_timetable"}

#: Dags that take one of the branches a, b, c and d at random. The branches are alike, so the tasks are compared without
#: the letter: as many ``branch_?`` must have ended with success, with skipped, ... under both.
RANDOM = {"example_branch_operator", "example_branch_python_operator_decorator"}

#: Dags that may take three times as long: they make virtual environments, which takes minutes on a busy machine.
SLOW = RANDOM

#: What a run needs to be told.
CONF: dict[str, dict[str, Any]] = {"example_params_ui_tutorial": {"required_field": "a text long enough"}}

#: The partition that a run is for. Without one its asset events would start no partitioned run.
PARTITION_KEYS = {
    "ingest_region_stats": "us",
    "ingest_team_a_player_stats": "2026-01-05T00:00:00",
    "team_b_player_stats": "2026-01-05T00:00:00",
    "team_c_player_stats": "2026-01-05T00:00:00",
    "train_weekly_model": "2026-01-05T00:00:00",
}

REGIONS = ("apac", "eu", "us")


@dataclass(frozen=True)
class Scenario:
    """Dags that are unpaused, triggered and paused together."""

    #: Dags to trigger: those of a step at once, as soon as all of the step before have ended.
    steps: tuple[tuple[str, ...], ...]
    #: Dags of which those runs start a run, with the partition keys of the runs; None is for an unpartitioned one.
    follow: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)

    @property
    def dag_ids(self) -> list[str]:
        return [*(dag_id for step in self.steps for dag_id in step), *self.follow]

    def only(self, present: set[str]) -> Scenario:
        """Return the scenario without the DAGs that this version of Airflow does not have."""
        steps = [tuple(dag_id for dag_id in step if dag_id in present) for step in self.steps]
        follow = {dag_id: keys for dag_id, keys in self.follow.items() if dag_id in present}
        return Scenario(tuple(step for step in steps if step), follow)


def week_from(first: str) -> tuple[str, ...]:
    return tuple(str(date.fromisoformat(first) + timedelta(days=day)) for day in range(7))


#: Dags that belong together. Every other DAG is a scenario of its own.
SCENARIOS = (
    Scenario(
        steps=(("asset_produces_1", "asset_produces_2"),),
        follow={
            "asset_consumes_1": (None,),
            "asset_consumes_1_and_2": (None,),
            "consume_1_and_2_with_asset_expressions": (None,),
            "consume_1_or_2_with_asset_expressions": (None,),
            "consume_1_or_both_2_and_3_with_asset_expressions": (None,),
            "conditional_asset_and_time_based_timetable": (None,),
        },
    ),
    Scenario(
        steps=(("asset_s3_bucket_producer",), ("asset_alias_example_alias_producer",)),
        follow={"asset_s3_bucket_consumer": (None,), "asset_alias_example_alias_consumer": (None,)},
    ),
    Scenario(
        steps=(
            ("asset_s3_bucket_producer_with_no_taskflow",),
            ("asset_alias_example_alias_producer_with_no_taskflow",),
        ),
        follow={
            "asset_s3_bucket_consumer_with_no_taskflow": (None,),
            "asset_alias_example_alias_consumer_with_no_taskflow": (None,),
        },
    ),
    Scenario(steps=(("asset1_producer",), ("asset2_producer",)), follow={"consumes_asset_decorator": (None,)}),
    Scenario(
        steps=(("example_asset_state_store_producer",),),
        follow={"example_asset_state_store_consumer": (None,)},
    ),
    Scenario(steps=(("team_analytics_producer",),), follow={"team_ml_consumer": (None,)}),
    Scenario(steps=(("example_trigger_controller_dag",),), follow={"example_trigger_target_dag": (None,)}),
    Scenario(steps=(("example_external_task",),), follow={"child_dag": (None,)}),
    Scenario(steps=(("example_external_task_marker_parent",), ("example_external_task_marker_child",))),
    Scenario(
        steps=(("ingest_team_a_player_stats", "team_b_player_stats", "team_c_player_stats"),),
        follow={"clean_and_combine_player_stats": ("2026-01-05T00",), "compute_player_odds": ("2026-01-05T00",)},
    ),
    Scenario(
        steps=(("train_weekly_model",),),
        follow={"daily_inference": week_from("2026-01-05"), "trailing_week_inference": week_from("2025-12-30")},
    ),
    Scenario(
        steps=(("ingest_regional_sales",),),
        follow={"aggregate_regional_sales": tuple(f"{region}|2026-06-14" for region in REGIONS)},
    ),
    Scenario(steps=(("ingest_region_stats",),), follow={"regional_stats_breakdown": ("us",)}),
    Scenario(
        steps=(("live_region_player_stats",),),
        follow={"summarize_live_region_stats": ("us",), "scatter_live_region_to_segments": REGIONS},
    ),
    Scenario(
        steps=(("multi_region_player_stats",),),
        follow={
            "segment_region_stats_rollup": ("all_regions",),
            "segment_region_stats_early_rollup": ("all_regions",),
        },
    ),
)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: "success", "failed", "timeout" if it did not, "no run" if there was none to end."""

    state: str
    #: State and try number of each task instance.
    tasks: dict[str, str]
    #: What the logs of its tasks say.
    logs: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = Counter(task.split("/")[0] for task in self.tasks.values())
        return f"{self.state} ({', '.join(f'{count} {state}' for state, count in sorted(counts.items()))})"

    def lines(self, dag_id: str) -> list[str]:
        """Return what must be the same under both executors."""
        alike = r"_[abcd]$" if dag_id in RANDOM else r"$^"
        ends = [f"{re.sub(alike, '_?', id)}: {end}" for id, end in self.tasks.items()]
        logs = self.logs if self.state in ENDED and dag_id not in SLOW else []
        return sorted([f"run: {self.state}", *ends, *logs])


def tasks_of(run: DagRun) -> dict[str, str]:
    ends = {}
    for ti in run.instances():
        index = "" if ti["map_index"] < 0 else f"[{ti['map_index']}]"
        ends[f"{ti['task_id']}{index}"] = f"{ti['state']}/{ti['try_number']}"
    return ends


class Stage:
    """Plays scenarios in one Airflow, a few at a time.

    All runs are triggered at the beginning, before there is a scheduler, and wait in state "queued": a run starts when
    its DAG is unpaused.
    """

    def __init__(self, env: Airflow, scenarios: Sequence[Scenario], timeout_s: float) -> None:
        self.api = env.api
        self.database = env.home / "airflow.db"
        self.timeout_s = timeout_s
        self.outcomes: dict[str, Outcome] = {}
        self._labelled: dict[str, DagRun] = {}
        self._runs = {dag_id: self._trigger(dag_id) for play in scenarios for step in play.steps for dag_id in step}
        self._waiting = deque(scenarios)
        self._playing: list[Iterator[None]] = []
        self._next_round = 0.0

    def is_done(self) -> bool:
        """Ask for the state of all that runs, if it is time to, and start what there is room for."""
        if time.monotonic() >= self._next_round:
            self._playing = [play for play in self._playing if self._goes_on(play)]
            while self._waiting and len(self._playing) < AT_ONCE:
                self._playing.append(self._play(self._waiting.popleft()))
            self._next_round = time.monotonic() + POLL_S
        return not self._playing

    def outcomes_with_logs(self, home: Path) -> dict[str, Outcome]:
        """Return what became of each run, once nothing runs any more that could write to a log."""
        found = dict(self.outcomes)
        for label, run in self._labelled.items():
            normaliser = Normaliser((run.run_id, "<run>"), (str(home), "<home>"))
            folder = home / "logs" / f"dag_id={run.dag_id}" / f"run_id={run.run_id}"
            found[label] = replace(found[label], logs=events_of(folder, normaliser))
        return found

    @staticmethod
    def _goes_on(play: Iterator[None]) -> bool:
        return next(play, "ended") is None

    def _play(self, scenario: Scenario) -> Iterator[None]:
        """Play a scenario; yields as long as it has to wait."""
        self._pause(scenario.follow, False)
        for step in scenario.steps:
            self._pause(step, False)
            yield from self._each([self._end_of(self._runs[dag_id], dag_id) for dag_id in step])
        yield from self._each([self._follower(dag_id, key) for dag_id, keys in scenario.follow.items() for key in keys])
        self._pause(scenario.dag_ids, True)

    def _each(self, plays: Sequence[Iterator[None]]) -> Iterator[None]:
        while plays := [play for play in plays if self._goes_on(play)]:
            yield

    def _pause(self, dag_ids: Iterable[str], is_paused: bool) -> None:
        """Pause or unpause dags, in the database itself.

        The API server writes its audit log in its event loop. On SQLite it then waits there for the lock of a task's
        request, which cannot go on as it needs the event loop; all fail when SQLite's patience ends.
        """
        with contextlib.closing(sqlite3.connect(self.database, timeout=60)) as connection, connection:
            rows = [(is_paused, dag_id) for dag_id in dag_ids]
            connection.executemany("UPDATE dag SET is_paused = ? WHERE dag_id = ?", rows)

    def _trigger(self, dag_id: str) -> DagRun:
        body = {"logical_date": LOGICAL_DATE, "conf": CONF.get(dag_id, {})}
        if dag_id in PARTITION_KEYS:
            body["partition_key"] = PARTITION_KEYS[dag_id]
        run = self.api.call("POST", f"/dags/{quote(dag_id)}/dagRuns", body)
        return DagRun(self.api, dag_id, run["dag_run_id"])

    def _end_of(self, run: DagRun, label: str) -> Iterator[None]:
        """Wait for the end of a run and keep how it ended."""
        deadline = time.monotonic() + self.timeout_s * (3 if run.dag_id in SLOW else 1)
        while (state := run.state) not in ENDED:
            if time.monotonic() > deadline:
                state = "timeout"
                break
            yield
        self.outcomes[label] = Outcome(state, tasks_of(run))
        self._labelled[label] = run

    def _follower(self, dag_id: str, key: str | None) -> Iterator[None]:
        """Wait for the run that an asset or an operator starts, and for its end."""
        label = f"{dag_id} <- {key or 'another DAG'}"
        deadline = time.monotonic() + self.timeout_s
        while (run := self._started_run(dag_id, key)) is None:
            if time.monotonic() > deadline:
                self.outcomes[label] = Outcome("no run", {})
                return
            yield
        yield from self._end_of(run, label)

    def _started_run(self, dag_id: str, key: str | None) -> DagRun | None:
        for run in self.api.get(f"/dags/{quote(dag_id)}/dagRuns?order_by=id&limit=100")["dag_runs"]:
            if run["triggered_by"] in ("asset", "operator") and run.get("partition_key") == key:
                return DagRun(self.api, dag_id, run["dag_run_id"])
        return None


def scenarios_for(present: set[str], pattern: str) -> list[Scenario]:
    """Return the scenarios with a DAG whose name has ``pattern`` in it."""
    present = present - set(EXCLUDED)
    together = [scenario.only(present) for scenario in SCENARIOS]
    known = {dag_id for scenario in together for dag_id in scenario.dag_ids}
    alone = [Scenario(((dag_id,),)) for dag_id in sorted(present - known)]
    return [
        scenario
        for scenario in (*together, *alone)
        if scenario.steps and any(re.search(pattern, dag_id) for dag_id in scenario.dag_ids)
    ]


def airflow_with(executor: str, home: Path, base: Path) -> Airflow:
    """Return an Airflow that has the example DAGs and no others."""
    # Airflow adds the examples to the bundles only if there is one.
    empty = {
        "name": "none",
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(home / "none")},
    }
    options = {
        "AIRFLOW__CORE__EXECUTOR": executor,
        # With so much at once, SQLite's own 5 seconds are too few to wait for a lock in.
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}?timeout=20",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "True",
        "AIRFLOW__CORE__PARALLELISM": "8",
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([empty]),
        "AIRFLOW__API__MAXIMUM_PAGE_LIMIT": "1000",
        # Some examples keep virtual environments there, which would be those of the executor before.
        "TMPDIR": str(home / "tmp"),
    }
    env = airflow_env.make(home, base, options, is_quick=False)
    for name in ("none", "tmp"):
        (home / name).mkdir()
    return env


def outcomes_under(executor: str, home: Path, base: Path, pattern: str, timeout_s: float) -> dict[str, Outcome]:
    """Run the examples and return how each run ended, by its label."""
    env = airflow_with(EXECUTORS["LocalExecutor"] if executor == DAG_RUN else executor, home, base)
    temporal: Temporal | None = None
    try:
        if executor == OURS["TemporalExecutor"]:
            temporal = Temporal(home)
            temporal.start()
            env.env["AIRFLOW__AIR_EXECUTOR__TEMPORAL_ADDRESS"] = temporal.address
            Worker(env, "one").start()
        # So that all DAGs are there to be chosen from.
        env.run("airflow", "dag-processor", "--num-runs", "1")
        env.start("api-server")
        dags = env.api.get("/dags?limit=1000")["dags"]
        scenarios = scenarios_for({dag["dag_id"] for dag in dags if dag["bundle_name"] in BUNDLES}, pattern)
        if DAG_RUN in EXECUTORS:
            scenarios = [each for each in scenarios if len(each.dag_ids) == 1 and not set(each.dag_ids) & BY_EXAMPLES]
        if executor == DAG_RUN:
            env.stop("api-server")
            files = {dag["dag_id"]: dag["fileloc"] for dag in dags}
            return outcomes_by_command({s.dag_ids[0]: files[s.dag_ids[0]] for s in scenarios}, home, timeout_s)
        stage = Stage(env, scenarios, timeout_s)
        env.start("scheduler", "dag-processor", "triggerer")
        wait_for(stage.is_done, f"the examples under {executor}", 60 + 3 * timeout_s * len(scenarios))
        env.stop("scheduler")
        return stage.outcomes_with_logs(env.home)
    finally:
        env.end()
        if temporal is not None:
            temporal.kill()


def outcomes_by_command(files: Mapping[str, str], home: Path, timeout_s: float) -> dict[str, Outcome]:
    """Run each DAG by ``air-executor dag run``, and return how each run ended."""
    with ThreadPoolExecutor(2) as pool:
        ends = pool.map(lambda item: _outcome_by_command(*item, home, timeout_s), sorted(files.items()))
        return dict(zip(sorted(files), ends, strict=True))


def _outcome_by_command(dag_id: str, file: str, home: Path, timeout_s: float) -> Outcome:
    state_dir = home / "runs"
    settings = home / "passed-on.cfg"
    # Airflow loads these plugins together with its examples.
    settings.write_text(f"[core]\nplugins_folder = {EXAMPLES / 'plugins'}\n")
    options = [
        "--config-from",
        str(settings),
        "--logical-date",
        LOGICAL_DATE,
        "--conf",
        json.dumps(CONF.get(dag_id, {})),
        "--parallelism",
        "8",
    ]
    command = [sys.executable, "-m", "air_executor.cli", "dag", "run", file, dag_id, *options, "--json"]
    process = subprocess.Popen(
        [*command, "--state-dir", str(state_dir)],
        env={**os.environ, "TMPDIR": str(home / "tmp")},
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        out, _ = process.communicate(timeout=timeout_s * (3 if dag_id in SLOW else 1))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate()
    events = [json.loads(line) for line in out.splitlines()]
    told = [event for event in events if event.get("event") == "task"]
    state, tasks = "timeout" if told else "no run", {(task["task_id"], task["map_index"]): task for task in told}
    if events[-1].get("event") == "result":
        state = events[-1]["state"]
        tasks = {(task["task_id"], task["map_index"]): task for task in events[-1]["tasks"]}
    ends = {
        f"{name}[{index}]" if index >= 0 else name: f"{task['state']}/{task['try_number']}"
        for (name, index), task in tasks.items()
    }
    run_id = next((event["run_id"] for event in events if event.get("event") == "dag"), "")
    folder = Path(events[0]["folder"])
    homes = ((str(path), "<home>") for path in (folder / "home", folder, home))
    normaliser = Normaliser((run_id, "<run>"), *homes)
    return Outcome(state, ends, events_of(folder / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}", normaliser))


def differences(label: str, ends: Sequence[Outcome | None]) -> list[str]:
    """Return what is under one executor only."""
    dag_id = label.split()[0]
    lines = [Counter(end.lines(dag_id) if end else ["run: none"]) for end in ends]
    if DAG_RUN in EXECUTORS:  # which loads one bundle, with one file
        lines = [Counter({line: n for line, n in each.items() if "DAG bundles loaded" not in line}) for each in lines]
    first, second = lines
    return [
        f"  {name} only: {line}"
        for name, only in zip(EXECUTORS, (first - second, second - first), strict=True)
        for line in sorted(only.elements())
    ]


def compare(outcomes: Mapping[str, Mapping[str, Outcome]]) -> dict[str, list[str]]:
    """Return for each run what differs."""
    labels = sorted({label for ends in outcomes.values() for label in ends})
    return {label: differences(label, [outcomes[name].get(label) for name in EXECUTORS]) for label in labels}


def report(outcomes: Mapping[str, Mapping[str, Outcome]], forgiven: Mapping[str, list[str]]) -> int:
    """Print the table; return how many runs differ."""
    compared = compare(outcomes)
    rows = [("dag", *EXECUTORS, "same?")]
    for label, found in compared.items():
        ends = (str(outcomes[name].get(label, "-")) for name in EXECUTORS)
        rows.append((label, *ends, "NO" if found else "2nd try" if label in forgiven else "yes"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\nLeft out:", *(f"  {dag_id}: {reason}" for dag_id, reason in EXCLUDED.items()), sep="\n")
    for label, found in forgiven.items():
        print(f"\n{label}: the same as LocalExecutor's second try; differed from its first:", *found, sep="\n")
    differing = {label: found for label, found in compared.items() if found}
    for label, found in differing.items():
        print(f"\n{label}: DIFFERS", *found, sep="\n")
    print(f"\n{len(compared)} runs, {len(differing)} differ")
    return len(differing)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.compare_examples", description=__doc__.splitlines()[0])
    parser.add_argument("--executor", choices=OURS, default="AirExecutor", help="(%(default)s)")
    parser.add_argument("--dags", default="", metavar="REGEX", help="only the DAGs whose names have this in them")
    parser.add_argument(
        "--timeout", type=float, default=180, metavar="S", help="seconds that a run may take (%(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all the states to this file")
    return parser.parse_args()


def second_opinion(outcomes: dict[str, dict[str, Outcome]], base: Path, timeout_s: float) -> dict[str, list[str]]:
    """Run what differs under LocalExecutor again; put what is the same then in the place of its first outcome.

    :return: by its label, what differed at first of each run that is the same now.
    """
    differing = {label: found for label, found in compare(outcomes).items() if found}
    if not differing:
        return {}
    pattern = "|".join(f"^{re.escape(label.split()[0])}$" for label in differing)
    again = outcomes_under(EXECUTORS["LocalExecutor"], base / "second", base, pattern, timeout_s)
    forgiven = {}
    for label, found in differing.items():
        if label in again and not differences(label, (again[label], outcomes[list(EXECUTORS)[1]].get(label))):
            outcomes["LocalExecutor"][label] = again[label]
            forgiven[label] = found
    return forgiven


def main() -> int:
    options = arguments()
    # As an exit, so that Airflow's processes are ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    base = Path(tempfile.mkdtemp(prefix="ex-"))
    outcomes = {}
    EXECUTORS[options.executor] = OURS[options.executor]
    for name, executor in EXECUTORS.items():
        started = time.monotonic()
        outcomes[name] = outcomes_under(executor, base / name.lower(), base, options.dags, options.timeout)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    forgiven = second_opinion(outcomes, base, options.timeout)
    if options.json:
        as_json = {name: {label: asdict(end) for label, end in ends.items()} for name, ends in outcomes.items()}
        options.json.write_text(json.dumps(as_json, indent=2, sort_keys=True) + "\n")
    count = report(outcomes, forgiven)
    if count:
        print(f"The logs are in {base}")
    else:
        shutil.rmtree(base)
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
