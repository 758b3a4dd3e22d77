"""The command line: one implementation behind ``air-executor …`` and ``airflow air …``."""
