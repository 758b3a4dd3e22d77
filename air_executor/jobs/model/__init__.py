"""What jobs and tasks are: their fields, how they stand in documents, and what must hold between tasks."""

from air_executor.jobs.model.dependencies import check_dependencies, new_tasks
from air_executor.jobs.model.job import HOOKS, NOT_OF_HOOKS, Job
from air_executor.jobs.model.states import JobState, TaskStatus, When
from air_executor.jobs.model.task import OUTSIDE, Task
from air_executor.jobs.names import check_name, is_name

__all__ = [
    "HOOKS",
    "NOT_OF_HOOKS",
    "OUTSIDE",
    "Job",
    "JobState",
    "Task",
    "TaskStatus",
    "When",
    "check_dependencies",
    "check_name",
    "is_name",
    "new_tasks",
]
