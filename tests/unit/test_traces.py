"""What is done ahead leaves nothing behind in the launcher that a task, forked from it, could tell."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.airflow_env import REPOSITORY, without_pytest

pytestmark = pytest.mark.core

#: Takes a snapshot of itself before and after; without pytest, for which Airflow sets logging up in another way.
SCRIPT = """
import json, sys
from pathlib import Path

from air_executor.airflow.compat import logs

from air_executor.machine import system
from air_executor.airflow import rehearsal, warmup
from tests.support.airflow_env import config
from tests.support.process_state import Snapshot

store, what = sys.argv[1:]
system.set_title("test")
logs.keep_loggers_unbound()
if what == "warm-up":
    before = Snapshot(modules=False)
    warmup.warm_up([])
else:
    warmup.warm_up([])
    before = Snapshot()
    rehearsal.rehearse()
    if what == "runs":
        rehearsal.rehearse_runs(config(Path(store)))
print(json.dumps(before.differences()))
"""

#: Differences that no task can tell from what it would do itself as its first step, or that its first step ends.
MEANT = {
    r"structlog default_context_class: .*": "the default, said by name",
    r"(descriptor \d+|logging handlers|warnings\.showwarning): .*": "logging is set up as each task process does",
    r"logger [\w.]+: nothing -> \(0, True, False, \[\], \[\], .*": "a logger that says nothing of its own",
    r"logger (dill|alembic|alembic\.runtime\.plugins): .*": "two packages that Airflow's own imports need",
    r"logger airflow\.task: .*": "its handlers are for other processes; each task process takes them off",
    r".*loggerDict\..*": "the same loggers, from another side",
    r".*\._cache\.\[\d+\]: nothing -> (True|False)": "of the level, which setting one forgets",
    r"air_executor\.airflow\.(compat\.api\._request|supervision\.).*": "our own, set anew by each runner",
    r"air_executor\.runner\.main\..*": "our own, set anew by each runner",
    r"air_executor\.(launcher\.memory\._filling|airflow\.rehearsal\._DAG_FILE\._str).*": "the launcher's own",
    r"airflow\.sdk\.api\.client\.Client\.request: .*": "set anew by each runner",
    r"airflow\.dag_processing\.importers(\.base)?\.DagImporterRegistry\._instance.*": "two importers without a state",
    r"[\w.]+: nothing -> (module|type|\w*Meta) \w+": "names that a package looks up at their first use",
    r"(airflow\.sdk|pydantic)\.\w+( defaults)?: nothing -> .*": "the same",
    r"airflow\.utils\.singleton\.Singleton\._instances\S+ nothing -> ProvidersManager \w+": "of installed packages",
    r"warned of in airflow\.providers\.\S+: \(.The `airflow\.[\w.]+` attribute is deprecated.*": (
        "Airflow's own packages warn of each other when they are imported"
    ),
    r"cache [\w. ]+: nothing -> \d+": "of a module that was imported",
    r"airflow\.sdk\.(dag|task)\b.*": "names that the package looks up at their first use",
    r"airflow\.sdk\.definitions\.dag\.(warnings|dag defaults).*": "the first use of @dag in a process makes it so",
    r"cache air_executor\.machine\.(system|processes)\.(boot_id|host|pid_namespace|_has_proc): .*": "of the machine",
    r"cache airflow\.sdk\.api\.client\.(Client\._get_ssl_context_cached|getuser): .*": "the runner's, not a task's",
    r"cache inspect\._shadowed_dict\w*: .*": "of classes, from Python 3.12 on",
    r"ssl\.VerifyFlags\._value2member_map_.*": "of the arguments alone, from Python 3.13 on",
    r"cache airflow\.utils\.net\.getfqdn: .*": "the scheduler itself keeps it as well",
    r"cache airflow\.sdk\.execution_time\.coordinator\.\w+: .*": "of the configuration",
    r"cache airflow\.sdk\._shared\.logging\.structlog\.structlog_processors: .*": "of the configuration",
    r"cache airflow\.sdk\.log\.logging_processors: .*": "of the configuration",
    r"(cache urllib\.parse\.|urllib\.parse\._(\w+prog|parse_cache)).*": "of the arguments alone",
    r"(encodings|re)\._cache.*": "of the arguments alone",
    r"(cache )?(wirerope|methodtools|certifi|httpx)\b.*": "of the arguments alone; files that are installed",
    r"(httpcore|httpx)\._\w+\..*": "names that are looked up at first use",
    r"sys\.path_importer_cache.*": "looked up again when a folder has changed",
    r"structlog\.contextvars\._CONTEXT_VARS.*": "names; the values are of a context that is gone",
    r"exit functions: \d+ -> \d+": "certifi's, who lets go of a file; task processes clear them",
    r"structlog\._output\.WRITE_LOCKS.*": "locks that nobody holds, a file each",
    r".*metrics\.stats\..*(NoStatsLogger|_instance_pid|Stats\.factory).*": "counts nothing",
    r"tempfile\._name_sequence.*": "made anew in each process",
    r"module (?!unusual_prefix_).*": "Airflow's imports to read any DAG file",
    r"(cache typing|sqlalchemy|linecache|attr|airflow\.models\.base\.metadata)\..*": "of classes that were imported",
    r"(airflow\.|cache airflow\.|cache importlib_metadata\.)\S*(entry_points|FastPath).*": "of installed packages",
    r"airflow\.\S*(ProvidersManager|ProvidersManagerTaskRuntime)\.\S*_init\S*: .*": "of installed packages",
    r"uuid6\._last_v7_timestamp: .*": "what comes is later",
}


def run(script: str, tmp_path: Path, *arguments: str) -> str:
    """Return what a script prints in a fresh process, to which its first argument tells a state directory."""
    env = {
        **without_pytest(os.environ),
        "AIRFLOW_HOME": str(tmp_path / "home"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, "-c", script, str(tmp_path / "state"), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert "cannot be rehearsed" not in printed
    assert "does not work" not in printed
    return done.stdout


@pytest.mark.parametrize("what", ["warm-up", "requests", "runs"])
def test_nothing_is_left_behind_that_a_task_could_tell(what: str, tmp_path: Path) -> None:
    differences = json.loads(run(SCRIPT, tmp_path, what).splitlines()[-1])
    found = [f"{name}: {values}" for name, values in differences.items()]
    unknown = [line for line in found if not any(re.fullmatch(known, line, re.DOTALL) for known in MEANT)]
    assert unknown == [], "\n".join(unknown)


#: Rehearses, then logs as a task process does, with loggers that the rehearsal has used, warned with and crashed in.
LOG = """
import os, signal, sys, warnings
from pathlib import Path

from air_executor.airflow import rehearsal, warmup
from tests.support.airflow_env import config

store, file = sys.argv[1:]
Path(store).mkdir()
code = "import structlog\\nlog = structlog.get_logger(logger_name='of.one').bind(bound=1)"
Path(store, "preloaded_one.py").write_text(code)
sys.path.insert(0, store)
warmup.warm_up(["preloaded_one"])
rehearsal.rehearse()
rehearsal.rehearse_runs(config(Path(store)))

import structlog
from airflow.sdk.execution_time import supervisor, task_runner

if not os.fork():
    supervisor._configure_logs_over_json_channel(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600))
    try:
        raise ValueError("of the task")
    except ValueError:
        # Airflow 3.1 keeps none.
        sys.modules["preloaded_one"].log.warning("as any other")
        getattr(task_runner, "log", structlog.get_logger(logger_name="task")).exception("Task failed with exception")
    os._exit(0)
assert os.wait()[1] == 0
if not os.fork():
    os.kill(os.getpid(), signal.SIGSEGV)
    os._exit(0)
assert os.wait()[1] & 127 == signal.SIGSEGV
"""


def test_loggers_that_were_rehearsed_with_write_to_the_channel_of_each_task(tmp_path: Path) -> None:
    run(LOG, tmp_path, str(tmp_path / "channel"))
    first, line = (json.loads(line) for line in (tmp_path / "channel").read_text().splitlines())
    assert (line["level"], line["event"], line["logger"]) == ("error", "Task failed with exception", "task")
    assert line["exception"][0]["exc_type"] == "ValueError"
    assert (first["level"], first["event"], first["logger"], first["bound"]) == ("warning", "as any other", "of.one", 1)
