"""Tasks that wait for GPUs: in the executor, not in a slot."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jwt
import pytest
from airflow.utils.state import TaskInstanceState

from air_executor import AirExecutor
from air_executor.airflow import compat
from air_executor.airflow.admission import WAITS_EVENT, Admission
from air_executor.airflow.gpu_queue import GpuQueue
from air_executor.airflow.reconcile import Outcome, Unwanted
from air_executor.launcher.client.backend import LocalBackend
from air_executor.observe import query as observe
from air_executor.runs.lock import KernelLock
from air_executor.runs.record import RunState
from air_executor.runs.store import RunStore
from tests.support.airflow_env import config
from tests.unit.documents import kept
from tests.unit.test_compat import task_workload
from tests.unit.test_executor import executor, silent_server, wait_until  # noqa: F401
from tests.unit.test_executor import store as store_of

POOL = ("0", "1")


def task(gpus: Any = 1, **changes: Any) -> Any:
    return task_workload(executor_config={"air": {"gpus": gpus}}, **changes)


@pytest.fixture
def line(store: RunStore) -> Iterator[GpuQueue]:
    with queue_of(store, "1.test") as queue:
        yield queue


@contextmanager
def queue_of(store: RunStore, owner: str) -> Iterator[GpuQueue]:
    """The queue of an executor."""
    backend, queue = LocalBackend(config(store.root, gpus=POOL)), GpuQueue()
    assert backend.open(owner)
    queue.open(backend)
    yield queue
    queue.close()
    backend.close()


def take(line: GpuQueue, *names: str, slots: int = 99) -> list[str]:
    ready = [key for key, _ in line.ready(slots)]
    assert not names or ready == list(names)
    return ready


# The line


def test_who_fits_goes_at_once_and_the_next_when_a_gpu_is_free(line: GpuQueue, store: RunStore) -> None:
    busy = KernelLock(store.gpus / "0")
    assert busy.acquire(0)
    for name in ("first", "second", "third"):
        assert line.takes(name, task())
    assert take(line) == ["first"]
    line.promise(kept(store).id, 1, "ti")  # its runner is not there yet
    assert take(line) == []
    busy.release()
    assert take(line) == ["second"]
    assert "third" in line


def test_urgent_ones_come_first_and_then_who_came_first(line: GpuQueue, store: RunStore) -> None:
    line.takes("early", task())
    line.takes("late", task())
    line.takes("urgent", task(priority_weight=5))
    line.takes("most urgent", task(priority_weight=7))
    assert take(line) == ["most urgent", "urgent"]


def test_nobody_gets_past_one_that_needs_more_than_is_free(line: GpuQueue, store: RunStore) -> None:
    busy = KernelLock(store.gpus / "1")
    assert busy.acquire(0)
    line.takes("both", task(2))
    line.takes("one", task())
    assert take(line) == []
    busy.release()
    assert take(line) == ["both"]


def test_without_slots_nobody_goes(line: GpuQueue) -> None:
    line.takes("one", task())
    line.takes("two", task())
    assert take(line, slots=0) == []
    assert take(line, slots=1) == ["one"]


@pytest.mark.parametrize(
    ("state", "gpus", "is_promised"),
    [
        (RunState.QUEUED, None, True),
        (RunState.STARTING, None, True),
        (RunState.STARTING, ["0"], False),
        (RunState.RUNNING, None, False),
        (RunState.FAILED, None, False),
    ],
)
def test_a_gpu_is_promised_until_its_runner_holds_it(
    line: GpuQueue, store: RunStore, state: RunState, gpus: list[str] | None, is_promised: bool
) -> None:
    line.promise(kept(store, state, gpus=gpus).id, 2, "ti")
    line.takes("one", task())
    assert take(line) == ([] if is_promised else ["one"])


def test_executors_of_one_machine_take_turns(line: GpuQueue, store: RunStore) -> None:
    with queue_of(store, "2.test") as other:
        run = kept(store)
        line.takes("one", task(2))
        assert take(line) == ["one"]
        line.promise(run.id, 2, "ti")
        other.takes("two", task(2))
        assert take(other) == []
        store.write(dataclasses.replace(run.advance(RunState.STARTING), gpus=["0", "1"]))
        assert take(line) == []
        assert take(other) == ["two"]


@pytest.mark.parametrize(
    "air", [None, {}, {"memory": 1}, {"gpus": 3}, {"gpus": "x"}, {"gpus": 1, "x": 1}, "x", {"gpus": 0}]
)
def test_what_needs_none_or_cannot_have_them_does_not_wait(line: GpuQueue, air: Any) -> None:
    assert not line.takes("key", task_workload(executor_config={"air": air}))
    assert not line.takes("key", task_workload(executor_config=None))
    assert len(line) == 0


def test_what_waits_is_shown_while_its_executor_lives(store: RunStore) -> None:
    blocker = KernelLock(store.gpus / "0")
    assert blocker.acquire(0)
    with queue_of(store, "1.test") as line:
        line.takes("one", task(2))
        line.takes("two", task())
        line.ready(99)
        assert [(each["name"], each["gpus"], each["of"]) for each in observe.waiting_for_gpus(store)] == [
            ("d.t", 2, 2),
            ("d.t", 1, 2),
        ]
        left = (store.waiting / "1.test.json").read_bytes()
    (store.waiting / "1.test.json").write_bytes(left)  # as one that was killed leaves it
    assert observe.waiting_for_gpus(store) == []


# In the executor


@pytest.fixture(autouse=True)
def _one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__GPUS", "0")


def queue(executor: AirExecutor, workload: Any) -> Any:  # noqa: F811
    executor.queue_workload(workload, session=None)  # type: ignore[arg-type]
    return workload.ti.key


def run_of(executor: AirExecutor, key: Any) -> Any:  # noqa: F811
    [run_id] = executor._work.runs.ids_of(key)
    return store_of(executor).read(run_id)


def test_one_that_waits_keeps_no_slot_and_begins_when_the_gpu_is_free(executor: AirExecutor) -> None:  # noqa: F811
    tasks = [task(task_id=f"t{number}") for number in range(3)]
    first, second, third = (queue(executor, each) for each in tasks)
    executor.heartbeat()
    assert executor.running == {first, second, third}
    assert (executor.slots_available, executor.slots_occupied) == (3, 1)
    assert executor._work.runs.ids_of(second) == []
    wait_until(executor, lambda: run_of(executor, first).gpus == ["0"], "the first to have the GPU")
    cpu = [queue(executor, task_workload(executor_config=None, task_id=f"cpu{number}")) for number in range(3)]
    executor.heartbeat()
    assert all(executor._work.runs.ids_of(key) for key in cpu)
    assert executor.slots_available == 0
    executor.revoke_task(ti=SimpleNamespace(id=tasks[0].ti.id, key=first))  # type: ignore[arg-type]
    wait_until(executor, lambda: executor._work.runs.ids_of(second), "the second to begin")
    assert executor._work.runs.ids_of(third) == []
    wait_until(executor, lambda: run_of(executor, second).gpus == ["0"], "the second to have the GPU")


def test_its_token_is_new_when_it_begins(executor: AirExecutor, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    sent = []
    monkeypatch.setattr(compat, "dump_workload", lambda workload: sent.append(workload.token) or {})  # type: ignore[func-returns-value]
    workload = task()
    queue(executor, workload)
    executor.heartbeat()
    [token] = sent
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["sub"] == str(workload.ti.id)
    assert claims["exp"] > time.time()


def test_more_gpus_than_there_are_fail_the_task_at_once(executor: AirExecutor) -> None:  # noqa: F811
    blocker = KernelLock(store_of(executor).gpus / "0")
    assert blocker.acquire(0)
    key = queue(executor, task(2))
    executor.heartbeat()
    wait_until(executor, lambda: key in executor.event_buffer, "its end")
    state, reason = executor.event_buffer[key]
    assert state == TaskInstanceState.FAILED
    assert "['gpus'] = 2 can not be applied: [air_executor] gpus offers 1." in str(reason)
    blocker.release()


def test_one_that_waits_can_be_revoked_given_up_or_left_to_the_next_executor(executor: AirExecutor) -> None:  # noqa: F811
    blocker = KernelLock(store_of(executor).gpus / "0")
    assert blocker.acquire(0)
    tasks = [task(task_id=f"t{number}") for number in range(3)]
    revoked, given_up, left = (queue(executor, each) for each in tasks)
    executor.heartbeat()
    assert set(executor._work.gpu_queue.keys()) == {revoked, given_up, left}
    assert sorted(executor._work.gpu_queue.instances()) == sorted(str(each.ti.id) for each in tasks)

    executor.revoke_task(ti=SimpleNamespace(id=tasks[0].ti.id, key=revoked))  # type: ignore[arg-type]
    executor._passes.act_on(Outcome(set(), [Unwanted(str(tasks[1].ti.id), "its task instance was deleted")], set()))
    assert executor.running == {left}
    assert executor._work.gpu_queue.keys() == {left}

    offered = SimpleNamespace(id=tasks[2].ti.id, key=left, external_executor_id=None, state="queued")
    assert executor.try_adopt_task_instances([offered]) == []  # type: ignore[list-item]
    assert left not in executor.queued_tasks

    executor.terminate()
    assert executor.running == set()
    assert left not in executor.event_buffer
    executor.sync()
    blocker.release()
    executor.sync()
    assert len(executor._work.runs) == 0


# Room


def test_only_what_the_scheduler_is_about_to_queue_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("airflow.jobs.scheduler_job_runner")
    executors = {name: SimpleNamespace(name=name) for name in ("air", "full")}

    class Runner:
        def _try_to_load_executor(self, name: str, **_: Any) -> Any:
            return executors.get(name)

        def _executable_task_instances_to_queued(self, task_instances: list[Any]) -> list[Any]:
            executor_slots_available = {"air": 9, "full": 0}
            queued = []
            for task_instance in task_instances:
                found = self._try_to_load_executor(task_instance.executor, session=None)
                if found and executor_slots_available[found.name] > 0:
                    queued.append(task_instance)
            return queued

        def _executor_to_workloads(self, *workloads: Any) -> list[Any]:
            return [workload for workload in workloads if self._try_to_load_executor(workload.executor)]

    module.SchedulerJobRunner = Runner
    monkeypatch.setitem(sys.modules, module.__name__, module)
    asked: list[Any] = []

    def admits(asked_of: Any, ti: Any) -> bool:
        asked.append((asked_of.name, ti.name))
        return bool(ti.name != "large")

    compat.use_admission(admits)
    compat.use_admission(admits)  # as by the executor of another team
    small, large, other, late = (
        SimpleNamespace(name=name, executor=of)
        for name, of in (("small", "air"), ("large", "air"), ("other", "unknown"), ("late", "full"))
    )
    scheduler: Any = Runner()
    assert scheduler._executable_task_instances_to_queued([small, large, other, late]) == [small]
    assert asked == [("air", "small"), ("air", "large")]
    assert scheduler._executor_to_workloads(small, large) == [small, large]
    assert len(asked) == 2


def roomy(store: RunStore, executor: AirExecutor, tmp_path: Path, **options: Any) -> Admission:  # noqa: F811
    backend = LocalBackend(config(store.root, memory_budget="1000MiB", budget_dir=str(tmp_path / "ledger"), **options))
    assert backend.open("1.test")
    executor._work.backend = backend
    return Admission(executor._work)


def instance(name: str, air: Any) -> Any:
    made = task_workload(executor_config={"air": air}).ti
    return SimpleNamespace(**{**vars(made), "task_id": name, "key": made.key, "executor_config": {"air": air}})


def test_a_task_without_room_is_told_of_once_and_its_room_is_given_back(
    store: RunStore,
    tmp_path: Path,
    executor: AirExecutor,  # noqa: F811
) -> None:
    admission = roomy(store, executor, tmp_path)
    first, second = (instance(name, {"memory": "600MiB"}) for name in ("first", "second"))
    assert admission.admits(first)
    assert not admission.admits(second) and not admission.admits(second)
    told = [entry.extra for entry in executor._task_event_logs if entry.event == WAITS_EVENT]
    assert told == ["it needs 600 MiB of memory; 400 MiB of 1000 MiB are free"]
    executor.queued_tasks[first.key] = first
    admission.tidy()
    assert not admission.admits(second)
    del executor.queued_tasks[first.key]  # it was not queued after all, or can't be ordered
    admission.tidy()
    assert admission.admits(second)
    # What is wrong with its limits, its runner says.
    assert admission.admits(instance("wrong", {"memory": "much"})) and admission.admits(instance("odd", "odd"))
    executor._work.backend.close()


def test_a_task_is_admitted_if_that_cannot_be_told(
    store: RunStore,
    tmp_path: Path,
    executor: AirExecutor,  # noqa: F811
) -> None:
    admission = roomy(store, executor, tmp_path)
    assert admission.admits(instance("first", {"memory": "600MiB"}))
    shutil.rmtree(tmp_path / "ledger")
    assert admission.admits(instance("second", {"memory": "600MiB"}))
    assert admission.admits(SimpleNamespace(id="no task instance"))
    executor._work.backend.close()


def test_a_task_that_has_waited_for_gpus_needs_room_as_well(
    store: RunStore,
    tmp_path: Path,
    executor: AirExecutor,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    admission = roomy(store, executor, tmp_path, gpus=POOL)
    work = executor._work
    work.gpu_queue.open(work.backend)
    ordered: list[str] = []
    monkeypatch.setattr(work.backend, "order", lambda request, record: ordered.append(request.identity.workload_id))
    first = instance("first", {"memory": "600MiB"})
    workload = task_workload(executor_config={"air": {"gpus": 1, "memory": "600MiB"}})
    assert admission.admits(first)
    executor.queued_tasks[first.key] = first
    assert work.gpu_queue.takes(workload.ti.key, workload)
    executor._orders.order_waiting()
    assert ordered == [] and workload.ti.key in work.gpu_queue
    work.backend.room.release(str(first.id))
    executor._orders.order_waiting()
    assert ordered == [str(workload.ti.id)] and workload.ti.key not in work.gpu_queue
    work.runs.clear()  # no runner was told
    work.backend.close()
