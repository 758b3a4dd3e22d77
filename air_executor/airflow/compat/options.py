"""Options of Airflow's own configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def team_getter(team_conf: Any) -> Callable[[str, str], str | None]:
    """Return a lookup of options, by section and name, first in a team's configuration and then in the common one.

    Airflow itself looks in the team's only, so a team would have to repeat every option that differs from its default.

    :param team_conf: the team's configuration, or Airflow's own when there is no team.
    """
    from airflow.configuration import conf

    def get(section: str, name: str) -> str | None:
        value = team_conf.get(section, name, fallback=None)
        return value if value is not None else conf.get(section, name, fallback=None)

    return get


def execution_api_url(get: Callable[[str, str], str | None]) -> str:
    """Return the URL of the execution API, by Airflow's rules, from the options that ``get`` looks up."""
    base = get("api", "base_url") or "/"
    if base.startswith("/"):
        base = f"http://localhost:8080{base}"
    return get("core", "execution_api_server_url") or f"{base.rstrip('/')}/execution/"


def stock_attempts() -> int:
    """Return how often Airflow itself makes a request to the execution API before it gives up."""
    from airflow.configuration import conf

    return int(conf.getint("workers", "execution_api_retries"))


def impersonation() -> str | None:
    """Return the name of the option that has all tasks executed as another user, if it is set.

    Such tasks are executed by ``sudo``, which may ask, log, or refuse.
    """
    from airflow.configuration import conf

    return "[core] default_impersonation" if conf.get("core", "default_impersonation", fallback=None) else None
