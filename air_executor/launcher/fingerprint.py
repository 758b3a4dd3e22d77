"""What distinguishes launchers: all that a process passes on to its children, and the code that they find.

A launcher keeps what it was started with. An executor that was started with anything else gets a launcher of its own,
so that its tasks find what they would find as its children.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

from air_executor.config import OPTIONS, Config, airflow_home, plain_getter
from air_executor.errors import ConfigError
from air_executor.machine.safe_files import replace_file

#: Variables that differ from shell to shell without effect on programs, or that are not for runners.
_VOLATILE = frozenset(
    os.fsencode(name)
    for name in "_ OLDPWD PWD SHLVL WINDOWID XDG_SESSION_ID INVOCATION_ID JOURNAL_STREAM SYSTEMD_EXEC_PID "
    "SSH_CLIENT SSH_CONNECTION SSH_TTY TMUX TMUX_PANE STY".split()
)

#: Lines of ``/proc/self/status`` that children inherit.
_INHERITED = (
    *(b"Uid", b"Gid", b"Groups", b"SigIgn", b"CapInh", b"CapPrm", b"CapEff", b"CapBnd", b"CapAmb"),
    *(b"NoNewPrivs", b"Seccomp", b"Cpus_allowed", b"Mems_allowed"),
)

#: Variables that name the certificates of those who are trusted.
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")

#: At most this many files below the folder of plugins are looked at.
_MAX_PLUGIN_FILES = 2000

#: When this process began, about, in seconds since the epoch.
_BEGAN_S = time.time()


def of_process(config: Config, environ: Mapping[bytes, bytes]) -> list[bytes]:
    """Return everything in which a launcher that this process starts may differ from others.

    :param environ: the launcher's environment.
    """
    parts = [
        *(sys.executable, sys.prefix, sys.version, _options(config), code_version(), packages_stamp()),
        *interpreter_flags(),
        *(f"{name} {resource.getrlimit(getattr(resource, name))}" for name in dir(resource) if "RLIMIT_" in name),
        *(f"umask {umask():o}", _working_directory(), *_namespaces(), *_scheduling()),
        *(f"{path} {stamp_of(path)}" for path in _settings()),
    ]
    kept = sorted(name + b"=" + value for name, value in environ.items() if name not in _VOLATILE)
    return [*map(os.fsencode, parts), *_inherited(), *kept]


def _options(config: Config) -> str:
    """Return the options that a launcher or its runners use, but for those that an executor sends: ``keep``."""
    others = {option.name for option in OPTIONS if not option.for_launcher}
    return repr(sorted((name, value) for name, value in vars(config).items() if name not in others))


def interpreter_flags() -> list[str]:
    """Return the options with which this Python was started, such as ``-X dev`` or ``-W error``, for another one."""
    return list(subprocess._args_from_interpreter_flags())  # type: ignore[attr-defined]


def umask() -> int:
    """Return the mask of modes for new files."""
    with contextlib.suppress(OSError, StopIteration):  # without changing it, which other threads would notice
        lines = Path("/proc/self/status").read_bytes().splitlines()
        return int(next(line for line in lines if line.startswith(b"Umask:")).split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _working_directory() -> str:
    try:
        status = os.stat(".")
        return f"{os.getcwd()} {status.st_dev} {status.st_ino}"
    except OSError:
        return "a working directory that was removed"


def _namespaces() -> Iterator[str]:
    # What sees other files, processes, users or networks; and whose resources are counted elsewhere.
    for name in ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"):
        with contextlib.suppress(OSError):
            yield os.readlink(f"/proc/self/ns/{name}")
    for path in ("/proc/self/cgroup", "/proc/self/attr/current", "/proc/self/oom_score_adj", "/proc/self/root"):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            yield os.readlink(path) if path.endswith("root") else Path(path).read_text()


def _inherited() -> list[bytes]:
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_bytes().splitlines()
        found = dict(line.split(b":", 1) for line in lines if line.split(b":")[0] in _INHERITED)
        # Signals 32 and 33 are the C library's own. It ignores them in what it spawns, but not in what is forked.
        found[b"SigIgn"] = b"%x" % (int(found[b"SigIgn"], 16) & ~(0b11 << 31))
        return [name + value for name, value in found.items()]
    return [f"{os.getuid()} {os.geteuid()} {os.getgid()} {os.getegid()} {sorted(os.getgroups())}".encode()]


def _scheduling() -> Iterator[str]:
    yield f"nice {os.getpriority(os.PRIO_PROCESS, 0)}"
    if hasattr(os, "sched_getscheduler"):
        yield f"{os.sched_getscheduler(0)} {os.sched_getparam(0).sched_priority}"


def stamp_of(path: str | Path) -> str:
    """Return a text that changes when the file changes or is replaced; empty if there is no file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return ""
    return f"{status.st_mtime_ns} {status.st_size} {status.st_ino}"


def _settings() -> Iterator[str]:
    """Yield files that are read once, by Airflow or by what it imports, and whether they exist or not."""
    home = airflow_home()
    yield "/etc/localtime"
    yield from filter(None, map(os.environ.get, _CERTIFICATES))
    with contextlib.suppress(ConfigError):
        yield from filter(None, map(plain_getter("api"), ("ssl_cert", "ssl_ca_file", "client_ssl_cert")))
    yield os.environ.get("AIRFLOW_CONFIG") or str(home / "airflow.cfg")
    for folder in dict.fromkeys([*sys.path, str(home / "config")]):
        for name in ("airflow_local_settings", "sitecustomize", "usercustomize"):
            for path in (f"{name}.py", os.path.join(name, "__init__.py")):
                path = os.path.join(folder, path)
                if os.path.exists(path):
                    yield path
    plugins = None
    with contextlib.suppress(ConfigError):
        plugins = plain_getter("core")("plugins_folder")
    number = 0
    for folder, folders, files in os.walk(plugins or home / "plugins"):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(files):
            number += 1
            if number > _MAX_PLUGIN_FILES:
                return
            yield os.path.join(folder, name)


def code_version() -> str:
    """Return a text that differs between versions of AirExecutor and of Airflow."""
    import importlib.metadata  # here: no fork of a launcher needs what it imports

    versions = []
    for name in ("air-executor", "apache-airflow-core", "apache-airflow-task-sdk"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name}={importlib.metadata.version(name)}")
    # An editable installation changes without a new version.
    files = sorted(Path(__file__).parent.parent.rglob("*.py"))
    return " ".join(versions + [stamp_of(path) for path in files])


def packages_stamp() -> str:
    """Return a text that differs between sets of installed packages.

    Installing, upgrading and removing change a package's metadata. Bytecode, which any import may write, is left out.
    """
    found = [sys.prefix]
    for folder in dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")):
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name == "__pycache__":
                    continue
                # A package's folder changes as bytecode is written into it. Its metadata do not.
                is_whole = not entry.is_dir() or entry.name.endswith((".dist-info", ".egg-info"))
                found.append(f"{entry.name} {stamp_of(entry.path) if is_whole else ''}")
    return "\n".join(found)


def note_code(path: Path, hidden: Iterable[ModuleType] = ()) -> None:
    """Note the files whose code this process has in memory, with their stamps. For launchers, once they are warm.

    :param hidden: modules that it has beside those in ``sys.modules``.
    :raises StateDirError: it can't be written.
    """
    standard = tuple(os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "platstdlib"))
    packaged = tuple(os.path.join(sysconfig.get_path(name), "") for name in ("purelib", "platlib"))
    lines = []
    for module in (*list(sys.modules.values()), *hidden):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or (file.startswith(standard) and not file.startswith(packaged)):
            continue
        if stamp := stamp_of(file):
            lines.append(os.fsencode(f"{_at_birth(stamp)} {file}"))
    replace_file(path, b"\0".join(lines))


def _at_birth(stamp: str) -> str:
    # A file that has changed since this process began may have been imported before the change: take it for changed.
    return stamp if int(stamp.split()[0]) < _BEGAN_S * 1e9 else "0 0 0"


def changed_code(path: Path) -> str | None:
    """Return a file that has changed since a launcher noted its code at ``path``; ``None`` if none has."""
    try:
        lines = path.read_bytes().split(b"\0")
    except OSError:
        return None
    for line in filter(None, lines):
        *stamp, file = os.fsdecode(line).split(" ", 3)
        if stamp_of(file) != " ".join(stamp):
            return file
    return None
