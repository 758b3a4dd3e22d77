"""Runs: one execution of one workload by one runner, its record on disk and its lock. Knows nothing of Airflow."""
