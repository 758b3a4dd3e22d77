"""The operator's job, try after try: what is done again, what is not, and whose the job is."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.bases.operator import ExecutorSafeguard
from airflow.sdk.log import mask_secret

from air_executor.airflow.compat.places import TASK_EXCEPTIONS
from air_executor.errors import JobError
from air_executor.jobs import api
from air_executor.jobs.model import JobState
from air_executor.jobs.owner import Owner
from air_executor.operators import AirJobOperator, _with_secrets, state_dir_of
from air_executor.sensors import AirJobSensor
from air_executor.triggers import AirJobTrigger
from tests.jobs.conftest import Yard
from tests.support.contents import contents
from tests.support.waiting import wait_for

#: What Airflow raises to defer a task.
TaskDeferred: Any = importlib.import_module(TASK_EXCEPTIONS).TaskDeferred


class Instance:
    """A task instance as the operator sees it, with a job that writes lines into a file."""

    def __init__(self, yard: Yard, dag_id: str = "d", run_id: str = "r", map_index: int = -1, retries: int = 1) -> None:
        self._yard, self._retries = yard, retries
        self._ids = {"dag_id": dag_id, "task_id": "t", "run_id": run_id, "map_index": map_index}
        self.try_number, self.max_tries, self.clear_number = 1, retries, 0
        self.id = uuid.uuid4()

    def retried(self) -> None:
        self.try_number += 1
        self.id = uuid.uuid4()

    def cleared(self) -> None:
        self.max_tries = self.try_number + self._retries
        self.clear_number += 1
        self.retried()

    @property
    def context(self) -> Any:
        numbers = {"try_number": self.try_number, "max_tries": self.max_tries, "id": self.id}
        instance = SimpleNamespace(**self._ids, **numbers)
        return {"ti": instance, "dag_run": SimpleNamespace(clear_number=self.clear_number)}

    def run(self, *tasks: dict[str, Any], **options: Any) -> Any:
        values = {"state_dir": str(self._yard.state_dir), "folder": str(self._yard.folder), "manager": "own"}
        return AirJobOperator(task_id="t", tasks=tasks, **{**values, **options}).execute(self.context)

    def submit(self, name: str, *tasks: dict[str, Any]) -> None:
        """Make the job as a former process of this try has."""
        job, made, values = api.describe(name, tasks, self._yard.state_dir, folder=self._yard.folder)
        job.made_by = Owner.of(self.context).to_document()
        self._yard.store.create(job, made, values)


@pytest.fixture(autouse=True)
def _outside_of_tasks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ExecutorSafeguard, "test_mode", True)
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "airflow"))


def say(task_id: str, word: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"id": task_id, "shell": True, "command": f"echo {word or task_id} >> said", **fields}


def fail(task_id: str, **fields: Any) -> dict[str, Any]:
    return {**say(task_id, **fields), "command": f"echo {task_id} failed >> said; exit 5"}


@pytest.fixture
def said(yard: Yard) -> Callable[[], list[str]]:
    return lambda: yard.lines("said")


def test_a_cleared_success_does_all_again(yard: Yard, said: Any) -> None:
    instance = Instance(yard)
    instance.run(say("a"), say("b", dependencies=["a"]))
    instance.cleared()
    instance.run({**say("a"), "command": "echo a | tee -a said"}, say("b", "changed", dependencies=["a"]))
    assert said() == ["a", "b", "a", "changed"]
    name = Owner.of(instance.context).job_name()
    assert yard.store.open(name).job.generation == 2
    assert yard.log("a", name).startswith("-- generation 2, begun ")


def test_a_further_try_goes_on_where_the_job_was(yard: Yard, said: Any) -> None:
    instance = Instance(yard)
    with pytest.raises(JobError, match="b: it ended with exit code 5"):
        instance.run(say("a", "before"), fail("b"), say("c", dependencies=["b"]))
    instance.retried()
    # Other words in a task that has completed, as those of a template, are no reason to do it again.
    instance.run(say("a", "after"), say("b"), say("c", dependencies=["b"]))
    assert said() == ["before", "b failed", "b", "c"]
    instance.retried()  # the result of the last try got lost
    instance.run(say("a"), say("b"))
    assert said() == ["before", "b failed", "b", "c"]


def test_a_cleared_failure_does_what_has_failed_or_changed_and_what_depends_on_it(yard: Yard, said: Any) -> None:
    instance = Instance(yard)
    with pytest.raises(JobError):
        instance.run(say("a"), say("b"), say("c", dependencies=["b"]), fail("d"), fail("gone"))
    assert sorted(said()) == ["a", "b", "c", "d failed", "gone failed"]
    (yard.folder / "said").unlink()
    instance.cleared()
    instance.run(say("a"), say("b", "new"), say("c", dependencies=["b"]), say("d", "corrected"), say("added"))
    assert sorted(said()) == ["added", "c", "corrected", "new"]
    assert "gone" not in yard.tasks(Owner.of(instance.context).job_name())


def test_what_a_task_has_queued_is_kept_with_it_and_goes_when_it_is_done_again(yard: Yard, said: Any) -> None:
    instance = Instance(yard)
    name = Owner.of(instance.context).job_name()
    queue = "air-executor queue --id {} -- sh -c 'echo {} >> said'"
    command = f"PATH={Path(__import__('sys').executable).parent}:$PATH; "
    splits = {"id": "split", "shell": True, "command": command + queue.format("q", "queued")}
    with pytest.raises(JobError):
        instance.run(splits, fail("z"))
    instance.cleared()
    with pytest.raises(JobError):
        instance.run(splits, fail("z"))
    assert sorted(said()) == ["queued", "z failed", "z failed"]
    instance.cleared()
    instance.run({**splits, "command": command + queue.format("other", "changed")}, say("z"))
    assert sorted(said()) == ["changed", "queued", "z", "z failed", "z failed"]
    assert sorted(yard.tasks(name)) == ["other", "split", "z"]


def test_jobs_of_two_dags_whose_names_are_replaced_are_two(yard: Yard, said: Any) -> None:
    for dag_id in ("данные", "отчеты"):
        Instance(yard, dag_id=dag_id).run(say("a", dag_id))
    assert said() == ["данные", "отчеты"]


def test_a_constant_name_begins_anew_in_the_next_run(yard: Yard, said: Any) -> None:
    for run_id in ("one", "two"):
        Instance(yard, run_id=run_id).run(say("a", run_id), job_name="nightly")
    assert said() == ["one", "two"]


@pytest.mark.parametrize("other", [{"dag_id": "other"}, {"map_index": 1}], ids=str)
def test_a_job_of_somebody_else_is_left_alone_and_named(yard: Yard, said: Any, other: dict[str, Any]) -> None:
    Instance(yard).run(say("a"), job_name="same")
    with pytest.raises(JobError, match=r"job same is that of task 't' of dag 'd', run 'r'.*job_name"):
        Instance(yard, **other).run(say("b"), job_name="same")
    assert said() == ["a"]


def test_a_job_of_a_run_that_still_works_is_left_alone(yard: Yard) -> None:
    Instance(yard, run_id="one").submit("nightly", say("a"))
    with pytest.raises(JobError, match="run 'one', and is waiting"):
        Instance(yard, run_id="two").run(say("a"), job_name="nightly")


def test_a_job_that_no_task_has_made_is_not_taken_for_its_own(yard: Yard, said: Any) -> None:
    yard.submit(say("a"), name="mine")
    yard.finish("mine")
    with pytest.raises(JobError, match="no task of Airflow has made it"):
        Instance(yard).run(say("b"), job_name="mine")
    assert said() == ["a"]


def test_without_tasks_a_job_of_nobody_is_worked_on(yard: Yard, said: Any) -> None:
    yard.submit(say("a"), {"id": "f", "function": "os:getcwd"}, name="theirs")
    assert Instance(yard).run(job_name="theirs") == {"f": str(yard.folder)}
    assert said() == ["a"]
    assert yard.store.open("theirs").job.made_by == {}


def test_a_job_of_the_last_release_is_gone_on_with(yard: Yard, said: Any) -> None:
    instance = Instance(yard)
    name = Owner.of(instance.context).job_name()
    yard.submit(say("a"), fail("b"), name=name)
    yard.finish(name)
    instance.retried()
    instance.run(say("a"), say("b"))
    assert said() == ["a", "b failed", "b"]


def test_a_cleared_task_stops_the_job_that_still_works(yard: Yard, said: Any) -> None:
    instance = Instance(yard)
    long = {"id": "a", "shell": True, "command": "echo begun >> said; sleep 600"}
    name = Owner.of(instance.context).job_name()
    instance.submit(name, long)
    yard.start_manager()
    runner = yard.runner_of("a", name)
    wait_for(said, "the task to begin")
    instance.cleared()
    instance.run(say("a", "again"), manager="running")
    assert said() == ["begun", "again"]
    assert not runner.is_running()


def test_a_further_try_waits_for_the_job_that_still_works(yard: Yard, said: Any) -> None:
    instance = Instance(yard)
    name = Owner.of(instance.context).job_name()
    work = {"id": "a", "shell": True, "command": "echo begun >> said; while [ ! -e go ]; do sleep 0.1; done"}
    instance.submit(name, work)
    yard.start_manager()
    yard.runner_of("a", name)
    instance.retried()
    (yard.folder / "go").touch()
    instance.run(work, manager="running")
    assert said() == ["begun"]


def test_a_request_to_cancel_by_a_former_try_is_not_heeded(yard: Yard) -> None:
    former, instance = Instance(yard), Instance(yard)
    instance.submit("job", say("a"))
    yard.store.ask("job", "cancel", owner=Owner.of(former.context).to_document())
    assert yard.finish().job.state is JobState.COMPLETED


def test_a_job_that_has_ended_is_not_cancelled(yard: Yard) -> None:
    yard.submit(say("a"))
    yard.finish()
    asked = yard.store.ask("job", "cancel")
    yard.manager().serve(until=lambda: not asked.exists())
    assert yard.store.open("job").job.state is JobState.COMPLETED


def test_a_cancelled_job_stays_so_for_the_next_manager(yard: Yard, said: Any) -> None:
    yard.submit({"id": "a", "shell": True, "command": "trap '' TERM; echo begun >> said; while :; do sleep 1; done"})
    manager = yard.start_manager()
    yard.runner_of("a")
    wait_for(said, "the task to begin")
    asked = yard.store.ask("job", "cancel")
    wait_for(lambda: not asked.exists(), "the manager to heed it")
    manager.kill()
    manager.wait()
    job = yard.finish().job
    assert (job.state, job.error) == (JobState.CANCELLED, "it was cancelled")
    assert said() == ["begun"]


def test_values_of_variables_are_in_no_file_below_the_state_directory(yard: Yard, said: Any) -> None:
    instance = Instance(yard)
    tell = {"id": "a", "shell": True, "command": "echo $FIRST $SECOND >> said; exit $CODE"}
    for first, code in (("secret-1", "5"), ("secret-2", "0")):
        options = {"env": {"FIRST": first, "CODE": code}}
        if code == "5":
            with pytest.raises(JobError):
                instance.run({**tell, "env": {"SECOND": "secret-0"}}, **options)
        else:
            instance.cleared()
            instance.run({**tell, "env": {"SECOND": "secret-0"}}, **options)
    assert said() == ["secret-1 secret-0", "secret-2 secret-0"]
    assert [path for path, data in contents(yard.state_dir).items() if b"secret" in data] == []


def test_a_task_with_another_value_of_a_variable_is_another_task(yard: Yard, said: Any) -> None:
    instance = Instance(yard)

    def run(value: str) -> None:
        with pytest.raises(JobError):
            instance.run(say("a", "$V", env={"V": value}), say("b", "$V", env={"V": "same"}), fail("z"))
        instance.cleared()

    for value in ("one", "one", "two"):
        run(value)
    assert sorted(said()) == ["one", "same", "two", *["z failed"] * 3]


def test_variables_may_be_made_of_results(yard: Yard, said: Any) -> None:
    made = {"id": "made", "function": "os:getcwd"}
    Instance(yard).run(made, say("a", "$V $W", env={"V": "${tasks.made.result}", "W": "w"}))
    assert said() == [f"{yard.folder} w"]


def test_a_secret_that_would_stand_in_the_files_is_told_of() -> None:
    mask_secret("hush-hush-1")
    said = [
        list(_with_secrets([{"id": "a", **given}]))
        for given in ({"command": "echo hush-hush-1"}, {"args": ["x", "hush-hush-1"]}, {"env": {"A": "hush-hush-1"}})
    ]
    assert said == [["'command' of task a"], ["'args' of task a"], []]


def test_a_trigger_of_the_last_release_is_understood() -> None:
    old = {"job_name": "j", "state_dir": "/s"}
    assert AirJobTrigger(**old).serialize()[1] == old
    new = {**old, "owner": {"dag_id": "d"}}
    assert AirJobTrigger(**new).serialize()[1] == new


@pytest.mark.parametrize("kind", [list, tuple])
def test_the_log_tells_how_many_tasks_the_job_has(
    yard: Yard, kind: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    operator = AirJobOperator(
        task_id="t",
        tasks=kind([{"id": f"t{number}", "command": "true"} for number in range(3)]),
        state_dir=str(yard.state_dir),
        folder=str(yard.folder),
        manager="own",
    )
    log = SimpleNamespace(info=lambda text, *args: said.append(text % args), warning=print)
    monkeypatch.setattr(AirJobOperator, "log", log)
    operator.execute(Instance(yard).context)
    assert f"has 3 tasks; its files are in {yard.store.root}" in said[0]


@dataclass
class Deferred:
    """What a task has told Airflow as it deferred."""

    trigger: AirJobTrigger
    kwargs: dict[str, Any]
    timeout: Any

    @classmethod
    def by(cls, work: Callable[[], Any]) -> Deferred:
        with pytest.raises(TaskDeferred) as deferral:
            work()
        assert deferral.value.method_name == "resume"
        assert isinstance(deferral.value.trigger, AirJobTrigger)
        return cls(deferral.value.trigger, deferral.value.kwargs, deferral.value.timeout)

    def resume(self, task: Any, context: Any, event: Any) -> Any:
        """Wake the task by an event."""
        return task.resume_execution("resume", {**self.kwargs, "event": event}, context)

    def event(self) -> dict[str, Any]:
        return dict(self.trigger._event("ended").payload)


def test_the_event_of_another_trigger_with_the_same_id_ends_no_waiting(yard: Yard) -> None:
    """SQLite gives the ids of deleted triggers to new ones, and Airflow tells events by them."""
    instance, other = Instance(yard), Instance(yard, run_id="other")

    def operator() -> AirJobOperator:
        options: Any = {"state_dir": str(yard.state_dir), "folder": str(yard.folder), "deferrable": True}
        return AirJobOperator(task_id="t", tasks=[say("a")], execution_timeout=timedelta(hours=1), **options)

    yard.start_manager()
    former = Deferred.by(lambda: operator().execute(instance.context))
    stranger = Deferred.by(lambda: operator().execute(other.context))
    instance.cleared()
    mine = Deferred.by(lambda: operator().execute(instance.context))
    anybody = AirJobTrigger(job_name="anybody's", state_dir=str(yard.state_dir))._event("ended").payload
    timer = datetime.now(tz=timezone.utc)  # what Airflow's own triggers tell
    for event in (former.event(), stranger.event(), anybody, timer, {"status": "success"}, None):
        again = Deferred.by(partial(mine.resume, operator(), instance.context, event))
        assert again.trigger.serialize() == mine.trigger.serialize() and again.kwargs == mine.kwargs
        assert again.timeout < mine.timeout  # it has the rest of its time
        notes = list(Path(state_dir_of(None), "deferred").glob(f"{instance.id}.json"))
        assert len(notes) == 1, "nobody would cancel the job of a task that is cleared"
    wait_for(yard.store.open(mine.trigger.job_name).is_ended, "the job's end")
    assert mine.resume(operator(), instance.context, mine.event()) == {}


def test_a_try_that_has_taken_a_job_over_takes_its_end(yard: Yard) -> None:
    """The job still works as the next try begins, and belongs to the former one."""
    instance = Instance(yard)
    options: Any = {"state_dir": str(yard.state_dir), "folder": str(yard.folder), "deferrable": True}
    operator = AirJobOperator(task_id="t", tasks=[{"id": "a", "command": "sleep", "args": ["2"]}], **options)
    yard.start_manager()
    Deferred.by(lambda: operator.execute(instance.context))
    instance.retried()
    second = Deferred.by(lambda: operator.execute(instance.context))
    wait_for(yard.store.open(second.trigger.job_name).is_ended, "the job's end")
    assert second.resume(operator, instance.context, second.event()) == {}


def test_a_task_that_was_deferred_by_a_former_release_is_resumed(yard: Yard) -> None:
    instance = Instance(yard)
    options: Any = {"state_dir": str(yard.state_dir), "folder": str(yard.folder), "deferrable": True}
    operator = AirJobOperator(task_id="t", tasks=[say("a")], **options)
    yard.start_manager()
    deferred = Deferred.by(lambda: operator.execute(instance.context))
    wait_for(yard.store.open(deferred.trigger.job_name).is_ended, "the job's end")
    assert operator.resume_execution("resume", {"event": deferred.event()}, instance.context) == {}


def test_a_sensor_waits_for_what_it_waited_for_whatever_its_template_says_now(yard: Yard) -> None:
    def sensor(name: str) -> AirJobSensor:
        return AirJobSensor(task_id="s", job_name=name, state_dir=str(yard.state_dir), deferrable=True, timeout=3600)

    yard.submit({"id": "a", "command": "true"}, name="yesterdays")
    yard.finish("yesterdays")
    first = Deferred.by(lambda: sensor("yesterdays").execute({}))  # type: ignore[arg-type]
    other = AirJobTrigger(job_name="todays", state_dir=str(yard.state_dir))._event("ended").payload
    again = Deferred.by(lambda: first.resume(sensor("todays"), {}, other))
    assert again.trigger.serialize() == first.trigger.serialize() and again.timeout < first.timeout
    assert first.resume(sensor("todays"), {}, first.event()) == {}
