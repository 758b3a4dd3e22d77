"""Finds what ``air_executor.airflow``, and what DAGs import, use of Airflow that is not its public interface."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import attrs
from airflow.executors.base_executor import BaseExecutor
from airflow.sdk.execution_time.supervisor import ActivitySubprocess

import air_executor

_PACKAGE = Path(air_executor.__file__).parent
_FILES = [
    *sorted((_PACKAGE / "airflow").rglob("*.py")),
    *(_PACKAGE / f"{name}.py" for name in ("operators", "sensors", "triggers", "follow_up", "provider")),
]

#: What Airflow documents as its public interface, or for executors.
_PUBLIC = (
    "airflow",
    "airflow.cli.cli_config",
    "airflow.configuration",
    "airflow.exceptions",
    "airflow.executors.base_executor",
    "airflow.executors.workloads",
    "airflow.models.taskinstancekey",
    "airflow.providers.",
    "airflow.sdk",
    "airflow.sdk.bases.",
    "airflow.sdk.definitions.",
    "airflow.sdk.exceptions",
    "airflow.triggers.base",
    "airflow.utils.state",
)

#: Imported by launchers if they are there, and used for nothing else.
_WARM = frozenset(
    "airflow.dag_processing.bundles.manager airflow.sdk._shared.logging.factory airflow.sdk._shared.logging.remote "
    "airflow.sdk.execution_time.callback_supervisor airflow.sdk.execution_time.connection_test_supervisor "
    "airflow.sdk.execution_time.secrets.execution_api airflow.version".split()
)

#: Names that look like Airflow's and are the standard library's, or parts of texts.
_STANDARD = frozenset({"__file__", "__main__", "_exit", "_clear_type_cache", "_getframe", "_proxy"})

#: Attributes that are set on what is not Airflow's: loggers, retries of tenacity, our own.
_SET_ELSEWHERE = frozenset(
    "excepthook foreign_pre_chain handlers retry sleep stop wait stock signal auth runner_pid".split()
)

#: Internals that no code names, and that the code relies on.
PROMISED = (
    "_check_subprocess_exit _fork_main dispatch execute_task _run_scheduler_loop run "
    "_find_and_purge_task_instances_without_heartbeats _Stats _handle_process_overtime_if_needed "
    "subprocess_logs_to_stdout"
)


def is_public(module: str) -> bool:
    """Tell whether Airflow calls a module part of its public interface."""
    return module in _WARM or any(module == each or (each[-1] == "." and module.startswith(each)) for each in _PUBLIC)


def _stock(cls: type) -> set[str]:
    """Return the names that Airflow's part of a class has."""
    names: set[str] = set()
    for each in cls.__mro__:
        if each.__module__.startswith("airflow."):
            names |= set(vars(each))
            if attrs.has(each):
                names |= set(attrs.fields_dict(each))
    return {name for name in names if not name.startswith("__")}


class UsedNames:
    """The names in the source."""

    def __init__(self, files: Sequence[Path] = _FILES) -> None:
        self._files = files
        self.modules: set[str] = set()
        """Airflow's modules that are imported, or named in a text."""
        self._own: set[str] = set()
        self._private: set[str] = set()
        self._set: set[str] = set()
        for path in files:
            for node in ast.walk(ast.parse(path.read_text())):
                self._note(node)

    @cached_property
    def text(self) -> str:
        """All of the source."""
        return "\n".join(path.read_text() for path in self._files)

    def _note(self, node: ast.AST) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            self._own.add(node.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("airflow"):
            self.modules |= {self._module(str(node.module), alias.name) for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            self._note_text(node.value)
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            self._private.add(node.attr)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for each in target.elts if isinstance(target, ast.Tuple) else [target]:
                    self._note_target(each)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "replaced":
            self._set |= {keyword.arg for keyword in node.keywords if keyword.arg}

    @staticmethod
    def _module(module: str, name: str) -> str:
        is_module = module in ("airflow.sdk.execution_time", "airflow.executors") or (module, name) in (
            ("airflow.sdk", "log"),
            ("airflow", "settings"),
            ("airflow.sdk._shared.secrets_masker", "secrets_masker"),
        )
        return f"{module}.{name}" if is_module else module

    def _note_text(self, text: str) -> None:
        if text.startswith("airflow.") and all(part.isidentifier() for part in text.split(".")):
            self.modules.add(text)
        elif text.startswith("_") and text.isidentifier() and text.strip("_"):
            self._private.add(text)

    def _note_target(self, target: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self._own.add(target.id)
        elif isinstance(target, ast.Attribute):
            if isinstance(target.value, ast.Name) and target.value.id in ("self", "cls"):
                self._own.add(target.attr)
            elif isinstance(target.value, ast.Name):
                self._set.add(target.attr)

    def foreign_names(self) -> set[str]:
        """Return the private names that are used and are not ours, and the names of what is replaced or set."""
        used = self._private - self._own - _STANDARD
        inherited = self._private & (_stock(ActivitySubprocess) | _stock(BaseExecutor))
        return used | inherited | (self._set - self._own - _SET_ELSEWHERE)
