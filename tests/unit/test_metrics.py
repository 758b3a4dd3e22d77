"""Metrics: all that are listed are there, in Prometheus' form, and no label is without bound."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from datetime import timedelta
from typing import Any

import pytest
import yaml

from air_executor.airflow import metrics as executor
from air_executor.observe import metrics
from air_executor.observe.everywhere import AllRuns
from air_executor.runs.backend import LauncherCounts
from air_executor.runs.ordered import OrderedRuns
from air_executor.runs.record import UNWANTED, RunRecord, RunState
from air_executor.runs.store import RunStore
from tests.support.airflow_env import REPOSITORY
from tests.unit.documents import identity, kept, record

MONITORING = REPOSITORY / "examples" / "monitoring"


def values(text: str) -> dict[str, float]:
    """Read Prometheus' text form, strictly."""
    found = {}
    for line in text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP|TYPE) air_executor_[a-z_]+ .+", line)
            continue
        match = re.fullmatch(r'(air_executor_[a-z_]+(?:\{[a-z]+="[^"]*"(?:,[a-z]+="[^"]*")*\})?) (\S+)', line)
        assert match is not None, line
        found[match[1]] = float(match[2])
    assert text.endswith("\n")
    return found


def test_an_empty_state_directory_has_all_metrics_that_have_no_labels(store: RunStore) -> None:
    found = values(metrics.text(AllRuns(store.root)))
    assert set(found) == {metrics.PREFIX + each.name for each in metrics.METRICS if not each.labels}
    assert found["air_executor_up"] == 1
    assert found["air_executor_memory_available_bytes"] > 1 << 20


def test_what_there_is_is_counted(store: RunStore) -> None:
    ordered = OrderedRuns.of(store.root)
    ordered.prepare()
    for _ in range(2):
        kept(store)
    kept(store, who=identity(kind="callback"))
    kept(store, RunState.FAILED)
    ordered.note_host(kept(ordered).id, "one")
    found = values(metrics.text(AllRuns(store.root)))
    assert found['air_executor_live_runs{kind="task",state="queued"}'] == 2
    assert found['air_executor_live_runs{kind="callback",state="queued"}'] == 1
    assert found['air_executor_live_runs{kind="task",state="running"}'] == 1
    assert found["air_executor_live_runs_elsewhere"] == 1
    assert found["air_executor_ends_untold"] == 1
    assert found["air_executor_runs_on_record"] == 4
    assert 0 <= found["air_executor_oldest_queued_seconds"] < 600


def test_the_command_prints_and_serves_them(store: RunStore) -> None:
    command = [sys.executable, "-m", "air_executor.cli", "metrics", "--state-dir", str(store.root)]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert values(printed.stdout)["air_executor_up"] == 1
    plain = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60, check=True)
    assert {"name": "up", "labels": {}, "value": 1.0} in json.loads(plain.stdout)
    with subprocess.Popen([*command, "--listen", "0"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1]
            with urllib.request.urlopen(address, timeout=60) as answer:
                assert answer.headers["Content-Type"] == metrics.CONTENT_TYPE
                assert values(answer.read().decode())["air_executor_up"] == 1
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(address.removesuffix("metrics") + "secrets", timeout=60)
        finally:
            server.terminate()
    for wrong in ("x", ":", "1:70000"):
        refused = subprocess.run([*command, "--listen", wrong], capture_output=True, text=True, timeout=60)
        assert refused.returncode == 2 and "PORT" in refused.stderr


def test_the_dashboard_and_the_alerts_name_metrics_that_there_are() -> None:
    names = {metrics.PREFIX + each.name for each in metrics.METRICS}
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    alerts = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    rules = [rule for group in alerts["groups"] for rule in group["rules"]]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert all(rule["annotations"].keys() == {"summary", "description"} for rule in rules)
    for expression in (*shown, *(rule["expr"] for rule in rules)):
        named = set(re.findall(r"air_executor_[a-z_]+", expression))
        assert named and named <= names, expression
    assert {name for text in shown for name in re.findall(r"air_executor_[a-z_]+", text)} >= names - {
        "air_executor_up",
        "air_executor_runs_on_record",
        "air_executor_launcher_oldest_seconds",
        "air_executor_scrape_seconds",
    }


class Stats:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def incr(self, name: str, count: int = 1, *, tags: Any = None) -> None:
        self.calls.append((name, count, tags))

    def timing(self, name: str, value: Any, *, tags: Any = None) -> None:
        self.calls.append((name, value, tags))

    def gauge(self, name: str, value: Any) -> None:
        self.calls.append((name, value))


@pytest.fixture
def stats(monkeypatch: pytest.MonkeyPatch) -> Stats:
    made = Stats()
    monkeypatch.setattr(executor, "stats", made)
    return made


def ended(state: RunState, **changes: Any) -> RunRecord:
    return dataclasses.replace(record(state), **changes)


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        (ended(RunState.SUCCEEDED), "success"),
        (ended(RunState.FAILED), "failure"),
        (ended(RunState.KILLED, signal="SIGSEGV", reason="the task process was killed"), "signal"),
        (ended(RunState.KILLED, signal="SIGKILL", reason="memory limit of 1 MiB reached; peak 2 MiB"), "memory limit"),
        (
            ended(RunState.KILLED, signal="SIGTERM", reason="wall time limit of 1 s reached after 1.0 s"),
            "wall time limit",
        ),
        (ended(RunState.KILLED, signal="SIGTERM", reason="stopped: revoked"), "stopped"),
        (ended(RunState.KILLED, outcome=UNWANTED, reason="stopped: revoked"), "unwanted"),
        (ended(RunState.LOST), "lost"),
    ],
)
def test_ends_are_counted_by_cause(stats: Stats, end: RunRecord, cause: str) -> None:
    executor.run_ended(end)
    assert stats.calls[0] == ("air_executor.run_ended", 1, {"state": end.state.value, "cause": cause})
    assert cause in executor.CAUSES
    assert {call[0] for call in stats.calls} <= {executor.PREFIX + each.name for each in executor.METRICS}


def test_it_is_told_how_long_a_run_took_to_start_and_to_run(stats: Stats) -> None:
    moments = {"queued_at": "2026-01-01T00:00:00+00:00", "running_at": "2026-01-01T00:00:02+00:00"}
    executor.run_ended(ended(RunState.FAILED, ended_at="2026-01-01T00:00:05+00:00", **moments))
    assert stats.calls[1:] == [
        ("air_executor.start_latency", timedelta(seconds=2), None),
        ("air_executor.run_duration", timedelta(seconds=3), {"state": "failed"}),
    ]
    stats.calls.clear()
    executor.run_ended(ended(RunState.LOST, running_at=None))
    assert len(stats.calls) == 1


def test_what_is_in_hand_and_taken_over_is_told(stats: Stats) -> None:
    executor.live(3, 1, 2, LauncherCounts(live=4, generations=5, spare_deaths=6))
    executor.live(0, 0, 0, None)
    executor.adopted(0)
    executor.adopted(2)
    executor.reconciled(0.5)
    assert stats.calls == [
        ("air_executor.live_runs", 3),
        ("air_executor.waiting_for_gpus", 1),
        ("air_executor.waiting_for_room", 2),
        ("air_executor.launchers", 4),
        ("air_executor.launcher_generations", 5),
        ("air_executor.spare_deaths", 6),
        ("air_executor.live_runs", 0),
        ("air_executor.waiting_for_gpus", 0),
        ("air_executor.waiting_for_room", 0),
        ("air_executor.adopted", 2, None),
        ("air_executor.reconcile_duration", timedelta(seconds=0.5), None),
    ]
