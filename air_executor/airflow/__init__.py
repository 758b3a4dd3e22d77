"""All that knows Airflow."""
