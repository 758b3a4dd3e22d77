"""GPUs, each leased to one runner at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from air_executor.errors import LimitsError
from air_executor.machine.gpu_pool import devices, lock_name, pool
from air_executor.runner.gpus import lease
from air_executor.runs.lock import KernelLock, is_held
from air_executor.runs.store import RunStore
from tests.support.waiting import wait_for
from tests.unit.processes import forked, reap, result_of

POOL = ("0", "1", "2")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "as before")


def held(store: RunStore) -> set[str]:
    return {gpu for gpu in POOL if is_held(store.gpus / gpu)}


def names(leases: list[KernelLock]) -> list[str]:
    return [lock.path.name for lock in leases]


def test_a_lease_is_of_as_many_as_wanted_and_cuda_sees_only_them(store: RunStore) -> None:
    leases = lease(store, POOL, 2)
    assert names(leases) == ["0", "1"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert held(store) == {"0", "1"}
    for one in leases:
        one.release()
    assert held(store) == set()


def test_no_two_processes_have_the_same_gpu(store: RunStore) -> None:
    def take() -> list[Any]:
        leases = lease(store, POOL, 1)
        (store.root / f"seen-{leases[0].path.name}").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
        return leases

    with forked(take), forked(take), forked(take):
        assert held(store) == set(POOL)
        seen = sorted(path.read_text() for path in store.root.glob("seen-*"))
        assert seen == list(POOL)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "as before"


def test_the_gpus_of_a_process_that_is_killed_are_free(store: RunStore) -> None:
    with forked(lambda: lease(store, POOL, 3)):
        assert held(store) == set(POOL)
    assert held(store) == set()
    assert result_of(lambda: names(lease(store, POOL, 3))) == list(POOL)


def test_names_of_gpus_are_given_to_cuda_as_they_are(store: RunStore) -> None:
    def take() -> str:
        lease(store, ("GPU-8f6e", "MIG_1"), 2)
        return os.environ["CUDA_VISIBLE_DEVICES"]

    assert result_of(take) == "GPU-8f6e,MIG_1"


def waiting(store: RunStore, count: int, note: Path) -> int:
    """Return a forked child that leases ``count`` GPUs, then writes which to ``note``."""
    pid = os.fork()
    if pid:
        return pid
    try:
        leases = lease(store, POOL, count)
        part = note.with_suffix(".part")
        part.write_text(",".join(names(leases)))
        part.rename(note)
        while True:
            os.read(os.pipe()[0], 1)
    finally:
        os._exit(1)


def test_whoever_waits_keeps_none_until_all_are_there(store: RunStore, tmp_path: Path) -> None:
    note, other_note = tmp_path / "note", tmp_path / "other"
    holder = KernelLock(store.gpus / "1")
    assert holder.acquire(0)
    waiter = waiting(store, 3, note)
    other = 0
    try:
        # One that needs fewer gets by, which it could not if the first kept what it finds.
        other = waiting(store, 2, other_note)
        wait_for(other_note.exists, "the one that needs fewer")
        assert other_note.read_text() == "0,2"
        assert not note.exists()
        reap(other)
        holder.release()
        wait_for(note.exists, "the one that needs all")
        assert note.read_text() == "0,1,2"
        assert held(store) == set(POOL)
    finally:
        reap(waiter)
        if other:
            reap(other)
        holder.release()


def test_whoever_waits_gets_the_gpu_when_its_holder_is_killed(store: RunStore, tmp_path: Path) -> None:
    note = tmp_path / "note"
    with forked(lambda: lease(store, POOL, 3)):
        waiter = waiting(store, 1, note)
        assert not note.exists()
    try:
        wait_for(note.exists, "the lease")
        assert note.read_text() in POOL
    finally:
        reap(waiter)


@pytest.mark.parametrize(("pool", "count"), [((), 1), (("0",), 2), (POOL, 4)])
def test_more_than_there_are_is_refused_and_nothing_is_taken(
    store: RunStore, pool: tuple[str, ...], count: int
) -> None:
    with pytest.raises(LimitsError, match=rf"\['gpus'\] = {count} can not be applied: .* offers {len(pool)}\."):
        lease(store, pool, count)
    assert held(store) == set()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "as before"


# Which there are


@pytest.mark.parametrize(
    ("text", "there", "visible", "expected"),
    [
        ("auto", [], None, ()),
        ("auto", [0, 1], None, ("0", "1")),
        ("auto", [2], None, ("0@2",)),  # in a container
        ("auto", [1, 3, 10], None, ("0@1", "1@3", "2@10")),
        (" auto ", [0, 1, 2], "1", ("1",)),
        ("auto", [4, 5, 6], "2,0", ("2@6", "0@4")),
        ("auto", [0, 1], "", ()),
        ("auto", [0, 1], "-1", ()),
        ("auto", [0, 1], "NoDevFiles", ()),
        ("auto", [0, 1], "void", ()),
        ("auto", [0, 1, 2], "0,-1,1", ("0",)),  # CUDA reads up to what it can't use
        ("auto", [0, 1], "1,7,0", ("1",)),
        ("auto", [0, 1], " 1 , 0 ", ("1", "0")),
        ("auto", [0, 1], "1,1", ("1",)),
        ("auto", [0, 1], "GPU-8f6e,MIG-1a", ("GPU-8f6e", "MIG-1a")),
        ("auto", [], "0", ("0",)),  # no such files there, as on WSL
        ("0,1", [0, 1], "1", ("1",)),
        ("0,1", [2, 3], None, ("0@2", "1@3")),
        ("0,1", [], None, ("0", "1")),
        ("5", [0, 1], None, ("5",)),
        ("0,1", [0, 1], "", ()),
        ("0,GPU-b", [0, 1], "0", ("0", "GPU-b")),  # what GPU-b is, nobody knows
        ("GPU-8f6e0c5a,GPU-11", [0, 1], "GPU-8f6e", ("GPU-8f6e0c5a",)),
        ("MIG-1,GPU-2", [], "MIG-1,GPU-2", ("MIG-1", "GPU-2")),
    ],
)
def test_gpus_are_named_as_cuda_names_them_and_only_visible_ones_are_offered(
    text: str, there: list[int], visible: str | None, expected: tuple[str, ...]
) -> None:
    assert pool(text, there, visible) == expected


def test_the_devices_of_a_folder_are_those_of_gpus(tmp_path: Path) -> None:
    for name in ("nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm", "nvidia-caps", "sda1", "xnvidia1", "nvidia1p"):
        (tmp_path / name).touch()
    assert devices(str(tmp_path)) == [2, 10]


def test_two_containers_lease_a_device_once_whatever_they_call_it(store: RunStore) -> None:
    machine, container = pool("auto", [0, 1, 2], None), pool("auto", [2], None)

    def see() -> list[str]:
        leases = lease(store, container, 1)
        return [os.environ["CUDA_VISIBLE_DEVICES"], os.environ["CUDA_DEVICE_ORDER"], *names(leases)]

    assert result_of(see) == ["0", "PCI_BUS_ID", "2"]
    with forked(lambda: lease(store, container, 1)):
        assert result_of(lambda: names(lease(store, machine, 2))) == ["0", "1"]
        assert held(store) == {"2"}


def test_names_of_parts_of_gpus_are_no_paths() -> None:
    [part] = pool("auto", [0], "MIG-GPU-8f6e0c5a/1/0")
    assert part == "MIG-GPU-8f6e0c5a/1/0"
    assert lock_name(part) == "MIG-GPU-8f6e0c5a_1_0"


def test_an_order_of_devices_that_somebody_chose_stays(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert result_of(lambda: [bool(lease(store, POOL, 1)), os.environ["CUDA_DEVICE_ORDER"]]) == [True, "FASTEST_FIRST"]
