"""Tasks that do to an executor, by chance, what tasks do to it: see tests/support/hostile.py, which draws them."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import mmap
import multiprocessing
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing import shared_memory
from pathlib import Path

from airflow.sdk import dag, get_current_context, task

OUT = Path(os.environ["AIR_TEST_OUT"])

#: Until somebody ends it.
FOR_EVER_S = 3600

#: All but the one that tells whose a process is.
LIMITS = sorted(name for name in dir(resource) if name.startswith("RLIMIT_") and name != "RLIMIT_RTTIME")


def append(name, text):
    """Append a line in one write, whatever has become of this process's umask, directory and buffers."""
    fd = os.open(OUT / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.write(fd, f"{text}\n".encode())
    finally:
        os.close(fd)


def start_ticks(pid):
    """Return when a process started: with its pid, what tells it from any other."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def sleep_until_terminated():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Airflow's handler ends no process
    time.sleep(FOR_EVER_S)


class Actor:
    """Performs one script."""

    def __init__(self, name, script):
        self.name = name
        self.script = script
        self.marks = 0
        self.held = []

    def perform(self):
        append(f"pids-{self.name}", f"{os.getpid()} {start_ticks(os.getpid())}")
        for deed in self.script["deeds"]:
            getattr(self, deed["do"])(**{key: value for key, value in deed.items() if key != "do"})
            self.mark()
        append(f"ready-{self.name}", os.getppid())
        return getattr(self, f"end_by_{self.script['end']}")()

    def mark(self):
        """Print a line, and note elsewhere that it was printed."""
        text = f"mark-{self.name}-{self.marks}"
        self.marks += 1
        try:
            print(text, flush=True)
        except (OSError, ValueError):
            return  # nothing is printed any more
        append(f"marks-{self.name}", text)

    # What leaves processes behind

    def child(self, *, depth, session, stubborn, become, megabytes):
        """Leave a chain of processes: some of them wait, some have gone, and the last one sleeps."""
        receiver, sender = os.pipe()
        if not os.fork():
            try:
                os.close(receiver)
                self._descend(depth, session, stubborn, become, megabytes, sender)
            finally:
                os._exit(1)
        os.close(sender)
        with open(receiver) as pipe:
            assert pipe.read(1) == "+"

    def _descend(self, depth, session, stubborn, become, megabytes, sender):
        if session:
            os.setsid()
        if stubborn:
            for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(signum, signal.SIG_IGN)
        append(f"pids-{self.name}", f"{os.getpid()} {start_ticks(os.getpid())}")
        if depth > 1:
            if not os.fork():
                self._descend(depth - 1, session, stubborn, become, megabytes, sender)
            if depth % 2:
                os._exit(0)  # what it has started is an orphan
            os.close(sender)
            time.sleep(FOR_EVER_S)
        self.held.append(b"x" * (megabytes << 20))
        os.write(sender, b"+")
        os.close(sender)
        if become == "shell":
            os.execvp("sh", ["sh", "-c", f"sleep {FOR_EVER_S} & sleep {FOR_EVER_S}"])
        if become == "sleep":
            os.execvp("sleep", ["sleep", str(FOR_EVER_S)])
        time.sleep(FOR_EVER_S)

    def command(self, *, argv, session):
        process = subprocess.Popen(argv, start_new_session=session)
        append(f"pids-{self.name}", f"{process.pid} {start_ticks(process.pid)}")
        self.held.append(process)

    def pool(self):
        # One that is no daemon is waited for when its parent ends, unless that has told Airflow its state.
        is_waited_for = self.script["end"] in ("return", "raise")
        fork = multiprocessing.get_context("fork")
        process = fork.Process(target=sleep_until_terminated, daemon=not is_waited_for)
        process.start()
        append(f"pids-{self.name}", f"{process.pid} {start_ticks(process.pid)}")

    def zombies(self, *, number):
        for _ in range(number):
            if not os.fork():
                os._exit(3)

    # What changes the process

    def signals(self, *, numbers):
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)

    def block(self, *, numbers):
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    def settings(self, *, umask, nice):
        os.umask(umask)
        os.chdir("/")
        os.nice(nice)
        os.environ.clear()
        os.environ["PATH"] = "/usr/bin:/bin"
        socket.setdefaulttimeout(0.5)
        sys.setrecursionlimit(5000)
        logging.getLogger().setLevel(logging.CRITICAL)

    def limits(self, *, files):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def descriptors(self, *, number):
        with contextlib.suppress(OSError):
            for _ in range(number):
                self.held.append(os.open(os.devnull, os.O_RDONLY))

    # What holds memory, threads, loops

    def memory(self, *, megabytes):
        self.held.append(b"x" * (megabytes << 20))

    def shared(self, *, megabytes):
        memory = shared_memory.SharedMemory(create=True, size=megabytes << 20)
        memory.buf[:] = b"y" * (megabytes << 20)
        memory.unlink()
        area = mmap.mmap(-1, megabytes << 20)
        area.write(b"z" * (megabytes << 20))
        self.held += [memory, area]

    def threads(self, *, number, daemon):
        for _ in range(number):
            threading.Thread(target=time.sleep, args=(FOR_EVER_S,), daemon=daemon).start()

    def loop(self):
        async def some():
            await asyncio.gather(*(asyncio.sleep(0.01) for _ in range(20)))

        asyncio.run(some())

    # What is printed

    def octets(self, *, number):
        sys.stdout.flush()
        os.write(1, bytes(range(128, 256)) * number + b"\n")

    def unended(self, *, kilobytes):
        sys.stdout.write("." * (kilobytes << 10) + "\r")
        sys.stdout.flush()
        print()

    def lines(self, *, number):
        for index in range(number):
            print(f"line {index} of {self.name}")

    def errors(self, *, number):
        for index in range(number):
            print(f"error {index} of {self.name}", file=sys.stderr, flush=True)
            logging.getLogger("hostile").warning("warning %d", index)

    # Ends

    def end_by_return(self):
        return self.marks

    def end_by_raise(self):
        raise RuntimeError("it raises") from KeyError("the cause")

    def end_by_exit(self):
        sys.exit(3)

    def end_by_exit_0_unseen(self):
        sys.stdout.flush()
        os._exit(0)

    def end_by_exit_3_unseen(self):
        os._exit(3)

    def end_by_sigkill(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def end_by_sigabrt(self):
        os.abort()

    def end_by_sigalrm(self):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(1)
        time.sleep(FOR_EVER_S)

    def end_by_fault(self):
        ctypes.string_at(0)

    def end_by_exec(self):
        os.execvp("true", ["true"])

    def end_by_recursion(self):
        return self.end_by_recursion()

    def end_by_closing_all(self):
        os.closerange(0, 4096)
        time.sleep(0.2)

    def end_by_losing_its_channel(self):
        os.close(0)
        return self.marks

    def end_by_waiting(self):
        time.sleep(FOR_EVER_S)


def descriptors():
    """Return what each open descriptor is, without numbers that differ from process to process."""
    sockets = {}
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        inode, *path = line.split()[6:]
        sockets[f"socket:[{inode}]"] = f"unix {' '.join(path)}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        sockets[f"socket:[{line.split()[9]}]"] = "tcp"
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # that of the listing itself
        found.append(re.sub(r"[0-9a-f]{8}(-[0-9a-f]+){4}|\d+", "N", sockets.get(target, target)))
    return sorted(found)


def surroundings():
    """Return what a task finds, which no other task may have changed."""
    umask = os.umask(0o22)
    os.umask(umask)
    return {
        "umask": umask,
        "directory": str(Path.cwd()),
        "environment": sorted(name for name in os.environ if not name.startswith(("AIRFLOW_CTX", "AIR_EXECUTOR_RUN"))),
        "limits": {name: list(resource.getrlimit(getattr(resource, name))) for name in LIMITS},
        "blocked": sorted(int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "ignored": sorted(n for n in range(1, 32) if n not in (9, 19) and signal.getsignal(n) == signal.SIG_IGN),
        "nice": os.nice(0),
        "threads": threading.active_count(),
        "descriptors": descriptors(),
        "timeout": socket.getdefaulttimeout(),
        "recursion": sys.getrecursionlimit(),
        "level": logging.getLogger().level,
    }


def note_failure(context):
    ti = context["ti"]
    append(f"callbacks-{ti.run_id}-{ti.map_index}", "failure")


def note_success(context):
    ti = context["ti"]
    append(f"callbacks-{ti.run_id}-{ti.map_index}", "success")


@dag(schedule=None, max_active_tasks=100, max_active_runs=10)
def hostile():
    """As many mapped tasks as there are scripts in the run's ``conf``."""

    @task
    def scripts():
        return get_current_context()["dag_run"].conf["scripts"]

    @task(retries=0, on_failure_callback=note_failure, on_success_callback=note_success)
    def act(script):
        ti = get_current_context()["ti"]
        name = f"{ti.run_id}-{ti.map_index}"
        if script["end"] == "innocence":
            append(f"innocent-{name}", json.dumps(surroundings()))
            return None
        return Actor(name, script).perform()

    act.expand(script=scripts())


hostile()
