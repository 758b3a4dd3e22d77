"""Where a launcher listens, and which launcher fits an executor.

A launcher keeps the code and the environment with which it was born. An executor of another version, interpreter or
environment must not get runners from it, so each combination has a launcher of its own; one that nobody needs any
more ends by itself.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from air_executor.config import Config, airflow_home
from air_executor.runs.store import RunStore

#: What differs from shell to shell without meaning anything to a task, or is not for runners.
_VOLATILE = frozenset(
    "_ OLDPWD PWD SHLVL TERM COLUMNS LINES WINDOWID DBUS_SESSION_BUS_ADDRESS XDG_SESSION_ID INVOCATION_ID "
    "JOURNAL_STREAM SYSTEMD_EXEC_PID SSH_CLIENT SSH_CONNECTION SSH_TTY SSH_AUTH_SOCK TMUX TMUX_PANE STY".split()
)

#: Set inside the scheduler for itself. With it, a runner would look for connections in the metadata database.
_SCHEDULER_ONLY = frozenset({"_AIRFLOW_PROCESS_CONTEXT"})


@dataclass(frozen=True)
class Address:
    """The files of one launcher."""

    key: str
    folder: Path

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.folder / f"{self.key}.sock"

    @property
    def lock(self) -> Path:
        """Held while a launcher is looked for, started or ended."""
        return self.folder / f"{self.key}.lock"

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.folder / f"{self.key}.log"


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment for a launcher that is started from this process."""
    return {name: value for name, value in environ.items() if name not in _SCHEDULER_ONLY}


def address(store: RunStore, config: Config) -> Address:
    """Return the address of the launcher that fits this process's code, interpreter, environment and options."""
    parts = [sys.executable, sys.prefix, config.to_json(), code_version(), _modified(_airflow_cfg())]
    parts.append(packages_stamp())
    parts += sorted(f"{name}={value}" for name, value in environment().items() if name not in _VOLATILE)
    digest = hashlib.sha256(orjson.dumps(parts)).hexdigest()
    return Address(key=digest[:16], folder=store.launchers)


def packages_stamp() -> str:
    """Return what tells one set of installed packages from another."""
    # Any package that is installed, upgraded or removed changes the folder.
    return " ".join([sys.prefix, *(_modified(Path(sysconfig.get_path(name))) for name in ("purelib", "platlib"))])


def module_command(module: str) -> list[str]:
    """Return the command that runs a module with this interpreter, without the working directory in its path."""
    if hasattr(sys.flags, "safe_path"):  # from Python 3.11 on
        return [sys.executable, "-P", "-m", module]
    code = f"import sys; del sys.path[0]; import runpy; runpy.run_module({module!r}, run_name='__main__')"
    return [sys.executable, "-c", code]


def service_address(store: RunStore) -> Address:
    """Return the address of the launcher that runs as a service."""
    return Address(key="service", folder=store.launchers)


def all_addresses(store: RunStore) -> list[Address]:
    """Return the addresses of all launchers that have a socket."""
    return [Address(path.stem, store.launchers) for path in sorted(store.launchers.glob("*.sock"))]


def _airflow_cfg() -> Path:
    return Path(os.environ.get("AIRFLOW_CONFIG") or airflow_home() / "airflow.cfg")


def _modified(path: Path) -> str:
    try:
        return str(path.stat().st_mtime_ns)
    except OSError:
        return ""


def code_version() -> str:
    """Return what tells one version of AirExecutor and Airflow from another."""
    versions = [
        f"{name}={importlib.metadata.version(name)}"
        for name in ("air-executor", "apache-airflow-core", "apache-airflow-task-sdk")
        if _is_installed(name)
    ]
    # An editable installation changes without a new version.
    files = sorted(Path(__file__).parent.parent.rglob("*.py"))
    return " ".join(versions + [_modified(path) for path in files])


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
