"""Every option of ``[air_executor]``: its type, default and reason, in one place.

The same table feeds Airflow (through the provider entry point), ``airflow.cfg.example``, the executor, the
launcher and the command line. The command line must answer fast and without Airflow, so there are two sources
for the values: Airflow's own configuration object, and the environment plus ``airflow.cfg`` read directly.
"""

from __future__ import annotations

import configparser
import json
import math
import os
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from air_executor.errors import ConfigError
from air_executor.machine import gpu_pool

SECTION = "air_executor"

#: Variables whose values name variables are put in at most so many times; Airflow goes on for ever.
_MAX_EXPANSIONS = 20

#: Looks an option up; ``None`` when the user has not set it.
Getter = Callable[[str], "str | None"]


@dataclass(frozen=True)
class Option:
    """One option: how it is written, what it means and how its text becomes a value."""

    name: str
    type: str
    default: str
    description: str
    example: str | None
    parse: Callable[[str], Any]


def _duration_s(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise ValueError("must be a number of seconds, 0 or more")
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


def _gpus(text: str) -> tuple[str, ...]:
    return gpu_pool.pool(text, gpu_pool.devices(), os.environ.get("CUDA_VISIBLE_DEVICES"))


OPTIONS: tuple[Option, ...] = (
    Option(
        "state_dir",
        "string",
        "{AIRFLOW_HOME}/.air-executor",
        "Folder of the runs' records, locks, and the launcher's socket. It must be on a local disk of the "
        "machine that runs the scheduler, and belong to the user that runs it (mode 0700).",
        "/var/lib/airflow/air-executor",
        str,
    ),
    Option(
        "launch",
        "string",
        "auto",
        "How a runner is born. ``fork``: from a launcher that has Airflow imported already, in milliseconds. "
        "``exec``: as a fresh Python, about two seconds slower, for platforms where a bare fork is not safe. "
        "``auto``: exec on macOS, fork elsewhere.",
        None,
        _launch,
    ),
    Option(
        "launcher",
        "string",
        "own",
        "Who starts the launcher. ``own``: the executor, when it needs one. ``service``: somebody else, as systemd "
        "or another container, with ``air-executor launcher``; the executor finds it through the state directory "
        "and waits for it.",
        None,
        _one_of("own", "service"),
    ),
    Option(
        "on_shutdown",
        "string",
        "detach",
        "What becomes of running tasks when the scheduler is stopped. ``detach``: they run on, and the next "
        "scheduler takes them over. ``drain``: the scheduler waits for them. ``kill``: they are stopped, with time "
        "for ``on_kill``, and fail.",
        None,
        _one_of("detach", "drain", "kill"),
    ),
    Option(
        "api_patience_seconds",
        "float",
        "3600",
        "How long a runner whose API server can't be reached, or answers with errors, goes on and tries again, in "
        "seconds. Its task runs meanwhile; what became of it is delivered when the server is back.",
        None,
        _duration_s,
    ),
    Option(
        "preload",
        "string",
        "auto",
        "Modules that the launcher imports once, so that tasks find them imported. ``auto`` learns: what tasks import "
        "of installed packages, takes time and survives a fork is imported ahead; ``air-executor doctor`` tells which "
        "and why not. ``off`` imports nothing ahead. Modules can be named, too, in a list with commas: those are "
        "imported without a trial; with a minus before it, a module is left to the tasks, for example because they set "
        "variables that it reads when it is imported. Name installed packages, never modules of the DAG folder: those "
        "would go stale. Except with ``off`` or ``-rehearsal`` in the list, the launcher also plays a few runs before "
        "it serves: it starts half a second later, and tasks take a fifth less CPU and a quarter less memory.",
        "auto,sqlalchemy,-torch",
        _modules,
    ),
    Option(
        "launcher_idle_seconds",
        "float",
        "300",
        "The launcher ends by itself when it has had no work for this many seconds; the next workload "
        "starts a new one.",
        None,
        _duration_s,
    ),
    Option(
        "stop_grace_seconds",
        "float",
        "10",
        "How long a task that is stopped may take for its ``on_kill`` after SIGTERM, in seconds, before it "
        "gets SIGKILL.",
        None,
        _duration_s,
    ),
    Option(
        "keep_days",
        "float",
        "7",
        "Records of ended runs older than this many days are removed. Task logs are Airflow's and stay.",
        None,
        _duration_s,
    ),
    Option(
        "keep_runs",
        "integer",
        "10000",
        "At most this many records of ended runs are kept, the newest ones.",
        None,
        _count,
    ),
    Option(
        "gpus",
        "string",
        "",
        "GPUs that tasks can lease with ``executor_config={'air': {'gpus': 1}}``: numbers or UUIDs with "
        "commas, or ``auto`` for all NVIDIA devices of this machine, or of the container. Of those only what the "
        "scheduler's own ``CUDA_VISIBLE_DEVICES`` allows, if it is set. Empty: none.",
        "0,1",
        _gpus,
    ),
    Option(
        "on_launcher_stop",
        "string",
        "auto",
        "What becomes of running tasks when the launcher gets SIGTERM. ``detach``: the launcher ends at once, and they "
        "run on. ``drain``: it takes no new ones, and ends with its last one. ``stop``: they are stopped, with time "
        "for ``on_kill``, and fail; the launcher ends when their ends are recorded. ``auto``: stop when the launcher "
        "is a container's main process, with which all others die, detach elsewhere. A second SIGTERM ends it at "
        "once. Give the container time for it: more than stop_grace_seconds and 20 s.",
        "stop",
        _one_of("auto", "detach", "drain", "stop"),
    ),
    Option(
        "renew_tokens",
        "string",
        "auto",
        "Whether a runner signs itself another token, for its own task instance only, when its token has run out while "
        "the API server was away, or the clock was set back; otherwise its task fails then. It needs the key with "
        "which Airflow signs. ``auto``: where the executor starts the launcher, so that runners have the scheduler's "
        "configuration anyway, and not with a launcher that is a service. Airflow's audit log tells of each run that "
        "did.",
        "off",
        _one_of("auto", "on", "off"),
    ),
    Option(
        "keep_jobs",
        "integer",
        "10000",
        "At most this many jobs are kept, those that have changed last; what has not ended stays. Jobs that ended "
        "more than keep_days ago go too. In a folder of one's own, outside of state_dir, jobs stay unless "
        "AIR_EXECUTOR_KEEP_DAYS or AIR_EXECUTOR_KEEP_JOBS is set.",
        None,
        _count,
    ),
)


@dataclass(frozen=True)
class Config:
    """The options as values. Durations are seconds; ``launch`` is ``fork`` or ``exec``, ``auto`` resolved."""

    state_dir: str
    launch: str
    launcher: str
    on_shutdown: str
    api_patience_seconds: float
    preload: tuple[str, ...]
    launcher_idle_seconds: float
    stop_grace_seconds: float
    keep_days: float
    keep_runs: int
    gpus: tuple[str, ...]
    on_launcher_stop: str = "auto"
    renew_tokens: str = "auto"
    keep_jobs: int = 10000
    serves: str = "airflow"
    """For what launchers are warm: ``airflow``, or ``jobs`` of the standalone engine, without Airflow."""

    @property
    def learns_imports(self) -> bool:
        """Whether launchers import ahead what they have seen tasks import."""
        return self.launch == "fork" and "auto" in self.preload

    @property
    def rehearses_runs(self) -> bool:
        """Whether launchers play a few runs before they serve: half a second of work, for tasks to be lighter."""
        return self.launch == "fork" and bool(self.preload) and not {"off", "-rehearsal"} & set(self.preload)

    @property
    def may_sign_tokens(self) -> bool:
        """Whether runners may sign themselves another token."""
        return self.renew_tokens == "on" or (self.renew_tokens == "auto" and self.launcher == "own")

    def to_json(self) -> str:
        """Return the options as one line of JSON, for a child process's command line."""
        # Not orjson: it knows neither infinity nor file names that are not UTF-8.
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Return what :meth:`to_json` wrote, in this version or another; what is missing has its default."""
        found = json.loads(text)
        values = {**vars(load(lambda _: None)), **found}
        for name in ("preload", "gpus"):
            values[name] = tuple(values[name])
        return cls(**{each.name: values[each.name] for each in fields(cls)})


def airflow_home() -> Path:
    """Return ``AIRFLOW_HOME``, or where Airflow puts it when it is not set."""
    return Path(_expand(os.environ.get("AIRFLOW_HOME") or "~/airflow"))


def _expand(text: str) -> str:
    """Put variables of the environment and ``~`` into a value as Airflow does, again until nothing changes.

    :raises ConfigError: it never ends.
    """
    for _ in range(_MAX_EXPANSIONS):
        expanded = os.path.expanduser(os.path.expandvars(text))
        if expanded == text:
            return text
        text = expanded
    raise ConfigError(f"{text[:200]!r} comes of a variable that refers to itself")


def parse_option(name: str, text: str) -> Any:
    """Return what the text of an option means.

    :raises ValueError: it can't be used.
    """
    return next(option for option in OPTIONS if option.name == name).parse(text)


def env_var(name: str, section: str = SECTION) -> str:
    """Return the name of the environment variable that sets option ``name``."""
    return f"AIRFLOW__{section.upper()}__{name.upper()}"


def load(get: Getter) -> Config:
    """Read all options through ``get``.

    :raises ConfigError: a value cannot be used; the message names the option, the value and what is wanted.
    """
    values: dict[str, Any] = {}
    for option in OPTIONS:
        text = get(option.name)
        text = option.default if text is None else text.strip()
        try:
            values[option.name] = option.parse(text)
        except (ValueError, OSError) as error:
            raise ConfigError(
                f"[{SECTION}] {option.name} = {text!r} cannot be used: {error}. Correct it in airflow.cfg or "
                f"in the environment variable {env_var(option.name)}."
            ) from None
    values["state_dir"] = _absolute(values["state_dir"])
    return Config(**values)


def _absolute(state_dir: str) -> str:
    folder = state_dir.replace("{AIRFLOW_HOME}", str(airflow_home()))
    path = Path(folder).expanduser()
    if not folder or not path.is_absolute():
        raise ConfigError(
            f"[{SECTION}] state_dir = {folder!r} cannot be used: it must be an absolute path. Correct it in "
            f"airflow.cfg or in the environment variable {env_var('state_dir')}."
        )
    return str(path)


def plain_getter(section: str = SECTION) -> Getter:
    """Return a getter that reads the environment and ``airflow.cfg`` without importing Airflow.

    It finds what Airflow finds: variables are put in, and in the file ``%(name)s`` stands for another option, ``%%``
    for a percent sign.

    :param section: of the options.
    :raises ConfigError: ``airflow.cfg`` cannot be parsed; the getter, that a value can't.
    """
    parser = _parser()

    def get(name: str) -> str | None:
        text = os.environ.get(env_var(name, section))
        if text is None:
            try:
                text = parser.get(section, name, fallback=None)
            except configparser.InterpolationError as error:
                raise ConfigError(f"[{section}] {name} in {_path()} cannot be used: {error}") from None
        return None if text is None else _expand(text)

    return get


def _path() -> Path:
    return Path(_expand(os.environ.get("AIRFLOW_CONFIG") or str(airflow_home() / "airflow.cfg")))


def _parser() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False)
    try:
        parser.read(_path(), encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"{_path()} cannot be read: {error}") from error
    return parser


def load_plain(state_dir: str | None = None) -> Config:
    """Return the options as :func:`plain_getter` finds them.

    :param state_dir: in place of the one that is set.
    :raises ConfigError: see :func:`load`.
    """
    get = plain_getter()
    return load(lambda name: state_dir if state_dir is not None and name == "state_dir" else get(name))


def unknown_options(section: str = SECTION) -> list[str]:
    """Return the names that are set as options, in ``airflow.cfg`` or in the environment, and are none.

    :raises ConfigError: ``airflow.cfg`` cannot be parsed.
    """
    known = {option.name for option in OPTIONS}
    prefix = env_var("", section)
    names = {name.removeprefix(prefix).lower() for name in os.environ if name.startswith(prefix)}
    parser = _parser()
    names |= set(parser.options(section)) - set(parser.defaults()) if parser.has_section(section) else set()
    return sorted(names - known)


def plain_state_dir() -> str:
    """Return ``state_dir`` alone, as :func:`load_plain` finds it, whatever the other options are.

    :raises ConfigError: see :func:`load`.
    """
    text = plain_getter()("state_dir")
    return _absolute(OPTIONS[0].default if text is None else text.strip())


def example() -> str:
    """Return the text of ``airflow.cfg.example``: every option with its default and its reason."""
    lines = [
        "# AirExecutor's part of airflow.cfg. Every option has its default here; leave out what you don't change.",
        f"# The same in the environment: AIRFLOW__CORE__EXECUTOR, AIRFLOW__{SECTION.upper()}__STATE_DIR and so on.",
        "",
        "[core]",
        "executor = air_executor.AirExecutor",
        "",
        f"[{SECTION}]",
    ]
    for option in OPTIONS:
        lines += ["", *(f"# {line}" for line in textwrap.wrap(option.description.replace("``", ""), 98))]
        if option.example is not None:
            lines.append(f"# Example: {option.name} = {option.example}")
        lines.append(f"{option.name} = {option.default}".rstrip())
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(example())
