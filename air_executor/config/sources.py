"""Options as the environment and ``airflow.cfg`` have them, read without importing Airflow.

The command line must answer fast, and where there is no Airflow.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Callable
from pathlib import Path

from air_executor.config.options import OPTIONS, SECTION, env_var
from air_executor.errors import ConfigError

#: Variables in values are expanded at most this many times; Airflow never stops.
_MAX_EXPANSIONS = 20

#: Returns the text of an option by its name; ``None`` when the user has not set it.
Getter = Callable[[str], "str | None"]


def airflow_home() -> Path:
    """Return ``AIRFLOW_HOME``, or where Airflow puts it when it is not set."""
    return Path(_expand(os.environ.get("AIRFLOW_HOME") or "~/airflow"))


def _expand(text: str) -> str:
    """Expand ``~`` and variables of the environment as Airflow does: repeatedly, until nothing changes.

    :raises ConfigError: a variable refers to itself.
    """
    for _ in range(_MAX_EXPANSIONS):
        expanded = os.path.expanduser(os.path.expandvars(text))
        if expanded == text:
            return text
        text = expanded
    raise ConfigError(f"{text[:200]!r} has a variable that refers to itself")


def plain_getter(section: str = SECTION) -> Getter:
    """Return a getter that reads the environment and ``airflow.cfg`` without importing Airflow.

    It returns what Airflow would: variables are expanded, and in the file ``%(name)s`` stands for another option and
    ``%%`` for a percent sign.

    :param section: the section of the options.
    :raises ConfigError: ``airflow.cfg`` cannot be parsed. The getter raises it for a value that cannot be parsed.
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


def unknown_options(section: str = SECTION) -> list[str]:
    """Return names that ``airflow.cfg`` or the environment sets as options, and that are no options.

    :raises ConfigError: ``airflow.cfg`` cannot be parsed.
    """
    known = {option.name for option in OPTIONS}
    prefix = env_var("", section)
    names = {name.removeprefix(prefix).lower() for name in os.environ if name.startswith(prefix)}
    parser = _parser()
    names |= set(parser.options(section)) - set(parser.defaults()) if parser.has_section(section) else set()
    return sorted(names - known)
