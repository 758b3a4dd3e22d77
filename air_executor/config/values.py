"""The options as values: :class:`Config`, and reading it from Airflow's configuration or without Airflow."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from air_executor.config.options import OPTIONS, SECTION, env_var
from air_executor.config.sources import Getter, airflow_home, plain_getter
from air_executor.errors import ConfigError


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
    memory_budget: str = "off"
    cpu_budget: str = "off"
    over_budget: str = "alone"
    budget_dir: str = ""
    serves: str = "airflow"
    """What launchers prepare for: ``airflow``, or ``jobs`` of the standalone engine, which needs no Airflow."""
    fence_seconds: float | None = None
    """On one of many hosts: a runner that reaches Airflow for so long no more, while the host's worker does not reach
    Temporal either, ends its task, because its retry may begin on another host."""

    @property
    def learns_imports(self) -> bool:
        """Whether launchers import ahead what earlier tasks have imported."""
        return self.launch == "fork" and "auto" in self.preload

    @property
    def rehearses_runs(self) -> bool:
        """Whether launchers rehearse a few runs before they serve. It takes half a second and makes tasks lighter."""
        return self.launch == "fork" and bool(self.preload) and not {"off", "-rehearsal"} & set(self.preload)

    @property
    def has_budget(self) -> bool:
        """Whether all runs of the machine share a budget."""
        return (self.memory_budget, self.cpu_budget) != ("off", "off")

    @property
    def learns_memory(self) -> bool:
        """Whether what tasks hold is remembered for all of them, not only for those whose limit depends on it."""
        return self.memory_budget != "off"

    @property
    def may_sign_tokens(self) -> bool:
        """Whether runners may sign another token for themselves."""
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


def load(get: Getter) -> Config:
    """Return all options, each looked up through ``get``; its default when that returns ``None``.

    :raises ConfigError: a value cannot be used. The message names the option, the value and what is expected.
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
    # Those for Temporal are no part of it: a launcher's command line has it, and one of them is a secret.
    return Config(**{each.name: values[each.name] for each in fields(Config) if each.name in values})


def _absolute(state_dir: str) -> str:
    folder = state_dir.replace("{AIRFLOW_HOME}", str(airflow_home()))
    path = Path(folder).expanduser()
    if not folder or not path.is_absolute():
        raise ConfigError(
            f"[{SECTION}] state_dir = {folder!r} cannot be used: it must be an absolute path. Correct it in "
            f"airflow.cfg or in the environment variable {env_var('state_dir')}."
        )
    return str(path)


def load_plain(state_dir: str | None = None) -> Config:
    """Return the options as set in the environment and ``airflow.cfg``, without importing Airflow.

    :param state_dir: replaces the one that is set.
    :raises ConfigError: see :func:`load`.
    """
    get = plain_getter()
    return load(lambda name: state_dir if state_dir is not None and name == "state_dir" else get(name))


def plain_state_dir() -> str:
    """Return ``state_dir`` as :func:`load_plain` finds it, even when other options cannot be used.

    :raises ConfigError: see :func:`load`.
    """
    text = plain_getter()("state_dir")
    default = next(option.default for option in OPTIONS if option.name == "state_dir")
    return _absolute(default if text is None else text.strip())
