"""A task process that is forked before its workload is known, and waits for it."""

from __future__ import annotations

import functools
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from airflow.sdk.execution_time import supervisor as stock

from air_executor.airflow.supervision import task
from air_executor.machine import family, marks, rollup, system
from air_executor.machine.rollup import Views

#: Whether the fork that is being made is one ahead.
is_forking = False


@dataclass(frozen=True)
class TaskAhead:
    """A task process that waits."""

    supervisor: Any
    views: Views | None
    """By which it lets itself be measured."""
    inherited_bytes: int
    """What the runner held when it was forked."""
    starter: int
    """A pipe. The run's id, written there, lets the task process begin; closing it ends the process."""

    def is_alive(self) -> bool:
        """Return whether the process has not ended."""
        return not system.has_ended(self.supervisor.pid)

    def end(self) -> None:
        """End the process, and close what leads to it."""
        os.close(self.starter)
        if self.views is not None:
            self.views.close()
        os.kill(self.supervisor.pid, signal.SIGKILL)
        os.waitpid(self.supervisor.pid, 0)
        args, kwargs = self.supervisor.pipes or ((), {})
        for pipe in (*args, *kwargs.values()):
            if isinstance(pipe, socket.socket):
                pipe.close()
        self.supervisor.selector.close()


_waiting: TaskAhead | None = None


class _Unknown:
    """Stands for the task instance of a workload that is to come."""

    id = None


def fork_ahead(
    let_go: Callable[[], None], note_imports: Callable[[str, int], None], begin: Callable[[str], None]
) -> None:
    """Fork the task process now, for a workload that comes later.

    So nobody waits for the fork, and runner and task process share with the launcher the memory that the runner writes
    to before it has a workload. What the runner changes for its task from here on (the environment, priorities) does
    not reach the task process, so a run with limits of its own has to :func:`dismiss` it.

    :param let_go: called in the task process, to close what is the runner's.
    :param note_imports: called there at the end, with the id of the run and the number of modules at the start.
    :param begin: called there when the workload has come, with the id of the run.
    """
    global _waiting, is_forking
    task.runner_pid = os.getpid()
    receiver, starter = os.pipe()
    views = rollup.make_views()

    def main() -> None:
        system.die_with_parent(task.runner_pid)
        let_go()
        if views is not None:
            views.grant(waits=False)
        os.close(starter)
        with open(receiver) as file:
            run_id = file.read()
        if run_id:
            marks.join(run_id)
            begin(run_id)
            task.execute(functools.partial(note_imports, run_id))

    is_forking = True
    try:
        supervisor: Any = stock.ActivitySubprocess  # Airflow's name for its supervisor, which is ours by now
        started = supervisor.start(what=_Unknown, dag_rel_path="", bundle_info=None, client=None, target=main)
        _waiting = TaskAhead(started, views, family.memory_bytes(os.getpid()), starter)
    except OSError as error:
        os.close(starter)
        if views is not None:
            views.close()
        if not system.has_no_room(error):
            raise
    finally:
        is_forking = False
        os.close(receiver)


def take() -> TaskAhead | None:
    """Return the task process that waits, for its caller to use; ``None``: there is none that lives."""
    global _waiting
    waiting, _waiting = _waiting, None
    if waiting is None or waiting.is_alive():
        return waiting
    waiting.end()
    return None


def dismiss() -> None:
    """End the task process that waits, if there is one."""
    global _waiting
    waiting, _waiting = _waiting, None
    if waiting is not None:
        waiting.end()
