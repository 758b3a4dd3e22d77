"""Where the scheduler's metrics go."""

from __future__ import annotations

import importlib
from typing import Any

from air_executor.airflow.compat.version import AIRFLOW_VERSION

_MODULE = importlib.import_module("airflow.stats" if AIRFLOW_VERSION < (3, 2) else "airflow.observability.stats")

#: Has ``incr``, ``gauge`` and ``timing``.
stats: Any = _MODULE.Stats
