"""Jobs of the standalone engine as tasks of a dag."""

from __future__ import annotations

import os
import tempfile
from datetime import timedelta

from airflow.sdk import dag

from air_executor.operators import AirJobOperator
from air_executor.sensors import AirJobSensor

ELSEWHERE = os.path.join(tempfile.gettempdir(), "no-manager-works-here")

GOOD = [{"id": "a", "command": "true"}, {"id": "c", "function": "os:getcwd", "dependencies": ["a"]}]


@dag(schedule=None, catchup=False)
def job_own():
    """The task works on the job itself."""
    AirJobOperator(task_id="job", tasks=GOOD, folder="/", manager="own")


@dag(schedule=None, catchup=False)
def job_waited_for():
    """A manager works on the job; one task defers for it, a sensor waits for the same job, and a deferred one."""
    job = AirJobOperator(task_id="job", job_name="waited-{{ run_id }}", tasks=GOOD, folder="/", deferrable=True)
    for mode in ({"deferrable": True}, {"mode": "reschedule", "poke_interval": 1.0}):
        job >> AirJobSensor(task_id=f"sensor_{len(mode)}", job_name="waited-{{ run_id }}", **mode)


@dag(schedule=None, catchup=False)
def job_fails():
    """What fails in the job fails the task, with its errors; a further try goes on with what failed."""
    AirJobOperator(
        task_id="job",
        tasks=[
            {"id": "good", "command": "echo good >> $AIR_TEST_OUT/job_fails", "shell": True},
            {"id": "bad", "command": "echo bad >> $AIR_TEST_OUT/job_fails; exit 5", "shell": True},
        ],
        manager="own",
        retries=1,
        retry_delay=timedelta(0),
    )


@dag(schedule=None, catchup=False)
def job_without_manager():
    """Nobody works on the jobs there."""
    AirJobOperator(task_id="job", tasks=GOOD, state_dir=ELSEWHERE)


@dag(schedule=None, catchup=False)
def job_killed():
    """The job takes for ever, and ends when the task is marked."""
    AirJobOperator(task_id="job", tasks=[{"id": "a", "command": "sleep", "args": ["600"]}], manager="own")


NUMBERS = (2, 7, 12)


@dag(schedule=None, catchup=False)
def job_siblings():
    """Each works on a job of its own, and ends before the next one does."""
    tasks = [
        [{"id": "s", "shell": True, "command": f"echo b{number} >> $AIR_TEST_OUT/job_siblings; sleep {number}"}]
        for number in NUMBERS
    ]
    AirJobOperator.partial(task_id="job", manager="own").expand(tasks=tasks)


@dag(schedule=None, catchup=False)
def job_again():
    """Cleared after a success, it does all again."""
    AirJobOperator(
        task_id="job",
        tasks=[{"id": "a", "shell": True, "command": "echo again >> $AIR_TEST_OUT/job_again"}],
        manager="own",
    )


@dag(schedule=None, catchup=False)
def job_mended():
    """Fails until somebody has mended the DAG's file."""
    IS_MENDED = False  # noqa: N806
    AirJobOperator(
        task_id="job",
        tasks=[
            {"id": "a", "shell": True, "command": "echo once >> $AIR_TEST_OUT/job_mended"},
            {
                "id": "b",
                "shell": True,
                "command": "echo mended >> $AIR_TEST_OUT/job_mended" if IS_MENDED else "exit 5",
            },
        ],
        manager="own",
    )


LONG = [{"id": "a", "shell": True, "command": "echo begun >> $AIR_TEST_OUT/job_deferred; sleep 600"}]


@dag(schedule=None, catchup=False)
def job_deferred():
    """The job takes for ever, and ends when nobody waits for it any more."""
    AirJobOperator(task_id="job", tasks=LONG, deferrable=True)


@dag(schedule=None, catchup=False)
def job_overdue():
    """It is not waited for longer than some seconds."""
    AirJobOperator(task_id="job", tasks=LONG, deferrable=True, execution_timeout=timedelta(seconds=15))


job_siblings()
job_again()
job_mended()
job_deferred()
job_overdue()


@dag(schedule=None, catchup=False)
def job_with_secrets():
    """What a connection gives reaches the job's tasks: as a variable of all, of one, and of each of several jobs."""
    say = {"id": "a", "shell": True, "command": "echo $T $U | tr a-z A-Z >> $AIR_TEST_OUT/job_with_secrets"}
    secret = "{{ conn.bank.password }}"
    AirJobOperator(task_id="job", tasks=[{**say, "env": {"U": secret}}], env={"T": secret}, manager="own")
    mapped = AirJobOperator.partial(task_id="mapped", env={"T": secret}, manager="own")
    mapped.expand(tasks=[[{**say, "env": {"U": f"{secret}-{number}"}}] for number in range(2)])


job_own()
job_with_secrets()
job_waited_for()
job_fails()
job_without_manager()
job_killed()
