"""Pages that show runs and jobs: in Airflow's UI, and by ``air-executor ui`` without Airflow."""

from __future__ import annotations

from pathlib import Path

#: The files that a browser gets. ``ui/`` in the repository has their sources.
STATIC = Path(__file__).parent / "static"
