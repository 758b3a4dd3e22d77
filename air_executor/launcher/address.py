"""Where a launcher listens, and which launcher fits an executor.

A launcher keeps the code and the environment that it was started with. An executor of another version, interpreter or
environment must not get runners from it, so each combination has a launcher of its own. A launcher that nobody uses
ends by itself.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from air_executor.config import Config
from air_executor.launcher import fingerprint
from air_executor.machine import marks
from air_executor.runs.store import RunStore

#: The scheduler sets the first for itself: with it, a runner would look for connections in the metadata database. With
#: the other, nothing that its tasks leave behind would be ended.
_NOT_PASSED_ON = frozenset({"_AIRFLOW_PROCESS_CONTEXT", marks.KEEP_VARIABLE})


_SERVICE = "service"


@dataclass(frozen=True)
class Address:
    """The files of one launcher."""

    key: str
    folder: Path

    @property
    def is_service(self) -> bool:
        """Whether a service manager, and no executor, starts this launcher."""
        return self.key.split("-")[0] == _SERVICE

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.folder / f"{self.key}.sock"

    @property
    def lock(self) -> Path:
        """Held by an executor that starts a launcher, and by a launcher that leaves its address."""
        return self.folder / f"{self.key}.lock"

    @property
    def code(self) -> Path:
        """Notes the files whose code the launcher has in memory."""
        return self.folder / f"{self.key}.code"

    @property
    def log(self) -> Path:
        """Holds what the launcher prints."""
        return self.folder / f"{self.key}.log"


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment for a launcher that is started from this process."""
    return {name: value for name, value in environ.items() if name not in _NOT_PASSED_ON}


def address(store: RunStore, config: Config) -> Address:
    """Return the address of the launcher that fits this process: its code, settings, environment and options."""
    environ = {os.fsencode(name): os.fsencode(value) for name, value in environment().items()}
    digest = hashlib.sha256(b"\0".join(fingerprint.of_process(config, environ))).hexdigest()
    return Address(key=digest[:16], folder=store.launchers)


def module_command(module: str) -> list[str]:
    """Return the command that runs a module with this interpreter, without the working directory in its path."""
    flags = fingerprint.interpreter_flags()
    if hasattr(sys.flags, "safe_path"):  # from Python 3.11 on
        return [sys.executable, *flags, *({"-P"} - set(flags)), "-m", module]
    code = f"import sys; del sys.path[0]; import runpy; runpy.run_module({module!r}, run_name='__main__')"
    return [sys.executable, *flags, "-c", code]


def service_address(store: RunStore) -> Address:
    """Return the address of the launcher that runs as a service."""
    return Address(key=_SERVICE, folder=store.launchers)


def all_addresses(store: RunStore) -> list[Address]:
    """Return the addresses of all launchers that have a socket."""
    return [Address(path.stem, store.launchers) for path in sorted(store.launchers.glob("*.sock"))]
