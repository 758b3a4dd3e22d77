"""The Airflow of one run of one DAG: a scheduler and an execution API, and a triggerer when something is deferred.

``python -m air_executor.airflow.pocket FOLDER`` is its main process. It imports Airflow once, forks the parts from
there, starts again what dies, and never touches the database itself. One of the parts, the watcher, reads the DAG,
begins its run, and tells on stdout what becomes of it, one JSON object per line.
"""
