"""What AirExecutor costs, beside Airflow's other executors: ``scripts/benchmark``."""
