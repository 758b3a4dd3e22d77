"""``airflow COMPONENT`` that starts with a third less work, for tests of which the start is not the subject.

The API server makes no former versions of the execution API, and no garbage is collected while modules are imported.
"""

from __future__ import annotations

import gc
import importlib
import sys

from airflow.__main__ import main

from air_executor.airflow.compat import pocketing

_MODULES = {
    "api-server": "airflow.api_fastapi.main",
    "dag-processor": "airflow.jobs.dag_processor_job_runner",
    "scheduler": "airflow.jobs.scheduler_job_runner",
    "triggerer": "airflow.jobs.triggerer_job_runner",
}


def start(component: str) -> None:
    """Be the component."""
    gc.disable()
    if component == "api-server":
        pocketing.serve_own_version_only()
    importlib.import_module(_MODULES[component])
    gc.enable()
    main()


if __name__ == "__main__":
    start(sys.argv[1])
