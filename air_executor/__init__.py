"""AirExecutor: an Airflow executor that runs every task in its own short-lived process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["AirExecutor", "TemporalExecutor", "__version__", "dag_run"]

if TYPE_CHECKING:
    from air_executor.airflow.executor import AirExecutor
    from air_executor.airflow.temporal_executor import TemporalExecutor
    from air_executor.pocket.api import dag_run


def __getattr__(name: str) -> Any:
    # Airflow imports `air_executor.AirExecutor`; everybody else (the command line, the launcher, the
    # standalone engine) must not pay for Airflow's imports, or need Airflow at all.
    if name == "AirExecutor":
        from air_executor.airflow.executor import AirExecutor

        return AirExecutor
    if name == "dag_run":
        from air_executor.pocket.api import dag_run

        return dag_run
    if name == "TemporalExecutor":
        try:
            from air_executor.airflow.temporal_executor import TemporalExecutor
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in ("temporalio", "cryptography"):
                raise
            raise ImportError(
                'TemporalExecutor needs the package temporalio: install AirExecutor with its extra "temporal", in '
                "a clone: pip install '.[temporal]'"
            ) from None
        return TemporalExecutor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
