"""The standalone engine: jobs whose tasks may queue more tasks while they run. It needs no Airflow, and no database."""

from air_executor.jobs.api import Results, queue_tasks, results, submit, wait
from air_executor.jobs.model import Job, JobState, Task, TaskStatus

__all__ = ["Job", "JobState", "Results", "Task", "TaskStatus", "queue_tasks", "results", "submit", "wait"]
