"""One run of one DAG file, from a command to its result: a pocket Airflow in a folder of its own.

What is here knows nothing of Airflow: it prepares the folder, starts :mod:`air_executor.airflow.pocket` in it, and
reads what that tells. So a program, or pytest, may use it whatever Airflow it has set up itself.
"""
