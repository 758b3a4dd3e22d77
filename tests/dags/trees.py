"""Tasks that make trees of processes, which are killed in their first try; the second looks for what is left."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import time
from datetime import timedelta
from pathlib import Path

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import dag, get_current_context, task

RETRIED = {"retries": 1, "retry_delay": timedelta(0)}

BASH = """
out=$AIR_TEST_OUT/bash-{{ run_id }}
if [ {{ ti.try_number }} = 1 ]; then
  AIR_EXECUTOR_KEEP=1 setsid sleep 600 > /dev/null 2>&1 &
  echo $! > $out-kept
  setsid sleep 600 &
  echo $! >> $out-pids
  (nohup sh -c 'trap "" TERM HUP; echo $$ >> '$out'-pids; sleep 600; true' &)
  sh -c 'bash -c "echo \\$\\$ >> '$out'-pids; sh -c \\"sleep 600; true\\"; true"; true' &
  echo $$ >> $out-pids
  until [ $(wc -l < $out-pids) = 4 ]; do sleep 0.05; done
  touch $out-grown
  sleep 600
fi
for pid in $(cat $out-pids); do
  if [ -e /proc/$pid ] && ! grep -q 'State:.[ZX]' /proc/$pid/status; then echo $pid >> $out-beside; fi
done
true
"""


def out(name: str, what: str) -> Path:
    return Path(os.environ["AIR_TEST_OUT"]) / f"{name}-{get_current_context()['dag_run'].run_id}-{what}"


def is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def child(pids: Path) -> None:
    os.setsid()
    with pids.open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(600)


@dag(schedule=None)
def trees():
    BashOperator(task_id="bash", bash_command=BASH, append_env=True, **RETRIED)

    @task(**RETRIED)
    def forks():
        pids = out("forks", "pids")
        if get_current_context()["ti"].try_number == 1:
            for _ in range(2):
                multiprocessing.get_context("fork").Process(target=child, args=(pids,)).start()
            while not pids.exists() or len(pids.read_text().split()) < 2:
                time.sleep(0.05)
            out("forks", "grown").touch()
            time.sleep(600)
        left = [pid for pid in pids.read_text().split() if is_alive(pid)]
        if left:
            out("forks", "beside").write_text("\n".join(left))

    forks()


@dag(schedule=None)
def keeping():
    """One task starts a server, and the next one uses it."""

    @task
    def start():
        server = subprocess.Popen(
            ["sh", "-c", "echo serving; sleep 600; true"],
            env={**os.environ, "AIR_EXECUTOR_KEEP": "1"},
            start_new_session=True,  # with the task's own output, which it holds open
        )
        return server.pid

    @task
    def use(pid):
        return is_alive(str(pid))

    use(start())


@dag(schedule=None)
def stuck():
    """Writes to a disk that never answers, and is given some seconds for it."""

    @task(executor_config={"air": {"timeout": 40}})
    def write():
        (Path(os.environ["AIR_TEST_OUT"]) / "stuck" / "file").write_text("text")

    write()


trees()
keeping()
stuck()
