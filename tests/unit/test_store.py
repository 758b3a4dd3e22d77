"""The state directory: what is written there, who may, and what goes away."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from air_executor.errors import RecordError, RecordVersionError, StateDirError
from air_executor.machine import system
from air_executor.machine.safe_files import replace_file
from air_executor.runs.files import MAX_FILE_BYTES, StopRequest
from air_executor.runs.pruning import prune
from air_executor.runs.record import RunRecord, RunState
from air_executor.runs.records import public
from air_executor.runs.store import RunStore
from tests.support.waiting import wait_for
from tests.unit.documents import identity, kept, of_process, record
from tests.unit.processes import forked, result_of

FOLDERS = ("", "runs", "open", "locks", "gpus", "waiting", "executors", "launchers")
LIVE = [state for state in RunState if not state.is_end]
ENDS = [state for state in RunState if state.is_end]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def file_status(path: Path) -> tuple[int, int, int, int]:
    """Return what a write or a replacement changes of a file, and a read does not."""
    status = path.lstat()
    return status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode


def dead_process() -> dict[str, object]:
    """Return what a record says of a runner that is gone."""
    return result_of(of_process)


# The folders


def test_folders_are_made_for_their_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    def prepare(umask: int) -> None:
        os.umask(umask)
        RunStore(tmp_path / f"{umask}" / "state").prepare()

    for umask in (0o000, 0o022, 0o077):
        result_of(lambda umask=umask: prepare(umask))
        for name in FOLDERS:
            assert mode(tmp_path / f"{umask}" / "state" / name) == 0o700


def test_folders_that_others_may_read_are_closed(store: RunStore) -> None:
    for name in FOLDERS:
        (store.root / name).chmod(0o755)
    store.prepare()
    for name in FOLDERS:
        assert mode(store.root / name) == 0o700


def test_preparing_again_keeps_what_is_there(store: RunStore) -> None:
    one = kept(store)
    store.prepare()
    assert store.read(one.id) == one
    assert sorted(path.name for path in store.root.iterdir()) == sorted(FOLDERS[1:])
    assert [path.name for path in store.runs.iterdir()] == [one.id]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_link_in_the_place_of_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    place = tmp_path / "state" / name
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(elsewhere)
    with pytest.raises(StateDirError, match="a link is not followed"):
        RunStore(tmp_path / "state").prepare()
    assert mode(elsewhere) == 0o755, "what the link leads to is not touched"


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_somebody_else_is_refused_with_both_user_ids(tmp_path: Path, name: str) -> None:
    if os.geteuid() == 0:
        root = tmp_path / "state"
        place = root / name
        place.mkdir(parents=True)
        os.chown(place, 12345, -1)
        owner = 12345
    else:
        root, owner = Path("/"), 0
    with pytest.raises(StateDirError, match=rf"belongs to user id {owner}, not {os.geteuid()}\. Set \[air_executor\]"):
        RunStore(root).prepare()


@pytest.mark.parametrize("name", FOLDERS)
def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    place = tmp_path / "state" / name
    place.parent.mkdir(exist_ok=True)
    place.write_text("mine")
    with pytest.raises(StateDirError, match="state_dir"):
        RunStore(tmp_path / "state").prepare()
    assert place.read_text() == "mine"


# Records


def test_files_are_for_their_owner_alone_whatever_the_umask(store: RunStore) -> None:
    one = record()

    def write() -> None:
        os.umask(0)
        store.create(one)
        store.heartbeat(one.id)
        store.request_stop(one.id, "why")

    result_of(write)
    folder = store.folder(one.id)
    assert mode(folder) == 0o700
    assert {path.name: mode(path) for path in folder.iterdir()} == dict.fromkeys(
        ("state.json", "heartbeat", "stop.json"), 0o600
    )


def test_a_record_can_be_read_back_and_nothing_else_is_left_by_writing_it(store: RunStore) -> None:
    one = kept(store)
    for state in (RunState.STARTING, RunState.RUNNING, RunState.SUCCEEDED):
        one = store.write(one.advance(state))
        assert store.read(one.id) == one
        assert [path.name for path in store.folder(one.id).iterdir()] == ["state.json"]


def test_a_record_that_cannot_be_written_is_an_error_and_leaves_nothing(store: RunStore) -> None:
    one = kept(store)
    path = store.folder(one.id) / "state.json"
    path.unlink()
    path.mkdir()
    with pytest.raises(StateDirError, match="cannot write"):
        store.write(one)
    assert [path.name for path in store.folder(one.id).iterdir()] == ["state.json"]


def test_a_reader_never_sees_half_a_record(store: RunStore) -> None:
    one = kept(store, RunState.RUNNING, reason="short")

    def write_for_ever() -> None:
        parent = os.getpid()
        if not os.fork():
            while os.getppid() == parent:
                for size in (1, 200_000):
                    store.write(replace(one, reason="x" * size))
            os._exit(0)

    with forked(write_for_ever):
        seen = {len(store.read(one.id).reason or "") for _ in range(300)}
    assert seen <= {5, 1, 200_000}
    assert store.unreadable() == []


def test_a_run_cannot_be_made_twice(store: RunStore) -> None:
    one = kept(store)
    with pytest.raises(StateDirError):
        store.create(one)
    assert store.read(one.id) == one


def test_whatever_the_store_writes_it_can_read(store: RunStore) -> None:
    one = kept(store, RunState.RUNNING)
    store.write(one.advance(RunState.FAILED, reason="long: " + "x" * (2 * MAX_FILE_BYTES)))
    assert (store.read(one.id).reason or "").startswith("long: x")


@pytest.mark.parametrize("run_id", ["../x", "..", "", "x", "/"])
def test_an_id_that_is_not_a_uuid_leads_nowhere(store: RunStore, run_id: str) -> None:
    for call in (store.folder, store.read, store.output_file, store.lock, store.heartbeat, store.stop_request):
        with pytest.raises(RecordError, match="not a run or workload id"):
            call(run_id)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\0", b'{"version": 1}', b"[]"])
def test_a_record_that_cannot_be_understood_is_said_so_and_who_writes_another_sets_it_aside(
    store: RunStore, data: bytes
) -> None:
    good, bad = kept(store), kept(store)
    path = store.folder(bad.id) / "state.json"
    path.write_bytes(data)
    with pytest.raises(RecordError, match=rf"run {bad.id} can't be understood: .*state\.json"):
        store.read(bad.id)
    assert [one.id for one in store.records()] == [good.id]
    assert path.read_bytes() == data, "a reader changes nothing"
    assert store.unreadable() == [path]
    store.set_aside(bad.id)
    store.write(bad)
    aside = path.with_name("state.json.unreadable")
    assert aside.read_bytes() == data
    assert store.unreadable() == [aside]
    assert store.read(bad.id) == bad


def test_a_record_of_a_newer_version_is_left_as_it_is(store: RunStore) -> None:
    one = kept(store)
    path = store.folder(one.id) / "state.json"
    path.write_bytes(b'{"version": 2}')
    with pytest.raises(RecordVersionError, match="version is 2"):
        store.read(one.id)
    prune(store, keep_days=0, keep_runs=0)
    for state in (RunState.FAILED, RunState.LOST):
        store.write(one.advance(state))
    store.mark_reported(one.advance(RunState.FAILED))
    assert path.read_bytes() == b'{"version": 2}'
    assert store.unreadable() == []


def test_who_only_looks_at_a_run_that_is_lost_writes_nothing(store: RunStore) -> None:
    one = kept(store, RunState.RUNNING, pid=2**22 + 1, host="h", boot_id="b")
    path = store.folder(one.id) / "state.json"
    before = path.read_bytes(), file_status(path)
    assert store.settled(one).state is RunState.LOST
    assert (path.read_bytes(), file_status(path)) == before
    assert store.settle(one).state is RunState.LOST
    assert store.read(one.id).state is RunState.LOST


def test_files_are_written_under_names_that_nobody_else_can_have(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "urandom", lambda size: b"\1" * size)
    path = store.root / "file"
    taken = store.root / f".file.{'01' * 8}.tmp"
    taken.write_bytes(b"another's")
    with pytest.raises(StateDirError):
        replace_file(path, b"new")
    assert taken.read_bytes() == b"another's"
    taken.unlink()
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_record_in_the_folder_of_another_run_is_not_believed(store: RunStore) -> None:
    one, other = kept(store), kept(store)
    (store.folder(one.id) / "state.json").write_bytes(other.to_json())
    with pytest.raises(RecordError, match=f"document of run {other.id}"):
        store.read(one.id)
    assert [path.parent.name for path in store.unreadable()] == [one.id]


def test_a_link_in_the_place_of_a_record_is_not_followed(store: RunStore, tmp_path: Path) -> None:
    one = kept(store)
    path = store.folder(one.id) / "state.json"
    elsewhere = tmp_path / "elsewhere.json"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(RecordError):
        store.read(one.id)
    assert list(store.records()) == []
    before = elsewhere.read_bytes()
    store.write(one.advance(RunState.STARTING))
    assert elsewhere.read_bytes() == before, "writing replaces the link, not what it leads to"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_record_of_somebody_else_is_not_believed(store: RunStore) -> None:
    ours = record(RunState.RUNNING)
    store.create(ours)
    os.chown(store.folder(ours.id) / "state.json", 12345, 12345)
    with pytest.raises(RecordError, match="belongs to user id 12345"):
        store.read(ours.id)


def test_a_file_that_is_too_large_is_not_read(store: RunStore) -> None:
    one, good = kept(store), kept(store)
    with (store.folder(one.id) / "state.json").open("ab") as file:
        file.write(b" " * MAX_FILE_BYTES)
    with pytest.raises(RecordError, match=f"at most {MAX_FILE_BYTES} bytes"):
        store.read(one.id)
    assert [found.id for found in store.records()] == [good.id]


def test_a_pipe_in_the_place_of_a_record_stops_nobody(store: RunStore) -> None:
    one = kept(store)
    path = store.folder(one.id) / "state.json"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(RecordError, match="not a plain file"):
        store.read(one.id)


def test_a_run_that_is_not_there_is_said_so(store: RunStore) -> None:
    run_id = str(uuid.uuid4())
    with pytest.raises(RecordError, match=f"no run {run_id}"):
        store.read(run_id)


def test_a_store_that_was_never_made_has_no_runs(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "never")
    assert store.ids() == []
    assert list(store.records()) == []
    assert store.unreadable() == []


def test_a_store_that_was_never_made_has_nothing_to_prune(tmp_path: Path) -> None:
    pruned = prune(RunStore(tmp_path / "never"), keep_days=0, keep_runs=0)
    assert (pruned.removed, pruned.kept) == (0, 0)


def test_what_is_not_a_run_among_the_runs_is_passed_over(store: RunStore) -> None:
    one = kept(store)
    (store.runs / "lost+found").mkdir()
    (store.runs / "notes.txt").write_text("x")
    (store.runs / str(uuid.uuid4()).upper()).mkdir()
    assert store.ids() == [one.id]


def test_a_stop_request_is_kept_until_it_is_read(store: RunStore) -> None:
    one = kept(store)
    assert store.stop_request(one.id) is None
    store.request_stop(one.id, "because\nof this")
    assert store.stop_request(one.id) == StopRequest("because\nof this", unwanted=False)
    for data in (b"", b"{", b"[]", b"{}", b"5"):
        (store.folder(one.id) / "stop.json").write_bytes(data)
        assert store.stop_request(one.id) is None


def test_the_tail_of_the_output_is_given_whatever_is_in_it(store: RunStore) -> None:
    one = kept(store)
    assert store.output_tail(one.id) == ""
    Path(store.output_file(one.id)).write_bytes(b"x" * 5000 + b"\xff the end\n")
    tail = store.output_tail(one.id, max_bytes=10)
    assert tail.endswith(" the end")
    assert len(tail) <= 10


def test_a_record_in_public_is_its_document(store: RunStore) -> None:
    one = kept(store)
    assert public(one)["id"] == one.id
    assert public(one)["identity"]["dag_id"] == "some_dag"


# Life and death


@pytest.mark.parametrize("state", [RunState.STARTING, RunState.RUNNING])
def test_a_run_whose_runner_is_gone_becomes_lost_with_the_reason(store: RunStore, state: RunState) -> None:
    one = kept(store, state, **dead_process())
    settled = store.settle(one)
    assert settled.state is RunState.LOST
    assert settled.reason == f"the runner (pid {one.pid} on {system.host()}) is gone and left no outcome"
    assert settled.ended_at is not None
    assert store.read(one.id) == settled


def test_a_run_that_a_reboot_ended_says_so(store: RunStore) -> None:
    one = kept(store, RunState.RUNNING, **{**of_process(), "boot_id": "another boot"})
    assert store.settle(one).reason == f"{system.host()} was rebooted while the run was running"


@pytest.mark.parametrize("state", [RunState.STARTING, RunState.RUNNING])
def test_a_run_whose_runner_lives_is_left_alone(store: RunStore, state: RunState) -> None:
    who = identity()

    def hold() -> object:
        lock = store.lock(who.workload_id)
        assert lock.acquire(0)
        return lock

    with forked(hold) as pid:
        one = kept(store, state, who=who, **of_process(pid))
        assert store.has_runner(one)
        assert store.settle(one) == one
        assert store.read(one.id) == one
    assert not store.has_runner(one)
    assert store.settle(one).state is RunState.LOST


def test_a_run_leaves_nothing_in_the_interpreters_table_of_strings(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    interned: list[str] = []
    intern = sys.intern
    monkeypatch.setattr(sys, "intern", lambda text: interned.append(text) or intern(text))
    (store.runs / "shown").is_dir()
    assert interned, "pathlib interns no more: then its paths would do for runs too"
    interned.clear()
    one = kept(store)
    store.set_owner(one.id, "1.executor")
    store.heartbeat(one.id)
    assert store.has(one.id)
    assert store.owner(one.id) == "1.executor"
    assert store.last_heartbeat_s(one.id)
    assert store.last_reconciled_s(one.id) is None
    lock = store.lock(one.identity.workload_id)
    assert lock.acquire(0)
    assert store.has_runner(one)
    lock.release()
    ended = store.settle(store.write(store.read(one.id).advance(RunState.STARTING)))
    assert store.mark_reported(ended).state is RunState.LOST
    assert prune(store, keep_days=0, keep_runs=0).removed == 1
    # Parts of paths that are always the same are in it once; Python 3.13 puts them there late.
    assert set(interned) <= set((store.root / "leftovers" / "learned").parts)


def test_a_run_that_cannot_be_looked_at_counts_as_there(store: RunStore) -> None:
    one, none = kept(store), str(uuid.uuid4())
    assert store.has(one.id)
    assert not store.has(none)
    store.runs.rename(store.root / "away")
    store.runs.symlink_to("runs")  # a loop: not even root gets through
    assert store.has(none)


def test_the_lock_of_a_workload_is_found_in_every_spelling_of_its_id(store: RunStore) -> None:
    workload_id = str(uuid.uuid4())
    lock = store.lock(workload_id.upper())
    assert lock.acquire(0)
    try:
        assert store.has_runner(record(who=identity(workload_id=workload_id)))
        assert store.has_runner(record(who=identity(workload_id=workload_id.upper())))
    finally:
        lock.release()


@pytest.mark.parametrize("state", [RunState.QUEUED, *ENDS])
def test_a_run_that_has_not_begun_or_has_ended_is_left_alone(store: RunStore, state: RunState) -> None:
    one = kept(store, state)
    assert store.settle(one) == one
    assert store.read(one.id) == one


def test_an_end_that_was_written_between_two_looks_counts(store: RunStore) -> None:
    seen = kept(store, RunState.RUNNING, **dead_process())
    end = store.write(seen.advance(RunState.SUCCEEDED))
    assert store.settle(seen) == end
    assert store.read(seen.id) == end


def introduced(store: RunStore, **changes: Any) -> RunRecord:
    """Return the record of a run whose runner is the calling process."""
    one = kept(store, RunState.RUNNING, **{**of_process(), **changes})
    return store.begin(one)


@pytest.mark.parametrize("kind", ["job", "task"])
def test_a_run_that_its_runner_begins_is_seen_as_begun(store: RunStore, kind: str) -> None:
    one = kept(store, who=identity(kind=kind))
    store.begin(one.advance(RunState.STARTING, pid=os.getpid(), host=system.host(), boot_id=system.boot_id()))
    seen = store.read(one.id)
    assert (seen.state, seen.pid, seen.host) == (RunState.STARTING, os.getpid(), system.host())
    assert store.is_runner(seen)
    end = store.write(seen.advance(RunState.RUNNING).advance(RunState.SUCCEEDED))
    assert store.read(one.id) == end


def test_a_run_whose_beginning_can_not_be_noted_by_a_sign_is_written_down(store: RunStore) -> None:
    one = kept(store, who=identity(kind="job"))
    (store.folder(one.id) / "heartbeat").mkdir()
    store.begin(one.advance(RunState.STARTING))
    assert orjson.loads((store.folder(one.id) / "state.json").read_bytes())["state"] == "starting"


def test_a_lock_file_that_was_deleted_is_no_dead_runner(store: RunStore) -> None:
    one = introduced(store)
    assert store.has_runner(one)
    assert store.settle(one) == one


def test_the_runner_of_another_container_whose_lock_file_was_deleted_lives_while_it_beats(store: RunStore) -> None:
    one = introduced(store)
    path = store.folder(one.id) / "heartbeat"
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), "namespace": 5}))
    assert store.settle(one) == one
    (store.locks / one.identity.workload_id).touch()
    assert not store.has_runner(one), "its lock is there, and nobody holds it"
    (store.locks / one.identity.workload_id).unlink()
    os.utime(path, (1, 1))
    assert store.settle(one).state is RunState.LOST


@pytest.mark.parametrize("step_s", [-3600.0, 1.5, 3600.0])
def test_a_runner_is_known_by_what_no_step_of_the_clock_changes(store: RunStore, step_s: float) -> None:
    one = introduced(store, pid_started=of_process()["pid_started"] + step_s)
    assert store.is_runner(one)
    assert store.signal_runner(one, signal.SIGCONT)
    assert store.settle(one) == one


def test_a_runner_of_a_former_version_is_known_by_when_it_started(store: RunStore) -> None:
    started = of_process()["pid_started"]
    assert store.is_runner(kept(store, RunState.RUNNING, **of_process()))
    for wrong in (started - 1, started + 1):
        assert not store.is_runner(kept(store, RunState.RUNNING, **{**of_process(), "pid_started": wrong}))


@pytest.mark.parametrize("wrong", [{"ticks": 5}, {"boot_id": "another"}, {"namespace": 5}])
def test_another_process_with_the_pid_of_a_runner_is_not_taken_for_it(store: RunStore, wrong: dict[str, Any]) -> None:
    one = introduced(store)
    path = store.folder(one.id) / "heartbeat"
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), **wrong}))
    os.utime(path, (1, 1))
    assert not store.is_runner(one)
    assert not store.signal_runner(one, signal.SIGKILL)
    assert store.settle(one).state is RunState.LOST


def test_a_runner_that_only_waits_to_be_reaped_is_dead(store: RunStore) -> None:
    with forked(lambda: None) as pid:
        one = kept(store, RunState.RUNNING, **of_process(pid))
        assert store.has_runner(one)
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert not store.has_runner(one)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_who_looks_neither_kills_nor_writes(store: RunStore) -> None:
    one = kept(store, RunState.RUNNING, **dead_process())
    sleeper = subprocess.Popen(["sleep", "600"], env={"AIR_EXECUTOR_RUN": one.id})

    def give_all_to(uid: int) -> None:
        for path in (store.root, *store.root.rglob("*")):
            os.chown(path, uid, uid)

    give_all_to(12345)
    try:
        assert store.settle(one) == one
        assert store.read(one.id) == one
        assert sleeper.poll() is None
        give_all_to(0)
        assert wait_for(lambda: store.settle(one), "the owner's look").state is RunState.RUNNING
        wait_for(lambda: store.settle(one).state is RunState.LOST, "the run to be lost")
        assert sleeper.wait() == -signal.SIGKILL
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_sign_of_life_makes_the_file_and_renews_it(store: RunStore) -> None:
    one = kept(store)
    path = store.folder(one.id) / "heartbeat"
    store.heartbeat(one.id)
    os.utime(path, (1, 1))
    store.heartbeat(one.id)
    assert path.stat().st_mtime > time.time() - 1000


# Pruning


def aged(store: RunStore, days: float, state: RunState = RunState.SUCCEEDED, **changes: object) -> str:
    one = kept(store, state, **changes)
    moment = time.time() - days * 86400
    os.utime(store.folder(one.id), (moment, moment))
    return one.id


def test_runs_that_are_too_old_go_with_all_their_files(store: RunStore) -> None:
    old = aged(store, 8, delivered=True)
    young = aged(store, 6, delivered=True)
    (store.folder(old) / "output.log").write_text("x")
    os.utime(store.folder(old), (1, 1))
    pruned = prune(store, keep_days=7, keep_runs=100)
    assert (pruned.removed, pruned.kept) == (1, 1)
    assert os.listdir(store.runs) == [young]


@pytest.mark.parametrize("state", ENDS)
@pytest.mark.parametrize("told", [{"delivered": True}, {"reported_at": "2020-01-01T00:00:00+00:00"}])
def test_of_the_ended_and_told_ones_the_newest_are_kept(
    store: RunStore, state: RunState, told: dict[str, object]
) -> None:
    ids = [aged(store, days, state, **told) for days in (5, 1, 4, 2, 3)]
    pruned = prune(store, keep_days=7, keep_runs=2)
    assert (pruned.removed, pruned.kept) == (3, 2)
    assert set(store.ids()) == {ids[1], ids[3]}


def test_nothing_at_all_is_kept_when_told_so(store: RunStore) -> None:
    for days in (0, 1):
        aged(store, days, delivered=True)
    # What has ended a moment ago may still have to be seen by its executor.
    pruned = prune(store, keep_days=7, keep_runs=0)
    assert (pruned.removed, pruned.kept) == (1, 1)


@pytest.mark.parametrize("state", LIVE)
def test_a_live_run_stays_however_old(store: RunStore, state: RunState) -> None:
    one = aged(store, 1000, state)
    pruned = prune(store, keep_days=0, keep_runs=0)
    assert (pruned.removed, pruned.kept) == (0, 1)
    assert store.ids() == [one]


@pytest.mark.parametrize("state", ENDS)
def test_a_run_whose_end_was_not_told_stays_however_old(store: RunStore, state: RunState) -> None:
    one = aged(store, 1000, state)
    prune(store, keep_days=0, keep_runs=0)
    assert store.ids() == [one]
    store.mark_reported(store.read(one))
    prune(store, keep_days=0, keep_runs=0)
    assert store.ids() == []


def test_that_an_end_was_reported_stands_beside_the_record_which_stays_as_it_is(store: RunStore) -> None:
    one = kept(store, RunState.FAILED)
    path = store.folder(one.id) / "state.json"
    written = file_status(path)
    assert store.read(one.id).reported_at is None
    reported = store.mark_reported(one)
    assert reported.reported_at is not None
    assert file_status(path) == written
    again = store.read(one.id)
    assert replace(again, reported_at=reported.reported_at) == reported
    moments = [datetime.fromisoformat(text or "") for text in (again.reported_at, reported.reported_at)]
    assert abs(moments[0] - moments[1]) < timedelta(seconds=60)
    assert public(again)["reported_at"] == again.reported_at


def test_what_can_not_be_noted_as_reported_stays_open(store: RunStore) -> None:
    one = kept(store, RunState.FAILED)
    (store.folder(one.id) / "reported").symlink_to("elsewhere")
    with pytest.raises(StateDirError, match="reported"):
        store.mark_reported(one)
    assert store.open.ids() == {one.id}
    assert not (store.folder(one.id) / "elsewhere").exists()


@pytest.mark.parametrize("state", ENDS)
def test_a_run_of_a_job_may_go_once_its_job_has_its_end(store: RunStore, state: RunState) -> None:
    one = aged(store, 1000, state, who=identity(kind="job"))
    written = file_status(store.folder(one) / "state.json")
    prune(store, keep_days=0, keep_runs=0)
    assert store.ids() == [one]
    store.mark_reported(store.read(one))
    assert file_status(store.folder(one) / "state.json") == written  # the job's files say it; the record is left alone
    store.mark_open()
    assert store.open.ids() == set()
    prune(store, keep_days=0, keep_runs=0)
    assert store.ids() == []


def test_the_age_of_what_cannot_be_understood_decides(store: RunStore) -> None:
    old, young = aged(store, 0), aged(store, 0)
    for one in (old, young):
        (store.folder(one) / "state.json").write_bytes(b"?")
        with pytest.raises(RecordError):
            store.read(one)
    os.utime(store.folder(old), (1, 1))
    prune(store, keep_days=7, keep_runs=100)
    assert store.ids() == [young]


def test_a_link_among_the_runs_is_not_followed_by_pruning(store: RunStore, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    os.utime(elsewhere, (1, 1))
    (store.runs / str(uuid.uuid4())).symlink_to(elsewhere)
    prune(store, keep_days=0, keep_runs=0)
    assert (elsewhere / "precious").read_text() == "x"


def test_lock_files_of_the_dead_go_and_those_of_the_living_stay(store: RunStore) -> None:
    free, held = str(uuid.uuid4()), str(uuid.uuid4())

    def hold(workload_id: str) -> object:
        lock = store.lock(workload_id)
        assert lock.acquire(0)
        return lock

    with forked(lambda: hold(free)):
        pass  # killed: its file stays behind
    assert os.listdir(store.locks) == [free]
    with forked(lambda: hold(held)):
        prune(store, keep_days=7, keep_runs=100)
        assert os.listdir(store.locks) == [held]
        assert store.has_runner(record(who=identity(workload_id=held)))


def test_a_socket_of_a_launcher_is_left_by_pruning(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store.launchers)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("key.sock")
        prune(store, keep_days=0, keep_runs=0)
    assert os.listdir(store.launchers) == ["key.sock"]
