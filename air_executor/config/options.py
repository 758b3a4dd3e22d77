"""Every option of ``[air_executor]``: its type, default, reason and group, in one place.

The same table feeds Airflow (through the provider's description), ``airflow.cfg.example``, the executor, the launcher
and the command line.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from air_executor.machine import gpu_pool
from air_executor.machine.sizes import parse_size

SECTION = "air_executor"


class Group(Enum):
    """What an option is about. The value is the group's title."""

    EXECUTOR = "The executor"
    LAUNCHER = "The launcher"
    RUNNER = "Runners"
    RETENTION = "What is kept"
    TEMPORAL = "Temporal, for runs on many hosts"


@dataclass(frozen=True)
class Option:
    """One option: how it is written, what it means and how its text becomes a value."""

    name: str
    type: str
    default: str
    description: str
    example: str | None
    parse: Callable[[str], Any]
    group: Group
    is_secret: bool = field(default=False, kw_only=True)
    for_launcher: bool = True
    """Whether a launcher or its runners use the value. A launcher keeps the values that it started with, so another
    value needs another launcher. Not so for retention: a launcher that prunes has to read the current values."""


def _duration_s(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise ValueError("must be a number of seconds, 0 or more")
    return value


def _some_time_s(text: str) -> float:
    value = _duration_s(text)
    if not value:
        raise ValueError("must be a number of seconds, more than 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError("must be a whole number, 0 or more")
    return value


def _one_of(*values: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(f"must be {', '.join(values[:-1])} or {values[-1]}")
        return text

    return parse


def _launch(text: str) -> str:
    if _one_of("auto", "fork", "exec")(text) == "auto":
        return "exec" if sys.platform == "darwin" else "fork"
    return text


def _modules(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        if not all(piece.isidentifier() for piece in name.removeprefix("-").split(".")):
            raise ValueError(f"{name!r} is not a module name")
    return names


def _memory_budget(text: str) -> str:
    if text not in ("auto", "off"):
        try:
            parse_size(text)
        except ValueError:
            raise ValueError("must be auto, off, or a size such as 8GiB") from None
    return text


def _cpu_budget(text: str) -> str:
    if text not in ("auto", "off"):
        try:
            _some_time_s(text)
        except ValueError:
            raise ValueError("must be auto, off, or a number of CPUs, more than 0") from None
    return text


def _folder(text: str) -> str:
    if text and not os.path.isabs(text):
        raise ValueError("must be an absolute path, or empty")
    return text


def _queue_name(text: str) -> str:
    if not re.fullmatch(r"[\w.-]{1,100}", text):
        raise ValueError("must have 1 to 100 letters, digits, '.', '_' or '-'")
    return text


def _gpus(text: str) -> tuple[str, ...]:
    return gpu_pool.pool(text, gpu_pool.devices(), os.environ.get("CUDA_VISIBLE_DEVICES"))


#: All options, those of a group side by side.
OPTIONS: tuple[Option, ...] = (
    Option(
        "state_dir",
        "string",
        "{AIRFLOW_HOME}/.air-executor",
        "Folder for the runs' records and locks, and the launcher's socket. It must be on a local disk of the machine "
        "that runs the scheduler, and belong to the user that runs it (mode 0700).",
        "/var/lib/airflow/air-executor",
        str,
        Group.EXECUTOR,
    ),
    Option(
        "launcher",
        "string",
        "own",
        "Who starts the launcher. ``own``: the executor, when it needs one. ``service``: systemd, another container or "
        "the like, with ``air-executor launcher``; the executor finds it through the state directory. If it does not "
        "run, orders wait for a minute; then their tasks fail, and are retried by their rules.",
        None,
        _one_of("own", "service"),
        Group.EXECUTOR,
    ),
    Option(
        "on_shutdown",
        "string",
        "detach",
        "What happens to running tasks when the scheduler is stopped. ``detach``: they keep running, and the next "
        "scheduler takes them over. ``drain``: the scheduler waits for them. ``kill``: they are stopped, with time for "
        "``on_kill``, and fail.",
        None,
        _one_of("detach", "drain", "kill"),
        Group.EXECUTOR,
        for_launcher=False,
    ),
    Option(
        "gpus",
        "string",
        "",
        "GPUs that tasks can lease with ``executor_config={'air': {'gpus': 1}}``: numbers or UUIDs, separated by "
        "commas, or ``auto`` for all NVIDIA devices of this machine or container. If the scheduler's own "
        "``CUDA_VISIBLE_DEVICES`` is set, only those that it allows. Empty: none.",
        "0,1",
        _gpus,
        Group.EXECUTOR,
    ),
    Option(
        "memory_budget",
        "string",
        "off",
        "How much memory all tasks of this machine may have together: a size, or ``auto`` for the memory of the "
        "machine or container minus a reserve: a tenth of it or 512 MiB, whichever is more, but at most half. A task "
        "counts for its memory limit, or else for a fifth more than its earlier runs have held, or else for what it "
        "holds. One that finds no room stays scheduled; ``air-executor status`` says how much it waits for. While the "
        "machine lacks memory, no further task begins.",
        "auto",
        _memory_budget,
        Group.EXECUTOR,
    ),
    Option(
        "cpu_budget",
        "string",
        "off",
        "The same for CPUs: a number, or ``auto`` for all that the machine, or the container, has. A task counts for "
        "its limit of ``cpus``, or else for one.",
        "auto",
        _cpu_budget,
        Group.EXECUTOR,
        for_launcher=False,
    ),
    Option(
        "over_budget",
        "string",
        "alone",
        "What becomes of a task whose limit is more than the whole budget. ``alone``: it waits until no other runs. "
        "``fail``: it fails at once, with the reason.",
        None,
        _one_of("alone", "fail"),
        Group.EXECUTOR,
        for_launcher=False,
    ),
    Option(
        "budget_dir",
        "string",
        "",
        "Folder in which those who share the budget note what their runs take: schedulers and managers of jobs. "
        "Empty: one in memory for each user, /dev/shm/air-executor-UID.",
        "/run/air-executor",
        _folder,
        Group.EXECUTOR,
        for_launcher=False,
    ),
    Option(
        "launch",
        "string",
        "auto",
        "How runners start. ``fork``: the launcher, which has imported Airflow already, forks them in milliseconds. "
        "``exec``: each is a fresh Python, about two seconds slower, for platforms where a bare fork is not safe. "
        "``auto``: exec on macOS, fork elsewhere.",
        None,
        _launch,
        Group.LAUNCHER,
    ),
    Option(
        "preload",
        "string",
        "auto",
        "Modules that the launcher imports once, so that tasks need not. ``auto`` learns from tasks: it imports those "
        "of installed packages that tasks import, that take time, and that a fork does not harm; ``air-executor "
        "doctor`` lists which, and why not the others. ``off`` imports nothing ahead. You can also name modules, "
        "separated by commas: those are imported without a trial. A minus before a name leaves the module to the "
        "tasks, for example because they set variables that it reads at import. Name installed packages, never modules "
        "of the DAG folder: those would go stale. Unless the list has ``off`` or ``-rehearsal``, the launcher also "
        "rehearses a few runs before it serves: it starts half a second later, and tasks take a fifth less CPU and a "
        "quarter less memory.",
        "auto,sqlalchemy,-torch",
        _modules,
        Group.LAUNCHER,
    ),
    Option(
        "launcher_idle_seconds",
        "float",
        "300",
        "The launcher exits when it has had no work for this many seconds. The next workload starts a new one.",
        None,
        _duration_s,
        Group.LAUNCHER,
    ),
    Option(
        "on_launcher_stop",
        "string",
        "auto",
        "What happens to running tasks when the launcher gets SIGTERM. ``detach``: the launcher exits at once, and "
        "they keep running. ``drain``: it takes no new ones and exits after its last one. ``stop``: they are stopped, "
        "with time for ``on_kill``, and fail; the launcher exits when their ends are recorded. ``auto``: stop when the "
        "launcher is a container's main process, with which all others die; detach elsewhere. A second SIGTERM ends "
        "the launcher at once. Give the container time to stop: more than stop_grace_seconds + 20 s.",
        "stop",
        _one_of("auto", "detach", "drain", "stop"),
        Group.LAUNCHER,
    ),
    Option(
        "api_patience_seconds",
        "float",
        "3600",
        "How long a runner retries its requests when the API server can't be reached or answers with errors, in "
        "seconds. Its task runs meanwhile; its outcome is delivered when the server is back.",
        None,
        _duration_s,
        Group.RUNNER,
    ),
    Option(
        "stop_grace_seconds",
        "float",
        "10",
        "How long the ``on_kill`` of a task that is stopped may take, in seconds from SIGTERM to SIGKILL.",
        None,
        _duration_s,
        Group.RUNNER,
    ),
    Option(
        "renew_tokens",
        "string",
        "auto",
        "Whether a runner may sign itself a new token, for its own task instance only, when its token has expired "
        "while the API server was away, or the clock was set back. If it may not, its task fails. It needs the key "
        "with which Airflow signs. ``auto``: on where the executor starts the launcher, as runners have the "
        "scheduler's configuration there anyway; off where the launcher is a service. Airflow's audit log names each "
        "run that did it.",
        "off",
        _one_of("auto", "on", "off"),
        Group.RUNNER,
    ),
    Option(
        "keep_days",
        "float",
        "7",
        "Records of runs that ended more than this many days ago are removed. Task logs are Airflow's and stay.",
        None,
        _duration_s,
        Group.RETENTION,
        for_launcher=False,
    ),
    Option(
        "keep_runs",
        "integer",
        "10000",
        "At most this many records of ended runs are kept: the newest.",
        None,
        _count,
        Group.RETENTION,
        for_launcher=False,
    ),
    Option(
        "keep_jobs",
        "integer",
        "10000",
        "At most this many jobs are kept: those that changed last, and all that have not ended. Jobs that ended more "
        "than keep_days ago are removed too. In a folder of your own, outside of state_dir, jobs stay unless "
        "AIR_EXECUTOR_KEEP_DAYS or AIR_EXECUTOR_KEEP_JOBS is set.",
        None,
        _count,
        Group.RETENTION,
        for_launcher=False,
    ),
    Option(
        "temporal_address",
        "string",
        "",
        "Host and port of Temporal's frontend, for TemporalExecutor and ``air-executor worker``. Empty: what "
        "``TEMPORAL_ADDRESS`` or Temporal's own configuration file says, or else localhost:7233. Keys and "
        "certificates come from there too.",
        "temporal.example.com:7233",
        str,
        Group.TEMPORAL,
        for_launcher=False,
    ),
    Option(
        "temporal_namespace",
        "string",
        "",
        "Namespace in Temporal. Empty: what ``TEMPORAL_NAMESPACE`` or Temporal's own configuration file says, or else "
        "``default``.",
        "airflow",
        str,
        Group.TEMPORAL,
        for_launcher=False,
    ),
    Option(
        "temporal_task_queue",
        "string",
        "airflow-tasks",
        "The first part of the names of Temporal's task queues: one for each of Airflow's queues, as "
        "``airflow-tasks.default``. ``TEMPORAL_TASK_QUEUE`` overrides it.",
        None,
        _queue_name,
        Group.TEMPORAL,
        for_launcher=False,
    ),
    Option(
        "temporal_wait_seconds",
        "float",
        "86400",
        "How long an order may wait in Temporal for a host, in seconds; then its task fails. Until a task begins, "
        "``[scheduler] task_queued_timeout`` does not count for it.",
        None,
        _some_time_s,
        Group.TEMPORAL,
        for_launcher=False,
    ),
    Option(
        "temporal_key",
        "string",
        "",
        "Secrets from which the keys for orders in Temporal are derived, separated by commas: the first encrypts, all "
        "can decrypt. All hosts need the same. Empty: [api] secret_key.",
        None,
        str,
        Group.TEMPORAL,
        is_secret=True,
        for_launcher=False,
    ),
)

_BY_NAME = {option.name: option for option in OPTIONS}


def default(name: str) -> str:
    """Return the text of an option's default."""
    return _BY_NAME[name].default


def parse_option(name: str, text: str) -> Any:
    """Return what the text of an option means.

    :raises ValueError: it can't be used.
    """
    return _BY_NAME[name].parse(text)


def env_var(name: str, section: str = SECTION) -> str:
    """Return the name of the environment variable that sets option ``name``."""
    return f"AIRFLOW__{section.upper()}__{name.upper()}"
