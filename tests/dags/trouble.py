"""Tasks that behave badly, each in its own way."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from airflow.sdk import dag, task

OUT = Path(os.environ["AIR_TEST_OUT"])


@dag(schedule=None)
def trouble():
    @task
    def binary_output():
        os.write(1, bytes(range(256)) * 20 + b"\n")
        os.write(2, b"\xff\xfe no newline at the end")

    @task
    def closes_stdout():
        os.close(1)
        os.close(2)

    @task
    def forks_children():
        # One plain child, and one that leaves the session and its parent.
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (OUT / "forked-child").write_text(str(child.pid))
        daemon = "import os, sys, time; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0);"
        daemon += f"open({str(OUT / 'daemon')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", daemon]).wait()
        while not (OUT / "daemon").exists() or not (OUT / "daemon").read_text():
            time.sleep(0.01)

    @task
    def exits_at_once():
        os._exit(0)

    @task
    def exits_with_a_code():
        os._exit(42)

    @task
    def raises():
        raise ValueError("not so")

    @task
    def segfaults():
        ctypes.string_at(0)

    @task
    def is_killed():
        os.kill(os.getpid(), signal.SIGKILL)

    @task
    def prints_much():
        for number in range(20_000):
            print(number, "x" * 100)

    @task
    def shows_progress():
        for number in range(3000):
            os.write(1, b"\r" + b"%05d" % number + b"x" * 9_995)
        os.write(1, b"\rall done")

    binary_output()
    closes_stdout()
    forks_children()
    exits_at_once()
    exits_with_a_code()
    raises()
    segfaults()
    is_killed()
    prints_much()
    shows_progress()


@dag(schedule=None)
def limited():
    def hold(mebibytes: int) -> None:
        block = bytearray(mebibytes << 20)
        for page in range(0, len(block), 4096):
            block[page] = 1
        while True:
            time.sleep(1)

    @task(executor_config={"air": {"memory": "100MiB"}})
    def too_much_memory():
        hold(300)

    @task(executor_config={"air": {"memory": "100MiB"}})
    def too_much_memory_in_a_child():
        code = "import time; block = bytearray(300 << 20); time.sleep(600)"
        subprocess.run([sys.executable, "-c", code.replace("bytearray(300 << 20)", "b'x' * (300 << 20)")])

    @task(executor_config={"air": {"cpu_time": 1}})
    def too_much_cpu():
        while True:
            pass

    @task(executor_config={"air": {"timeout": 2}})
    def too_long():
        time.sleep(600)

    @task(executor_config={"air": {"memory": "1GiB", "cpu_time": 600, "timeout": 600, "nice": 5, "cpus": 1}})
    def within_limits():
        return {"nice": os.nice(0), "cpus": len(os.sched_getaffinity(0))}

    @task(executor_config={"air": {"environment": {"GREETING": "hello-from-the-environment"}}})
    def environment():
        return os.environ["GREETING"]

    @task(executor_config={"air": {"gpus": 1}})
    def gpu():
        return os.environ["CUDA_VISIBLE_DEVICES"]

    @task(executor_config={"air": {"memoryy": "1GiB"}})
    def unknown_key():
        (OUT / "must-not-run").touch()

    @task(executor_config={"air": {"cpus": 4096}})
    def too_many_cpus():
        (OUT / "must-not-run").touch()

    @task(executor_config={"air": {"gpus": 64}})
    def too_many_gpus():
        (OUT / "must-not-run").touch()

    @task(executor_config={"air": {"timeout": Path("/not-a-number")}})
    def not_plain_data():
        (OUT / "must-not-run").touch()

    too_much_memory()
    too_much_memory_in_a_child()
    too_much_cpu()
    too_long()
    within_limits()
    environment()
    gpu()
    unknown_key()
    too_many_cpus()
    too_many_gpus()
    not_plain_data()


@dag(schedule=None)
def stubborn():
    """Ignores SIGTERM; only its death ends it."""

    @task
    def ignores_sigterm():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (OUT / "stubborn").touch()
        while True:
            time.sleep(1)

    ignores_sigterm()


@dag(schedule=None)
def calls_back():
    """Has a callback, which takes a moment."""

    def note(_context):
        time.sleep(0.5)
        (OUT / "called-back").touch()

    @task(on_success_callback=note)
    def succeeds():
        return None

    succeeds()


@dag(schedule=None, dag_id="ünïcode.d-a_g." + "x" * 230)
def odd_names():
    @task(task_id="täsk-" + "y" * 200)
    def odd():
        return "done"

    odd()


trouble()
limited()
stubborn()
calls_back()
odd_names()
