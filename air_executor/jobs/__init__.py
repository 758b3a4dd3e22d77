"""The standalone engine: jobs whose tasks may queue more tasks while they run. It needs no Airflow, and no database."""
