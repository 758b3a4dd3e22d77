"""The executor under its former path, which may stand in configurations: ``air_executor.executor.AirExecutor``."""

from air_executor.airflow.executor import AirExecutor

__all__ = ["AirExecutor"]
