"""The doctor: looks at everything that has to be right, and says how to mend what is not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from air_executor import __version__, config
from air_executor.cli.observe import launchers
from air_executor.config import Config
from air_executor.errors import AirExecutorError
from air_executor.launcher import protocol
from air_executor.launcher.address import Address, all_addresses, service_address
from air_executor.launcher.preload import read_verdicts
from air_executor.ownership import check_state_dir
from air_executor.processes import hides_processes
from air_executor.runs.lock import KernelLock
from air_executor.runs.store import RunStore

#: Supported versions of Airflow, from and below.
_AIRFLOW = ((3, 1), (3, 4))

#: Less free space than this many bytes is worth a warning.
_LOW_SPACE_BYTES = 100 << 20

_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def examine() -> list[Check]:
    """Look at everything, and return what was found."""
    checks = [_python(), _airflow_version()]
    has_airflow = importlib.util.find_spec("airflow") is not None
    if has_airflow:
        checks.append(_entry_point())
    try:
        options = config.load_plain()
    except AirExecutorError as error:
        return [*checks, Check("options", False, str(error), "Correct the option; the scheduler does not start so.")]
    checks.append(Check("options", True, f"launch = {options.launch}, preload = {', '.join(options.preload) or '-'}"))
    state = _state_dir(options)
    checks.append(state)
    if state.ok and Path(options.state_dir).exists():
        store = RunStore(options.state_dir)
        checks += [_space(store), _records(store), _launchers(store), _processes(store), _preload(store)]
    if has_airflow:
        # Airflow's own messages would stand between the findings.
        logging.disable(logging.CRITICAL)
        try:
            checks += [_executor(), _api_server()]
        finally:
            logging.disable(logging.NOTSET)
    return checks


def _python() -> Check:
    ok = sys.version_info >= (3, 10)
    found = f"{sys.version.split()[0]} at {sys.executable}"
    return Check("python", ok, found, "AirExecutor needs Python 3.10 or newer.")


def _airflow_version() -> Check:
    try:
        version = importlib.metadata.version("apache-airflow-core")
    except importlib.metadata.PackageNotFoundError:
        return Check("airflow", False, "not installed here", "Install it: pip install 'air-executor[airflow]'.")
    pair = tuple(int(part) for part in version.split(".")[:2])
    remedy = f"AirExecutor {__version__} is tested with Airflow 3.1, 3.2 and 3.3."
    return Check("airflow", _AIRFLOW[0] <= pair < _AIRFLOW[1], version, remedy)


def _entry_point() -> Check:
    points = importlib.metadata.entry_points(group="apache_airflow_provider")
    ok = any(point.value.startswith("air_executor.") for point in points)
    remedy = "Install AirExecutor as a package (pip install); a copied folder has no entry point."
    return Check("provider", ok, "registered with Airflow" if ok else "not registered with Airflow", remedy)


def _state_dir(options: Config) -> Check:
    if not Path(options.state_dir).exists():
        # Made here, it would belong to whoever asks.
        return Check("state directory", True, f"{options.state_dir} (the scheduler will make it)")
    store = RunStore(options.state_dir)
    try:
        check_state_dir(options.state_dir)
        store.prepare()
        _use_sockets_and_locks(store.root / f".try-{os.urandom(8).hex()}")
    except (AirExecutorError, OSError) as error:
        remedy = "Mend its owner or mode, or set [air_executor] state_dir to another folder, on a local disk."
        return Check("state directory", False, str(error), remedy)
    return Check("state directory", True, options.state_dir)


def _use_sockets_and_locks(path: Path) -> None:
    """Do what a launcher and a runner do with their files.

    :raises StateDirError: the file system can't.
    """
    try:
        protocol.listen(path).close()
        path.unlink()
        lock = KernelLock(path)
        lock.acquire(0)
        lock.release()
    finally:
        path.unlink(missing_ok=True)


def _space(store: RunStore) -> Check:
    free = shutil.disk_usage(store.root).free
    remedy = "Free some space, or set [air_executor] state_dir to another disk."
    return Check("disk space", free >= _LOW_SPACE_BYTES, f"{free >> 20} MiB free", remedy)


def _records(store: RunStore) -> Check:
    bad = store.unreadable()
    remedy = "Look at them; what lies aside can be removed: " + ", ".join(str(path) for path in bad[:3])
    return Check("records", not bad, f"{len(store.ids())} runs, {len(bad)} unreadable documents", remedy)


def _launchers(store: RunStore) -> Check:
    addresses, answers = all_addresses(store), launchers(store)
    silent = [address for address in addresses if address.key not in {answer["key"] for answer in answers}]
    if silent:
        remedy = f"See {silent[0].log}. The next workload starts a new launcher."
        return Check("launcher", False, f"{len(silent)} launcher(s) do not answer", remedy)
    for answer in answers:
        if troubles := answer.get("troubles"):
            remedy = f"See {Address(answer['key'].split('-')[0], store.launchers).log}; tasks are executed meanwhile."
            return Check("launcher", False, f"pid {answer['pid']}: {'; '.join(troubles)}", remedy)
        # Executors start their own launchers themselves, of their own version.
        if answer["key"] == service_address(store).key and (objection := protocol.objection(answer)):
            what, _, remedy = objection.partition(": ")
            return Check("launcher", False, f"orders wait: {what}", f"{remedy[:1].upper()}{remedy[1:]}.")
    if not answers:
        return Check("launcher", True, "none; one is started with the next workload")
    return Check("launcher", True, ", ".join(f"pid {one['pid']}, {one['runners']} runners" for one in answers))


def _processes(store: RunStore) -> Check:
    is_hidden = hides_processes() or any(answer.get("hides_processes") for answer in launchers(store))
    remedy = (
        "What is hidden counts towards no limit, and is not found when its run and the launcher have died together. "
        "Mount /proc without hidepid, or with gid= of a group of this user; in a systemd unit, set ProtectProc=default."
    )
    return Check("processes", not is_hidden, "/proc hides some" if is_hidden else "/proc shows them all", remedy)


def _preload(store: RunStore) -> Check:
    verdicts = read_verdicts(store)
    ahead = [f"{each.package} ({each.seconds:.2f} s)" for each in verdicts if each.refused is None]
    left = [f"{each.package} ({each.refused})" for each in verdicts if each.refused and not each.is_cheap]
    return Check("preload", True, f"imported ahead: {', '.join(ahead) or '-'}; left to tasks: {', '.join(left) or '-'}")


def _guarded(name: str, remedy: str) -> Callable[[Callable[[], Check]], Callable[[], Check]]:
    def decorate(check: Callable[[], Check]) -> Callable[[], Check]:
        def run() -> Check:
            try:
                return check()
            except Exception as error:
                return Check(name, False, f"{type(error).__name__}: {error}", remedy)

        return run

    return decorate


@_guarded("executor", "Airflow itself can't be configured so; see the message.")
def _executor() -> Check:
    from airflow.configuration import conf

    value = conf.get("core", "executor")
    remedy = "Set AIRFLOW__CORE__EXECUTOR=air_executor.AirExecutor (or [core] executor in airflow.cfg)."
    return Check("executor", "air_executor." in value, f"[core] executor = {value}", remedy)


@_guarded("api server", "Airflow itself can't be configured so; see the message.")
def _api_server() -> Check:
    from airflow.configuration import conf

    from air_executor import compat

    url = compat.execution_api_url(compat.team_getter(conf))
    remedy = (
        "Tasks report to it. Start it (airflow api-server), or set [core] execution_api_server_url to where it is. "
        f"Proxy variables set here: {', '.join(name for name in os.environ if name.lower().endswith('_proxy')) or '-'}."
    )
    try:
        with urllib.request.urlopen(url.rstrip("/") + "/health", timeout=_TIMEOUT_S) as answer:
            return Check("api server", answer.status == 200, f"{url} answers {answer.status}", remedy)
    except urllib.error.HTTPError as error:
        return Check("api server", False, f"{url} answers {error.code}", remedy)
    except OSError as error:
        return Check("api server", False, f"{url} can't be reached: {error}", remedy)
