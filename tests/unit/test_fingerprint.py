"""Which launcher fits an executor: new tasks find the settings and the code that the executor was started with."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from air_executor.config import Config
from air_executor.launcher import fingerprint, protocol
from air_executor.launcher.address import address, all_addresses
from air_executor.launcher.client import control
from air_executor.runner.stash import stash
from air_executor.runs.record import RunState
from air_executor.runs.store import RunStore
from tests.support.airflow_env import config
from tests.support.waiting import wait_for
from tests.unit.processes import result_of
from tests.unit.test_launcher import Bench, _home, bench  # noqa: F401 (fixtures)


def test_an_environment_with_bytes_that_are_no_text_is_passed_on(
    bench: Bench,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'air_executor.runner' in ' '.join(sys.orig_argv):\n"
        f"    open({str(tmp_path / 'seen')!r}, 'ab').write(os.environb[b'NAME'] + b'.')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    keys = set()
    for value in (b"J\xf6rg", b"J\xf6rn"):
        monkeypatch.setitem(os.environb, b"NAME", value)
        backend = bench.backend()
        request = bench.start(backend, bench.waiting())
        bench.wait_for_state(backend, request, RunState.STARTING)
        keys.add(backend._launchers.address.key)
    assert len(keys) == 2
    assert (tmp_path / "seen").read_bytes() == b"J\xf6rg.J\xf6rn."


def test_what_works_inside_of_a_run_has_a_launcher_that_no_other_run_uses(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It ends with the run, as all that was started there, and nothing of another one may end with it.
    keys = set()
    for run_id in ("6f1c9b3e-0000-4000-8000-000000000001", "6f1c9b3e-0000-4000-8000-000000000002"):
        monkeypatch.setenv("AIR_EXECUTOR_RUN", run_id)
        keys.add(address(store, config(store.root)).key)
    assert len(keys) == 2


#: Another value for each option that a launcher or its runners use.
OTHERS: dict[str, Any] = {
    "state_dir": "/elsewhere",
    "launch": "fork",
    "launcher": "service",
    "api_patience_seconds": 1.5,
    "preload": ("json",),
    "launcher_idle_seconds": 1.5,
    "stop_grace_seconds": 1.5,
    "gpus": ("7",),
    "on_launcher_stop": "drain",
    "fence_seconds": 1.5,
    "renew_tokens": "off",
    "serves": "jobs",
    "memory_budget": "1GiB",
}
#: And for those of which a launcher is told while it serves, or that an executor alone uses.
TOLD: dict[str, Any] = {
    "on_shutdown": "kill",
    "keep_days": 1.5,
    "keep_runs": 3,
    "keep_jobs": 3,
    "cpu_budget": "2",
    "over_budget": "fail",
    "budget_dir": "/elsewhere",
}


def test_an_executor_gets_another_launcher_for_options_that_matter_to_it_and_for_no_others(store: RunStore) -> None:
    options = config(store.root, launch="exec")
    assert {*OTHERS, *TOLD} == set(vars(options)), "say of a new option whether it takes another launcher"
    own = address(store, options).key
    for name, value in OTHERS.items():
        assert address(store, dataclasses.replace(options, **{name: value})).key != own, name
    for name, value in TOLD.items():
        assert address(store, dataclasses.replace(options, **{name: value})).key == own, name


def _set_umask(folder: Path) -> None:
    os.umask(0o027)


def _set_directory(folder: Path) -> None:
    os.chdir(folder)


def _set_files(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))


def _set_core(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _set_priority(folder: Path) -> None:
    os.nice(3)


def _set_cpus(folder: Path) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _set_killing(folder: Path) -> None:
    Path("/proc/self/oom_score_adj").write_text("321")


def _inherited(pid: int) -> list[Any]:
    """Return what a runner has from its executor. Its limit on real-time scheduling is its own: it is its mark."""
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return [
        *(line for line in status if line.startswith(("Umask:", "Cpus_allowed:"))),
        os.readlink(f"/proc/{pid}/cwd"),
        os.getpriority(os.PRIO_PROCESS, pid),
        Path(f"/proc/{pid}/oom_score_adj").read_text(),
        *(line for line in limits if line.startswith("Max") and "realtime timeout" not in line),
    ]


@pytest.mark.parametrize(
    "change", [_set_umask, _set_directory, _set_files, _set_core, _set_priority, _set_cpus, _set_killing]
)
def test_a_runner_has_the_settings_of_the_executor_that_ordered_it_not_of_an_earlier_one(
    bench: Bench,  # noqa: F811
    tmp_path: Path,
    change: Callable[[Path], None],
) -> None:
    def runner_of_another() -> list[list[Any]]:
        change(tmp_path)
        other = bench.backend("fork", serves="jobs")
        request = bench.start(other, bench.waiting())
        runner = bench.wait_for_state(other, request, RunState.STARTING).pid
        return [_inherited(os.getpid()), _inherited(runner or 0)]

    if change is _set_cpus and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one CPU")
    backend = bench.backend("fork", serves="jobs")
    first = bench.start(backend, bench.waiting())
    bench.wait_for_state(backend, first, RunState.STARTING)
    before = _inherited(os.getpid())
    expected, found = result_of(runner_of_another)
    assert found == expected != before
    # And one that is started as the first was shares its launcher.
    assert bench.backend("fork", serves="jobs")._launchers.address == backend._launchers.address


def test_where_nothing_has_changed_the_launcher_is_the_same(bench: Bench) -> None:  # noqa: F811
    address = bench.backend("fork", serves="jobs")._launchers.address
    command = (
        "import sys; from air_executor.config import Config; from air_executor.runs.store import RunStore;"
        "from air_executor.launcher.address import address;"
        "print(address(RunStore(sys.argv[1]), Config.from_json(sys.argv[2])).key)"
    )
    options = bench.options("fork", serves="jobs").to_json()
    flags = fingerprint.interpreter_flags()
    arguments = [sys.executable, *flags, "-c", command, str(bench.store.root), options]
    done = subprocess.run(arguments, env=os.environ, capture_output=True, text=True)
    assert done.stdout.strip() == address.key, done.stderr
    receiver, sender = os.pipe()
    pid = os.posix_spawn(
        sys.executable,
        arguments,
        os.environb,
        file_actions=[(os.POSIX_SPAWN_DUP2, sender, 1)],
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # as subprocess does
    )
    os.close(sender)
    with open(receiver) as said:
        assert said.read().strip() == address.key
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize(
    "path",
    [
        "config/airflow_local_settings.py",
        "config/airflow_local_settings/__init__.py",
        "plugins/mine.py",
        "plugins/deep/er.py",
        "airflow.cfg",
    ],
)
def test_settings_of_airflow_that_come_change_or_go_get_another_launcher(bench: Bench, path: str) -> None:  # noqa: F811
    file = Path(os.environ["AIRFLOW_HOME"], path)
    keys = [bench.backend()._launchers.address.key]
    file.parent.mkdir(parents=True, exist_ok=True)
    for text in ("a = 1", "b = 22"):
        file.write_text(text)
        keys.append(bench.backend()._launchers.address.key)
    os.utime(file, (1, 1))
    keys.append(bench.backend()._launchers.address.key)
    assert len(set(keys)) == 4
    cache = file.parent / "__pycache__"
    cache.mkdir()
    (cache / "x.pyc").touch()
    assert bench.backend()._launchers.address.key == keys[-1]


def test_code_that_was_edited_in_place_gets_another_launcher_after_a_restart_of_the_executor(
    bench: Bench,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packages = tmp_path / "packages"
    (packages / "edited").mkdir(parents=True)
    for name in ("__init__.py", "inner.py", "unused.py"):
        (packages / "edited" / name).write_text("")
        os.utime(packages / "edited" / name, (1, 1))
    monkeypatch.setenv("PYTHONPATH", str(packages))

    def executor() -> tuple[int, str]:
        """Start an executor, order a run, and return the launcher's pid and how the run begins."""
        backend = bench.backend("fork", preload=("edited.inner",))
        backend.warm_up()
        status = bench_status(bench)
        backend.close()
        return status

    first = executor()
    with protocol.connect(bench.address().socket):  # without any client, it would end soon
        assert executor() == first
        (packages / "edited" / "unused.py").write_text("new = 1")
        assert executor() == first, "nobody has it in memory"
    (packages / "edited" / "inner.py").write_text("new = 1")
    second = executor()
    assert second != first
    assert second[1] == first[1], "it listens where the first did"


def test_code_that_was_imported_ahead_and_edited_in_place_is_noticed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, file = tmp_path / "noted", tmp_path / "ahead_edited.py"
    file.write_text("old = 1")
    os.utime(file, (1, 1))
    monkeypatch.syspath_prepend(tmp_path)

    def run() -> str | None:
        stash.load("ahead_edited")
        assert "ahead_edited" not in sys.modules
        fingerprint.note_code(path, stash.modules())
        assert fingerprint.changed_code(path) is None
        file.write_text("new = 1")
        return fingerprint.changed_code(path)

    assert result_of(run) == str(file)


def bench_status(bench: Bench) -> tuple[int, str]:  # noqa: F811
    address = bench.address()
    status = control.status(address)
    while status is None:
        status = control.status(address)
    return status["pid"], address.key


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages: one of them is installed."""
    folder = tmp_path / "site-packages"
    (folder / "thing").mkdir(parents=True)
    (folder / "thing" / "__init__.py").touch()
    (folder / "thing-1.0.dist-info").mkdir()
    (folder / "single.py").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder))
    return folder


def test_bytecode_that_appears_is_no_change_of_packages(site: Path) -> None:
    before = fingerprint.packages_stamp()
    for folder in (site, site / "thing"):
        (folder / "__pycache__").mkdir()
        (folder / "__pycache__" / "x.cpython-311.pyc").touch()
        os.utime(folder, (5, 5))
    assert fingerprint.packages_stamp() == before


def _install(site: Path) -> None:
    (site / "other").mkdir()


def _upgrade(site: Path) -> None:
    (site / "thing-1.0.dist-info").rename(site / "thing-1.1.dist-info")


def _install_anew(site: Path) -> None:
    (site / "thing-1.0.dist-info" / "RECORD").touch()


def _remove(site: Path) -> None:
    (site / "thing-1.0.dist-info").rmdir()


def _edit_single_file(site: Path) -> None:
    (site / "single.py").write_text("x = 1")


def _add_path(site: Path) -> None:
    (site / "dev.pth").write_text("/opt/dev")


@pytest.mark.parametrize("change", [_install, _upgrade, _install_anew, _remove, _edit_single_file, _add_path])
def test_packages_that_are_installed_upgraded_or_removed_are_a_change(
    site: Path, change: Callable[[Path], None]
) -> None:
    for path in site.rglob("*"):
        os.utime(path, (1, 1))
    before = fingerprint.packages_stamp()
    change(site)
    assert fingerprint.packages_stamp() != before


def test_the_interpreters_options_are_passed_on() -> None:
    command = "from air_executor.launcher.address import module_command; print(*module_command('x'))"
    flags = ["-X", "importtime=0", "-X", "utf8=1", "-W", "ignore::UserWarning", "-O"]
    done = subprocess.run([sys.executable, *flags, "-c", command], capture_output=True, text=True)
    said = done.stdout.strip()
    for words in ("-X utf8=1", "-Wignore::UserWarning", "-O "):
        assert words in said
    assert said.endswith("-m x") or "run_module" in said


def test_options_reach_another_process_whatever_they_are(bench: Bench) -> None:  # noqa: F811
    options = dataclasses.replace(
        bench.options(), launcher_idle_seconds=float("inf"), state_dir=os.fsdecode(b"/tmp/J\xf6rg")
    )
    assert Config.from_json(options.to_json()) == options


def test_a_launcher_of_nobody_is_removed_with_all_its_files(bench: Bench) -> None:  # noqa: F811
    backend = bench.backend("fork", serves="jobs")
    backend.warm_up()
    address, pid = bench.address(), bench.status()["pid"]
    assert address.code.exists()
    backend.close()
    psutil.Process(pid).kill()
    psutil.Process(pid).wait(60)

    def is_removed() -> bool:
        control.remove_dead_launchers(bench.store)
        return all_addresses(bench.store) == []

    wait_for(is_removed, "its last child to end, and its files to be removed")
    assert list(bench.store.launchers.iterdir()) == [address.lock]  # whoever wants one now may wait for it
    os.utime(address.lock, (time.time() - 2 * 86400,) * 2)
    control.remove_dead_launchers(bench.store)
    assert list(bench.store.launchers.iterdir()) == []
