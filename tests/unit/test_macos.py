"""What can be known about macOS without one: nothing is called that its Pythons lack, and jobs run without it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import air_executor
from tests.support import macos
from tests.support.airflow_env import REPOSITORY
from tests.support.waiting import wait_for
from tests.unit.processes import is_alive

PACKAGE = Path(air_executor.__file__).parent
SOURCES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

#: What is used though macOS lacks it, and why that never happens there.
NEVER_THERE = {
    ("machine/children.py", "_is_child", "waitid"): "only where /proc hides processes",
    ("machine/children.py", "_is_child", "P_PID"): "only where /proc hides processes",
    ("machine/system.py", "signal_if", "pidfd_send_signal"): "only with a pidfd",
    ("machine/processes.py", "age_s", "CLOCK_BOOTTIME"): "only of a process with a start in ticks, which /proc tells",
}


def uses(tree: ast.AST) -> Iterator[tuple[str, str, str]]:
    """Yield what is used of modules that lack something: in which function, of which module, which name."""

    def walk(node: ast.AST, function: str) -> Iterator[tuple[str, str, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Attribute) and isinstance(child.value, ast.Name):
                yield function, child.value.id, child.attr
            elif isinstance(child, ast.ImportFrom) and child.module:
                yield from ((function, child.module, alias.name) for alias in child.names)
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            yield from walk(child, child.name if is_function else function)  # type: ignore[attr-defined]

    return walk(tree, "")


def guards(tree: ast.AST) -> set[tuple[str, str]]:
    """Return the functions that look whether something is there, each with its module and name, or with Linux."""
    found = set()
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.unparse(function)
            found |= {(function.name, "linux")} if "sys.platform == 'linux'" in text else set()
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and ast.unparse(call.func) in ("hasattr", "getattr"):
                    found.add((function.name, ast.literal_eval(call.args[1])) if _is_text(call.args[1]) else ("", ""))
    return found


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_nothing_is_used_that_pythons_on_macos_lack_unless_it_is_looked_for_first() -> None:
    found = set()
    for source in SOURCES:
        tree = ast.parse((PACKAGE / source).read_text())
        looked_for = guards(tree)
        found |= {
            (source, function, name)
            for function, module, name in uses(tree)
            if macos.is_lacking(module, name)
            and not {(function, name), (function, "linux")} & looked_for
            # What comes with a function that is there is there, too: os.P_PID with os.waitid.
            and not any(of == function and macos.is_lacking(module, other) for of, other in looked_for)
        }
    assert found == set(NEVER_THERE)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    paths = os.pathsep.join([str(macos.FOLDER), str(REPOSITORY)])
    own = {name: value for name, value in os.environ.items() if not name.startswith("AIR_EXECUTOR_")}
    return {**own, "PYTHONPATH": paths, "AIR_EXECUTOR_PRIVATE_DIR": str(tmp_path / "private")}


def run(env: dict[str, str], folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], env=env, cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_module_can_be_imported_without_what_macos_lacks(env: dict[str, str], tmp_path: Path) -> None:
    names = [f"air_executor.{source[:-3].replace('/', '.')}".removesuffix(".__init__") for source in SOURCES]
    names = [name for name in names if not name.endswith((".__main__", "rehearsed_dag"))]
    code = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\nprint(sys.platform)"
    assert run(env, tmp_path, "-c", code).splitlines()[-1] == "darwin"  # Airflow 3.2 says more before


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: those of sockets have less room on macOS."""
    with tempfile.TemporaryDirectory(prefix="air-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def test_a_job_runs_to_its_end_without_what_macos_lacks(env: dict[str, str], folder: Path) -> None:
    (folder / "own.py").write_text("import sys\n\ndef double(number):\n    return [sys.platform, 2 * number]\n")
    tasks = [
        {"id": "a", "command": "echo $((6 * 7)) > $AIR_EXECUTOR_RESULT", "shell": True},
        {"id": "b", "function": "own:double", "arguments": {"number": "${tasks.a.result}"}, "dependencies": ["a"]},
        {"id": "c", "command": "sleep 600 & echo $! > pid; wait", "shell": True, "timeout": 20},
        {"id": "d", "command": "true", "limits": {"memory": "1 GiB", "nice": 1}},
    ]
    (folder / "job.json").write_text(json.dumps({"tasks": tasks, "max_runners": 4}))
    command = [sys.executable, "-m", "air_executor.cli.main"]

    def call(*arguments: str, code: int = 0) -> str:
        done = subprocess.run([*command, *arguments], env=env, cwd=folder, capture_output=True, text=True, timeout=600)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr[-3000:]
        return done.stdout

    call("init")
    call("run", "job.json", code=1)
    found = json.loads(call("job", "job", "--json"))["tasks"]
    ended = {task["id"]: (task["status"], task.get("result"), task.get("error")) for task in found}
    assert ended["a"] == ("completed", 42, None)
    assert ended["b"] == ("completed", ["darwin", 84], None)
    assert ended["c"][0] == "failed"
    assert "wall time limit of 20 s reached" in ended["c"][2]
    left = int((folder / "pid").read_text())
    wait_for(lambda: not is_alive(left), "what the task had started to end")
    assert ended["d"][0] == "completed"


#: Is a runner, with a task process that is a fresh Python as on macOS, and an API server that says yes to everything.
RUN_ONE = """
import sys
from pathlib import Path
from air_executor.airflow import rehearsal
from tests.support.airflow_env import config

one = rehearsal._Rehearsal(config(Path(sys.argv[1])))
with one._setting():
    one._once()  # raises an error with what was logged unless the task succeeds
print(sys.platform)
"""


def test_a_task_of_airflow_is_supervised_without_what_macos_lacks(env: dict[str, str], tmp_path: Path) -> None:
    bundle = {
        "name": "rehearsal",
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(PACKAGE / "airflow")},
    }
    env["AIRFLOW_HOME"] = str(tmp_path / "home")
    env["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"] = json.dumps([bundle])
    env["AIRFLOW__API_AUTH__JWT_SECRET"] = "only-for-tests-but-long-enough" * 4
    assert run(env, tmp_path, "-c", RUN_ONE, str(tmp_path / "state")).splitlines()[-1] == "darwin"
