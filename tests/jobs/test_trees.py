"""Nothing of a try that died lives beside the next one, whatever tree of processes the task has made of itself."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from air_executor.jobs.model import JobState
from tests.jobs.conftest import Yard
from tests.support.waiting import wait_for
from tests.unit.processes import is_alive

#: Makes processes below processes. Each notes its pid; the last one says that the tree stands. In a later run of the
#: same task the first process notes which of those before it still live, and ends.
TREE = """
import multiprocessing, os, signal, subprocess, sys, time
name, run, kind, depth = *sys.argv[1:4], int(sys.argv[4])

def note(file, line):
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, (line + "\\n").encode())
    os.close(fd)

def lives(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False

def wait():
    while True:
        time.sleep(600)

if "root" in sys.argv:
    pids = [line.split() for line in open("pids-" + name)] if os.path.exists("pids-" + name) else []
    if pids:
        note("again", name)
        for before, pid in pids:
            if before != run and lives(pid):
                note("beside", f"{name} {pid}")
        sys.exit()
if kind == "deaf":
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)
note("pids-" + name, f"{run} {os.getpid()}")
if not depth:
    note("grown", name)
    wait()
below = [sys.executable, "-S", os.path.abspath(__file__), name, run, kind, str(depth - 1)]
if kind == "shells":
    subprocess.Popen(["bash", "-c", '"$@"; true', "bash", *below])
elif kind in ("sessions", "deaf"):
    subprocess.Popen(below, start_new_session=True)
elif kind == "nohup":
    subprocess.run(["bash", "-c", 'nohup "$@" > nohup.out 2>&1 &', "bash", *below])
elif kind == "strangers":
    subprocess.run(["env", "-i", "setsid", "sh", "-c", '"$@" &', "sh", *below])
elif kind == "daemons":
    if not os.fork():
        os.setsid()
        if not os.fork():
            os.chdir("/")
            os.chdir(os.path.dirname(below[2]))
            os.execv(below[0], below)
        os._exit(0)
    os.wait()
elif kind == "forks":
    def child():
        os.setsid()
        note("pids-" + name, f"{run} {os.getpid()}")
        note("grown", name)
        wait()
    multiprocessing.get_context("fork").Process(target=child).start()
wait()
"""

KINDS = {"shells": 10, "sessions": 3, "deaf": 2, "nohup": 2, "daemons": 3, "forks": 1}


def tree(kind: str, depth: int, name: str | None = None) -> dict[str, Any]:
    name = name or kind
    command = f"{sys.executable} -S tree.py {name} $AIR_EXECUTOR_RUN {kind} {depth} root; true"
    return {"id": name, "command": command, "shell": True}


def pids(yard: Yard, name: str) -> list[int]:
    return [int(line.split()[1]) for line in yard.lines(f"pids-{name}")]


@pytest.fixture(autouse=True)
def _tree(yard: Yard) -> None:
    (yard.folder / "tree.py").write_text(TREE)


def grow(yard: Yard, *tasks: dict[str, Any]) -> None:
    """Have trees that stand, and one more that nobody harms."""
    yard.submit(*tasks, tree("shells", 2, "bystander"), max_runners=len(tasks) + 1)
    yard.start_manager()
    names = [task["id"] for task in (*tasks, {"id": "bystander"})]
    wait_for(lambda: sorted(yard.lines("grown")) == sorted(names), "the trees to stand")


def each_was_alone(yard: Yard, names: list[str]) -> None:
    """Make sure that each second run found nothing of the first, and that the bystander is as it was."""
    wait_for(lambda: sorted(yard.lines("again")) == sorted(names), "each to run again")
    assert yard.lines("beside") == []
    for name in names:
        assert not any(map(is_alive, pids(yard, name)))
    assert all(map(is_alive, pids(yard, "bystander")))
    wait_for(lambda: all(yard.tasks()[name].status.value == "completed" for name in names), "each to be completed")
    assert yard.tasks()["bystander"].status.value == "running"


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV])
def test_when_a_runner_dies_all_that_its_task_started_is_gone_before_the_task_begins_again(
    yard: Yard, signum: signal.Signals
) -> None:
    tasks = [*(tree(kind, depth) for kind, depth in KINDS.items()), tree("strangers", 3)]
    grow(yard, *tasks)
    names = [task["id"] for task in tasks]
    for runner in [yard.runner_of(name) for name in names]:
        runner.send_signal(signum)
    each_was_alone(yard, names)


def test_when_runners_and_launcher_die_together_all_is_gone_before_the_tasks_begin_again(yard: Yard) -> None:
    tasks = [*(tree(kind, depth) for kind, depth in KINDS.items()), tree("strangers", 3)]
    grow(yard, *tasks)
    names = [task["id"] for task in tasks]
    launchers = wait_for(yard.launchers, "the launcher to answer")
    doomed = [*launchers, *(yard.runner_of(name) for name in names)]
    for process in doomed:
        process.suspend()  # so that none of them can do anything about the others
    for process in doomed:
        process.kill()
    each_was_alone(yard, names)


def test_when_everything_died_the_next_manager_leaves_nothing_and_the_command_line_only_looks(yard: Yard) -> None:
    grow(yard, tree("daemons", 3))
    launchers = wait_for(yard.launchers, "the launcher to answer")
    doomed = [*launchers, yard.runner_of("daemons"), yard.runner_of("bystander")]
    (manager,) = yard.managers
    manager.kill()
    for process in doomed:
        process.kill()
    left = [pid for pid in pids(yard, "daemons") if is_alive(pid)]
    yard.call("status")
    assert left and all(map(is_alive, left))
    yard.start_manager()
    wait_for(lambda: sorted(yard.lines("again")) == ["bystander", "daemons"], "both to run again")
    assert yard.lines("beside") == []


@pytest.mark.parametrize("depth", range(1, 11))
def test_however_deep_a_tree_is(yard: Yard, depth: int) -> None:
    grow(yard, tree("shells", depth))
    yard.runner_of("shells").kill()
    each_was_alone(yard, ["shells"])


def test_what_a_task_that_ends_leaves_is_gone_when_its_end_is_told(yard: Yard) -> None:
    """Those kinds whose first process need not stay."""
    tasks = []
    for kind, depth in KINDS.items():
        grown = f"until grep -qx {kind} grown; do sleep 0.02; done"
        script = f"{sys.executable} -S tree.py {kind} $AIR_EXECUTOR_RUN {kind} {depth} & {grown}"
        check = f"{sys.executable} -S tree.py {kind} later {kind} 0 root"
        tasks.append({"id": kind, "command": script, "shell": True})
        tasks.append({"id": f"after-{kind}", "command": check, "shell": True, "dependencies": [kind]})
    yard.submit(*tasks, max_runners=3)
    files = yard.finish()
    assert files.job.state is JobState.COMPLETED
    assert yard.lines("beside") == []
    assert sorted(yard.lines("again")) == sorted(KINDS)


def test_a_launcher_below_a_task_is_gone_before_the_task_begins_again(yard: Yard) -> None:
    nested = "bash -c 'echo $$ > nested; exec -a \"air-executor launcher 0123\" sleep 600' & "
    script = f"if [ -e nested ]; then kill -0 $(cat nested) && echo yes > beside; else {nested} sleep 600; fi; true"
    yard.submit({"id": "a", "command": script, "shell": True})
    yard.start_manager()
    wait_for(lambda: yard.lines("nested"), "the launcher below")
    yard.runner_of("a").kill()
    wait_for(lambda: yard.store.open("job").job.state is JobState.COMPLETED, "the task to run again")
    assert yard.lines("beside") == []


def test_shared_memory_of_tasks_that_are_ended_is_removed(yard: Yard) -> None:
    script = """
from multiprocessing.shared_memory import SharedMemory
import time
print(SharedMemory(create=True, size=1).name, flush=True)
time.sleep(600)
"""
    tasks = [{"id": f"t{n}", "command": sys.executable, "args": ["-c", script], "timeout": 3} for n in range(8)]
    yard.submit(*tasks, max_runners=4)
    assert yard.finish().job.state is JobState.FAILED
    names = [yard.log(task["id"]).split()[0] for task in tasks]
    assert [name for name in names if Path("/dev/shm", name).exists()] == []


# What is to outlive its task


def test_a_manager_that_outlives_a_task_spares_nothing_of_its_own(yard: Yard) -> None:
    yard.env["AIR_EXECUTOR_KEEP"] = "1"
    yard.submit({"id": "a", "command": "sleep 600 & echo $! > other", "shell": True})
    yard.start_manager()
    wait_for(lambda: yard.store.open("job").job.state is JobState.COMPLETED, "the job")
    assert not is_alive(int(yard.lines("other")[0]))


SERVER = "AIR_EXECUTOR_KEEP=1 setsid sh -c 'sleep 600; true' & echo $! > server; "


def server_of(yard: Yard) -> list[psutil.Process]:
    (pid,) = wait_for(lambda: yard.lines("server"), "the server")
    return [psutil.Process(int(pid)), *psutil.Process(int(pid)).children()]


def test_what_one_task_starts_for_others_outlives_it_and_them(yard: Yard) -> None:
    yard.submit(
        {"id": "start", "command": SERVER + "sleep 600 & echo $! > other", "shell": True},
        {"id": "use", "command": "kill -0 $(cat server) && echo used", "shell": True, "dependencies": ["start"]},
    )
    files = yard.finish()
    assert files.job.state is JobState.COMPLETED
    assert yard.log("use") == "used\n"
    for process in server_of(yard):
        assert is_alive(process.pid)
        process.kill()
    assert not is_alive(int(yard.lines("other")[0]))


@pytest.mark.parametrize("with_launcher", [False, True])
def test_what_is_to_outlive_its_task_outlives_its_runner_too(yard: Yard, with_launcher: bool) -> None:
    yard.submit({"id": "a", "command": f"[ -f server ] || {{ {SERVER} sleep 600; }}", "shell": True})
    yard.start_manager()
    server = wait_for(lambda: server_of(yard) if len(server_of(yard)) == 2 else None, "the server")
    launchers = wait_for(yard.launchers, "the launcher to answer") if with_launcher else []
    doomed = [*launchers, yard.runner_of("a")]
    for process in doomed:
        process.kill()
    wait_for(lambda: yard.store.open("job").job.state is JobState.COMPLETED, "the task to run again")
    for process in server:
        assert is_alive(process.pid)
        process.kill()
