"""Airflow's entry point for the pages. Every process of Airflow imports it, so it imports nothing that takes time."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin

from air_executor import __version__

PREFIX = "/air-executor"

#: What the bundle calls its components, and Airflow shows: see ``ui/src/main.js``.
PAGE, TAB = "AirExecutor", "Runner"


class _Lazy:
    """An ASGI app that is made by its first request."""

    def __init__(self) -> None:
        self._app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._app is None:
            from air_executor.airflow.pages import make_app

            self._app = make_app()
        await self._app(scope, receive, send)


def _bundle_url() -> str:
    """Return the path of the bundle: relative ones mean something else in each version of Airflow."""
    below = urlsplit(conf.get("api", "base_url", fallback="/")).path.rstrip("/")
    return f"{below}{PREFIX}/static/air_executor.js?{__version__}"


class AirExecutorPlugin(AirflowPlugin):
    """A page with all runners, launchers and jobs, and a tab on task instances with their runs."""

    name = "air_executor"
    fastapi_apps = [{"app": _Lazy(), "url_prefix": PREFIX, "name": "AirExecutor"}]
    react_apps = [
        {
            "name": PAGE,
            "bundle_url": _bundle_url(),
            "destination": "nav",
            "category": "browse",
            "url_route": "air-executor",
        },
        {"name": TAB, "bundle_url": _bundle_url(), "destination": "task_instance", "url_route": "air-executor-run"},
    ]
