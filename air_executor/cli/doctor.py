"""The doctor: checks everything that has to be right, and says how to repair what is not."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

from air_executor import __version__, config
from air_executor.cli import temporal_check
from air_executor.config import Config
from air_executor.errors import AirExecutorError, StateDirError
from air_executor.jobs.private import VARIABLE, PrivateStore
from air_executor.jobs.store import JobStore, is_worked_on
from air_executor.launcher import protocol
from air_executor.launcher.address import Address, all_addresses, service_address
from air_executor.launcher.preload.preloader import read_verdicts
from air_executor.machine.children import hides_processes
from air_executor.machine.ownership import check_state_dir
from air_executor.machine.sizes import mebibytes
from air_executor.observe import budget
from air_executor.observe.check import Check
from air_executor.observe.query import launchers
from air_executor.runs import statedir
from air_executor.runs.lock import KernelLock
from air_executor.runs.statedir import StateDir, locate
from air_executor.runs.store import RunStore

#: Supported versions of Airflow, from and below.
_AIRFLOW = ((3, 1), (3, 4))

#: Less free space than this many bytes is worth a warning.
_LOW_SPACE_BYTES = 100 << 20


def examine() -> list[Check]:
    """Check everything that commands from here depend on, and return the findings."""
    checks = [_python()]
    try:
        where = locate()
        options = config.load_plain(str(where.path))
        is_airflows = where.is_airflows or where.path == Path(config.plain_state_dir())
    except StateDirError as error:
        remedy = "Keep jobs in a folder of your own (`air-executor init`), or name one with --state-dir."
        return [*checks, Check("state directory", False, str(error), remedy)]
    except AirExecutorError as error:
        remedy = "Correct the option: the scheduler refuses to start with this value."
        return [*checks, _airflow_version(is_needed=False), Check("options", False, str(error), remedy)]
    has_airflow = importlib.util.find_spec("airflow") is not None
    checks.append(_airflow_version(is_needed=is_airflows and statedir.has_airflow()))
    if has_airflow:
        checks.append(_entry_point())
    checks.append(_options(options))
    checks += _budget()
    state = _state_dir(where)
    checks.append(state)
    if state.ok and where.path.exists():
        store = RunStore(options.state_dir)
        checks += [_space(store), _records(store), _launchers(store, options if is_airflows else None)]
        checks += [_processes(store), _preload(store)]
        if (JobStore(options.state_dir).root).is_dir():
            checks += [_private_folder(options.state_dir), _jobs(JobStore(options.state_dir))]
    elif is_airflows and options.launcher == "service":
        checks.append(_NO_SERVICE)
    if is_airflows and temporal_check.is_used(where.path):
        checks.append(temporal_check.examine())
    if has_airflow and is_airflows:
        from air_executor.airflow.checks import examine as examine_airflow

        checks += examine_airflow()
    return checks


def _python() -> Check:
    ok = sys.version_info >= (3, 10)
    found = f"{sys.version.split()[0]} at {sys.executable}"
    return Check("python", ok, found, "AirExecutor needs Python 3.10 or newer.")


def _airflow_version(*, is_needed: bool) -> Check:
    try:
        version = importlib.metadata.version("apache-airflow-core")
    except importlib.metadata.PackageNotFoundError:
        found = "not installed here" if is_needed else "not installed here; jobs work without it"
        return Check("airflow", not is_needed, found, "Install it: pip install 'apache-airflow>=3.1'.")
    pair = tuple(int(part) for part in version.split(".")[:2])
    remedy = f"AirExecutor {__version__} is tested with Airflow 3.1, 3.2 and 3.3."
    return Check("airflow", _AIRFLOW[0] <= pair < _AIRFLOW[1], version, remedy)


def _entry_point() -> Check:
    points = importlib.metadata.entry_points(group="apache_airflow_provider")
    ok = any(point.value.startswith("air_executor.") for point in points)
    remedy = "Install AirExecutor as a package (pip install); a copied folder has no entry point."
    return Check("provider", ok, "registered with Airflow" if ok else "not registered with Airflow", remedy)


def _options(options: Config) -> Check:
    found = f"launch = {options.launch}, preload = {', '.join(options.preload) or '-'}"
    if unknown := config.unknown_options():
        known = [option.name for option in config.OPTIONS]
        near = [(name, *difflib.get_close_matches(name, known, 1)) for name in unknown]
        names = ", ".join(name + "".join(f" (did you mean {each}?)" for each in like) for name, *like in near)
        remedy = f"Correct it, or take it out of [air_executor]. Options are: {', '.join(known)}."
        return Check("options", False, f"{found}; not an option: {names}", remedy)
    named = [name for name in options.preload if name[0] != "-" and name not in ("auto", "off")]
    if missing := [name for name in named if not _is_there(name)]:
        found += f"; not installed here: {', '.join(missing)}"
    return Check("options", not missing, found, "Install it, or take it out of [air_executor] preload.")


def _budget() -> list[Check]:
    try:
        room = budget.look()
    except AirExecutorError as error:
        return [Check("budget", False, str(error), "Fix the folder, or name another one: [air_executor] budget_dir.")]
    if room is None:
        return []
    memory = "off" if room.budget.memory is None else mebibytes(room.budget.memory)
    cpus = "off" if room.budget.cpus is None else f"{room.budget.cpus:g}"
    found = f"memory {memory}, CPUs {cpus}; {room.taken.runs} runs take {mebibytes(room.taken.memory)}"
    remedy = "The running schedulers or managers use a budget that is not set here: set it in airflow.cfg, too."
    return [Check("budget", bool(room.budget), f"{found}, {len(room.waiting)} wait", remedy)]


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module.partition(".")[0]) is not None


def _state_dir(where: StateDir) -> Check:
    path, remedy = where.path, "Mend its owner or mode, or name another folder, on a local disk"
    remedy += ": [air_executor] state_dir." if where.is_airflows else ": --state-dir."
    try:
        if os.path.lexists(path):
            check_state_dir(path)
            store = RunStore(path)
            store.prepare()
            _use_sockets_and_locks(store.root / f".try-{os.urandom(8).hex()}")
            return Check("state directory", True, str(where))
        # It is not made here: it would belong to whoever asks. What works in its nearest parent works in it as well.
        parent = next(each for each in path.parents if os.path.lexists(each))
        with tempfile.TemporaryDirectory(prefix=".air-executor-", dir=parent) as folder:
            _use_sockets_and_locks(Path(folder) / "try")
    except (AirExecutorError, OSError) as error:
        return Check("state directory", False, f"{where}: {error}", remedy)
    return Check("state directory", True, f"{where}, which will be created when needed")


def _private_folder(state_dir: str) -> Check:
    try:
        private = PrivateStore(state_dir)
        is_there = private.check()
    except AirExecutorError as error:
        remedy = f"Set {VARIABLE} to the same folder for the manager and for everyone who submits jobs."
        return Check("private folder", False, str(error), remedy)
    return Check("private folder", True, f"{private.root}{'' if is_there else ', which will be created when needed'}")


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
    remedy = "Inspect them; those called *.unreadable can be removed: " + ", ".join(str(path) for path in bad[:3])
    return Check("records", not bad, f"{len(store.ids())} runs, {len(bad)} unreadable documents", remedy)


_NO_SERVICE = Check(
    "launcher",
    False,
    "none, although [air_executor] launcher = service: tasks fail after waiting for it for a minute",
    "Start the service: `air-executor launcher`, with this state directory.",
)


def _launchers(store: RunStore, options: Config | None) -> Check:
    """Look at the launchers.

    :param options: the scheduler's, if these are its launchers.
    """
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
    is_service = options is not None and options.launcher == "service"
    if is_service and service_address(store).key not in {answer["key"] for answer in answers}:
        return _NO_SERVICE
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


def _jobs(store: JobStore) -> Check:
    names, bad, waiting = store.names(), [], []
    for name in names:
        try:
            files = store.files(name)
            if not files.is_ended():
                files.load()
                if not is_worked_on(files.path):
                    waiting.append(name)
        except AirExecutorError as error:
            bad.append(str(error))
    if bad:
        return Check(
            "jobs", False, f"{len(bad)} of {len(names)} can't be read: {bad[0]}", "Fix the file, or remove it."
        )
    manager = store.manager()
    found = f"{len(names)}; " + (f"their manager has pid {manager}" if manager else "no manager works")
    if waiting:
        found += f", and {len(waiting)} wait for one: {', '.join(waiting[:3])}"
    return Check("jobs", not waiting, found, "Start one: `air-executor start --detach`.")
