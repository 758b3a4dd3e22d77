"""What a launcher imports ahead, and what it leaves to the tasks."""

from __future__ import annotations

import itertools
import os
import socket
import sys
import sysconfig
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from air_executor.launcher import preload, protocol, server
from air_executor.launcher.address import Address
from air_executor.launcher.exec import Spawn
from air_executor.launcher.preload import Preloader, Verdict, read_verdicts
from air_executor.runner.imports import new_packaged_modules
from air_executor.runs.backend import RunRequest
from air_executor.runs.store import RunStore
from tests.support.airflow_env import config
from tests.unit.documents import identity, record

SLOW = "import time; time.sleep(0.03)\n"

#: Packages that are installed for these tests, with what they do when they are imported.
PACKAGES = {
    "ahead_slow/__init__.py": SLOW + "from . import inner\n",
    "ahead_slow/inner.py": "",
    "ahead_slow/later.py": "",
    "ahead_cheap.py": "",
    "ahead_threads.py": SLOW
    + "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
    "ahead_sockets.py": SLOW + "import socket; kept = socket.socket()",
    "ahead_fails.py": SLOW + "raise RuntimeError('not today')",
    "ahead_dies.py": "import os; os._exit(0)",
}


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages."""
    folder = tmp_path / "site-packages"
    for name, text in PACKAGES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    paths = {"purelib": str(folder), "platlib": str(folder)}
    monkeypatch.setattr(sysconfig, "get_path", lambda name: paths[name])
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(preload, "freeze", lambda: None)  # for the sake of the other tests
    yield folder
    for name in [name for name in sys.modules if name.startswith("ahead_")]:
        del sys.modules[name]


def seen_in_a_task(store: RunStore, *names: str) -> str:
    """Return the id of a run whose task has imported ``names``."""
    run = record()
    store.create(run)
    store.write_imports(run.id, list(names))
    return run.id


def learn(preloader: Preloader, store: RunStore, *names: str) -> None:
    for _ in range(2):
        preloader.take_note(seen_in_a_task(store, *names))
    while (package := preloader.candidate()) is not None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            pid = os.fork()
            if not pid:
                preloader.try_here(package, theirs)
            theirs.close()
            preloader.judge(package, ours.recv(1 << 16))
            os.waitpid(pid, 0)


def test_new_modules_of_installed_packages_are_noted_in_the_process_of_a_task(packages: Path, tmp_path: Path) -> None:
    (tmp_path / "ahead_of_the_user.py").write_text("import ahead_slow")
    known = len(sys.modules)
    sys.path.insert(0, str(tmp_path))
    try:
        __import__("ahead_of_the_user")
    finally:
        sys.path.remove(str(tmp_path))
    assert set(new_packaged_modules(known)) == {"ahead_slow", "ahead_slow.inner"}
    assert new_packaged_modules(len(sys.modules)) == []


def test_what_takes_time_and_does_no_harm_is_imported_ahead_and_remembered(store: RunStore, packages: Path) -> None:
    preloader = Preloader(store)
    assert not preloader.has_imported
    learn(preloader, store, "ahead_slow.inner", "ahead_slow.later", "ahead_slow")
    assert {"ahead_slow", "ahead_slow.inner", "ahead_slow.later"} <= set(sys.modules)
    assert preloader.has_imported
    [verdict] = read_verdicts(store)
    assert (verdict.package, verdict.refused) == ("ahead_slow", None)
    assert verdict.modules == ["ahead_slow", "ahead_slow.later"]
    assert verdict.seconds >= 0.03

    for name in verdict.modules:
        del sys.modules[name]
    Preloader(store).import_remembered()
    assert set(verdict.modules) <= set(sys.modules)


def test_what_only_one_task_has_imported_is_left_alone(store: RunStore, packages: Path) -> None:
    preloader = Preloader(store)
    preloader.take_note(seen_in_a_task(store, "ahead_slow"))
    assert preloader.candidate() is None


@pytest.mark.parametrize(
    ("package", "why"),
    [
        ("ahead_cheap", "takes no time"),
        ("ahead_threads", "starts threads"),
        ("ahead_sockets", "opens socket:"),
        ("ahead_fails", "cannot be imported: RuntimeError: not today"),
        ("ahead_dies", "its import ends or blocks the process"),
        ("ahead_is_not_there", "ModuleNotFoundError"),
    ],
)
def test_what_is_of_no_use_or_does_not_survive_a_fork_is_left_to_the_tasks(
    store: RunStore, packages: Path, monkeypatch: pytest.MonkeyPatch, package: str, why: str
) -> None:
    if package == "ahead_cheap":  # however busy the machine is
        monkeypatch.setattr(preload, "_PAYS_S", 60.0)
    preloader = Preloader(store)
    learn(preloader, store, package)
    assert package not in sys.modules
    assert not preloader.has_imported
    [verdict] = read_verdicts(store)
    assert why in (verdict.refused or "")
    assert verdict.is_cheap is (package == "ahead_cheap")
    again = Preloader(store)
    again.take_note(seen_in_a_task(store, package))
    again.take_note(seen_in_a_task(store, package))
    assert again.candidate() is None


def test_other_installed_packages_are_tried_anew(store: RunStore, packages: Path) -> None:
    learn(Preloader(store), store, "ahead_fails")
    (packages / "ahead_fails.py").write_text(SLOW)
    os.utime(packages, (1, 1))  # an upgrade
    preloader = Preloader(store)
    learn(preloader, store, "ahead_fails")
    assert "ahead_fails" in sys.modules


def test_what_is_excluded_is_never_imported_ahead(store: RunStore, packages: Path) -> None:
    learn(Preloader(store), store, "ahead_slow")
    for name in [name for name in sys.modules if name.startswith("ahead_")]:
        del sys.modules[name]
    preloader = Preloader(store, ["ahead_slow"])
    preloader.import_remembered()
    learn(preloader, store, "ahead_slow", "ahead_slow.inner")
    assert "ahead_slow" not in sys.modules


@pytest.mark.parametrize("content", [b"{", b"{}", b"[1, null]", b'[{"package": 1}]', b'["../x", "a b", "os; x"]'])
def test_documents_that_make_no_sense_are_passed_over(store: RunStore, content: bytes) -> None:
    (store.root / "preload.json").write_bytes(content)
    run = record()
    store.create(run)
    (store.folder(run.id) / "imports.json").write_bytes(content)
    preloader = Preloader(store)
    preloader.import_remembered()
    for _ in range(3):
        preloader.take_note(run.id)
    assert preloader.candidate() is None
    assert read_verdicts(store) == []


def test_a_task_with_variables_of_its_own_finds_nothing_imported_ahead(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    executed: list[str] = []
    pids = itertools.count(1)

    def spawn_by_exec(*_: Any) -> Spawn:
        def spawn(request: RunRequest) -> int:
            executed.append(request.id)
            return next(pids)

        return spawn

    monkeypatch.setattr(server, "spawn_by_exec", spawn_by_exec)
    spare = SimpleNamespace(become_runner=lambda _: next(pids))
    monkeypatch.setattr(server.Launcher, "_fork_ahead", lambda _: spare)
    preloader = Preloader(store)
    address = Address("by-hand", store.launchers)
    with protocol.listen(address.socket) as listener:
        launcher = server.Launcher(store, config(store.root), address, listener, preloader=preloader)
        for has_imported, air, is_executed in [
            (False, {"environment": {"A": "b"}}, True),
            (True, {"environment": {"A=": "can't be used"}}, False),
            (True, {"memory": "1GiB"}, False),
            (True, None, False),
            (True, {"environment": {"A": "b"}}, True),
        ]:
            preloader.has_imported = has_imported
            request = RunRequest(id=str(uuid.uuid4()), identity=identity(), workload={}, air=air)
            launcher._fork(request)
            assert (request.id in executed) is is_executed


def test_a_verdict_without_a_reason_is_not_cheap() -> None:
    assert not Verdict("p", ["p"], 1.0, None, "").is_cheap
