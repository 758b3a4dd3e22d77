"""Which Airflow this is."""

from __future__ import annotations

from airflow import __version__

#: Major and minor number of the installed Airflow.
AIRFLOW_VERSION: tuple[int, int] = tuple(int(part) for part in __version__.split(".")[:2])  # type: ignore[assignment]
