"""A job of the standalone engine, made, waited for and shown by a dag."""

from __future__ import annotations

from airflow.sdk import dag, get_current_context, task

from air_executor.jobs import results, submit
from air_executor.operators import AirJobOperator, state_dir_of


@task
def create_air_executor_job() -> str:
    """Write a job of three tasks, each after the other."""
    context = get_current_context()
    name = f"demo-{context['run_id']}.{context['ti'].try_number}"
    submit(
        name,
        [
            {"id": "greet", "command": "echo", "args": ["Hello from AirExecutor"]},
            {"id": "process", "command": "sleep 1; echo processed", "shell": True, "dependencies": ["greet"]},
            {"id": "complete", "command": "echo", "args": ["All done"], "dependencies": ["process"]},
        ],
        state_dir=state_dir_of(None),
    )
    return name


@task
def get_air_executor_results(name: str) -> dict[str, str]:
    """Show what became of the job, as a table in this task's log."""
    tasks = results(name, state_dir=state_dir_of(None)).tasks
    print(f"{'TASK':<12} {'STATUS':<10} {'EXIT CODE':<10} COMMAND")
    for each in tasks:
        print(f"{each.id:<12} {each.status.value:<10} {each.exit_code!s:<10} {each.command} {' '.join(each.args)}")
    return {each.id: each.status.value for each in tasks}


@dag(schedule=None, catchup=False, tags=["air-executor", "example"])
def air_executor_demo():
    """Create a job, wait for it, and show its results."""
    name = create_air_executor_job()
    # With manager="own" this task works on the job itself, unless a manager is there already (`air-executor start`).
    wait = AirJobOperator(task_id="wait_for_air_executor_completion", job_name=name, tasks=[], manager="own")
    wait >> get_air_executor_results(name)


air_executor_demo()
