"""Removing ended jobs: by name, or the old ones and those beyond a number.

Below Airflow's state directory each run of a DAG leaves its jobs, so the launcher removes old ones now and then, like
the records of runs. In a folder of the user's own, which may be in git, nothing is removed unless the user asks.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from air_executor import config
from air_executor.config import Config
from air_executor.errors import AirExecutorError, ConfigError, JobError, StateDirError, UnknownJobError, WrongStateError
from air_executor.jobs import keys, orphans
from air_executor.jobs.model import Job
from air_executor.jobs.store import JobFiles, JobStore
from air_executor.runs.lock import LOOKERS_S
from air_executor.runs.pruning import Pruned
from air_executor.runs.store import RunStore

#: The launcher keeps a job for this many seconds after its end: somebody may be about to read it.
READ_S = 3600.0

#: A job that was being made, and is older than this many seconds, was left by a process that died.
_STALE_S = 86400.0
_REMOVED = ".removed-"
_BEING_MADE = re.compile(r"\..+\.[0-9a-f]{8}-[0-9a-f-]{27}")


@dataclass(frozen=True)
class Retention:
    """How many ended jobs are kept, and for how many days."""

    keep_days: float
    keep_jobs: float


def retention(options: Config, environ: Mapping[str, str] = os.environ) -> Retention | None:
    """Return how many ended jobs below ``options.state_dir`` are kept; ``None``: all.

    :raises ConfigError: a variable cannot be used.
    """
    given: dict[str, float] = {}
    for name in ("keep_days", "keep_jobs"):
        variable = f"AIR_EXECUTOR_{name.upper()}"
        if text := environ.get(variable, "").strip():
            try:
                given[name] = config.parse_option(name, text)
            except ValueError as error:
                raise ConfigError(f"{variable}={text} cannot be used: {error}") from None
    if not given and not _is_airflows(options):
        return None
    # In a folder of the user's own, what is not given is unlimited.
    defaults = vars(options) if _is_airflows(options) else {"keep_days": float("inf"), "keep_jobs": float("inf")}
    values = {**{name: defaults[name] for name in ("keep_days", "keep_jobs")}, **given}
    return Retention(**values)


def _is_airflows(options: Config) -> bool:
    if options.serves == "airflow":
        return True
    try:
        airflows = config.load_plain().state_dir
    except ConfigError:
        return False
    return os.path.realpath(airflows) == os.path.realpath(options.state_dir)


def prune(store: JobStore, kept: Retention, *, least_age_s: float = 0.0) -> Pruned:
    """Remove ended jobs that are older than ``kept`` says, or too many, the oldest first.

    A job that has requests, or on which a manager works, stays.

    :param least_age_s: jobs that ended less than this many seconds ago stay.
    :raises StateDirError: something could not be removed; everything else was.
    """
    troubles: list[str] = []
    _remove_stale(store, troubles)
    now_s = time.time()
    jobs = sorted(_by_age(store), reverse=True)
    removed = 0
    for rank, (changed_s, name) in enumerate(jobs):
        if rank < kept.keep_jobs and changed_s >= now_s - kept.keep_days * 86400:
            continue
        if changed_s > now_s - least_age_s:
            continue
        try:
            remove(store, name, lock_wait_s=0)  # the next time will do
            removed += 1
        except (WrongStateError, UnknownJobError):
            continue
        except JobError:
            continue  # somebody has to look at what can't be understood
        except (AirExecutorError, OSError) as error:
            troubles.append(str(error))
    try:
        keys.sweep(store)
    except StateDirError as error:
        troubles.append(str(error))
    if troubles:
        raise StateDirError(f"{removed} jobs were removed; {len(troubles)} could not be, as {troubles[0]}")
    return Pruned(removed=removed, kept=len(jobs) - removed)


def prune_if_due(options: Config) -> None:
    """Remove the jobs that are not kept, without being asked, and release the runs that no job waits for.

    :raises AirExecutorError: something could not be removed; everything else was.
    """
    orphans.release(JobStore(options.state_dir), RunStore(options.state_dir))
    if (kept := retention(options)) is not None:
        prune(JobStore(options.state_dir), kept, least_age_s=READ_S)


def _by_age(store: JobStore) -> Iterator[tuple[float, str]]:
    for name in store.folders():
        try:
            yield os.stat(os.path.join(store.root, name, "state.json")).st_mtime, name
        except OSError:
            continue


def remove(store: JobStore, name: str, *, is_forced: bool = False, lock_wait_s: float = LOOKERS_S) -> None:
    """Remove a job that has ended, with its logs.

    A job that is a link is only unlinked.

    :param is_forced: whatever its state is, and even if its files can't be understood, unless a task of it runs.
    :raises UnknownJobError: there is no such job.
    :raises WrongStateError: it has not ended, or a manager works on it.
    :raises JobError: its files can't be understood.
    :raises StateDirError: it can't be removed.
    """
    if name not in store.folders():
        raise UnknownJobError(f"there is no job {name} below {store.root}")
    files = JobFiles(store.root / name)
    if files.path.is_symlink():
        _unlink(files.path)
        return
    lock = files.lock()
    if not lock.acquire(lock_wait_s):
        raise WrongStateError(f"a manager works on job {name}; `air-executor cancel {name}` ends it")
    try:
        if not is_forced and not files.is_over():
            raise WrongStateError(
                f"job {name} has not ended; `air-executor cancel {name}` ends it, "
                f"`air-executor remove --force {name}` removes it as it is"
            )
        if is_forced:
            orphans.check_none(store, name)
        aside = store.root / f".{name[:100]}{_REMOVED}{uuid.uuid4().hex}"
        job = _job(files)
        os.rename(files.path, aside)  # so it is gone at once for all readers
        if job is not None:
            store.private.forget(job)
        _remove_tree(aside)
    except OSError as error:
        raise StateDirError(f"job {name} cannot be removed: {error.strerror or error}") from error
    finally:
        lock.release()


def _unlink(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        raise StateDirError(f"{path} cannot be removed: {error.strerror}") from error


def _job(files: JobFiles) -> Job | None:
    try:
        return files.read_job()
    except JobError:
        return None


def _remove_stale(store: JobStore, troubles: list[str]) -> None:
    try:
        entries = list(os.scandir(store.root))
    except FileNotFoundError:
        return
    except OSError as error:
        raise StateDirError(f"the folder of the jobs, {store.root}, cannot be read: {error.strerror}") from error
    for entry in entries:
        is_old = _REMOVED in entry.name or bool(_BEING_MADE.fullmatch(entry.name))
        try:
            if entry.name.startswith(".") and is_old and entry.is_dir(follow_symlinks=False):
                is_dead = entry.stat(follow_symlinks=False).st_mtime < time.time() - _STALE_S
                if is_dead or _REMOVED in entry.name:
                    _remove_tree(Path(entry.path))
        except OSError as error:
            troubles.append(f"{entry.path} cannot be removed: {error.strerror}")


def _remove_tree(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        if folder.exists():  # another process is removing it, too
            shutil.rmtree(folder, ignore_errors=True)
