"""Where modules are that have moved from one version of Airflow to another."""

from __future__ import annotations

from air_executor.airflow.compat.version import AIRFLOW_VERSION

_IS_31 = AIRFLOW_VERSION < (3, 2)

#: The class ``BundleDagBag``.
DAG_BAG = "airflow.models.dagbag" if _IS_31 else "airflow.dag_processing.dagbag"

#: What reads a DAG file, and sets a handler of SIGSEGV before it does.
DAG_FILE_IMPORTER = "airflow.models.dagbag" if _IS_31 else "airflow.dag_processing.importers.python_importer"

#: Exceptions for tasks.
TASK_EXCEPTIONS = "airflow.exceptions" if _IS_31 else "airflow.sdk.exceptions"

#: The plugins of a task process.
TASK_PLUGINS = "airflow.plugins_manager" if _IS_31 else "airflow.sdk.plugins_manager"

#: Metrics. From 3.2 on, Airflow's core and its tasks each have their own.
METRICS = (
    ("airflow.stats",)
    if _IS_31
    else ("airflow._shared.observability.metrics.stats", "airflow.sdk._shared.observability.metrics.stats")
)
