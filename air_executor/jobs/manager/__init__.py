"""The manager: starts a runner for each task that is ready, and keeps the jobs' files up to date.

All that it knows is in the files, and what it does next follows from them. So it may be killed at any moment: the next
manager continues with the runners that are still there.

``loop`` has the manager's life; ``active_jobs`` the jobs that it works on; ``turns`` says which job may start the next
task, ``starts`` starts it, ``outcomes`` records what became of it; ``requests`` does what others ask; and ``runs`` is
all that the manager knows of runs.
"""

from air_executor.jobs.manager.loop import Manager

__all__ = ["Manager"]
