"""Temporal as a place for runs: one workflow for each DAG run, one activity for each run, on the hosts of its queue."""
