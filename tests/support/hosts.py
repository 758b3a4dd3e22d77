"""Hosts on this machine: each has network, processes and a host name of its own, in namespaces of Linux.

A host has a link to this machine, with two addresses at this end: one for Airflow, one for Temporal. Each can be cut
alone: what the host sends there is swallowed, as by a firewall.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import psutil

from air_executor.machine import system
from tests.support.airflow_env import REPOSITORY
from tests.support.waiting import wait_for

#: What the first process of new namespaces does: nothing, until it is killed; its children are reaped.
_INIT = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); print(flush=True); signal.pause()"


def why_not() -> str | None:
    """Return why hosts can't be made here; ``None``: they can."""
    for program in ("ip", "unshare", "nsenter"):
        if shutil.which(program) is None:
            return f"there is no program {program} here"
    done = subprocess.run(
        ["unshare", "--net", "--pid", "--uts", "--mount", "--fork", "ip", "link", "add", "name", "x0", "type", "veth"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"namespaces are not allowed here: {done.stderr.strip()}" if done.returncode else None


def new_namespaces(*kinds: str) -> tuple[subprocess.Popen[bytes], int]:
    """Make namespaces of these kinds, as ``net``, and return their first process, and its pid.

    They last until that process is killed; this process's end kills it, too.
    """
    outer = subprocess.Popen(
        ["unshare", *(f"--{kind}" for kind in kinds), "--fork", "--kill-child", sys.executable, "-c", _INIT],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        preexec_fn=functools.partial(system.die_with_parent, os.getpid()),
    )
    assert outer.stdout is not None and outer.stdout.readline()
    return outer, psutil.Process(outer.pid).children()[0].pid


def enter(pid: int, *command: str) -> list[str]:
    """Return the command that runs another one in the namespaces of a process."""
    return ["nsenter", "--target", str(pid), "--net", "--pid", "--uts", "--mount", "--", *command]


@dataclass
class Host:
    """A host that is up until it is killed."""

    name: str
    folder: Path
    number: int = field(init=False)
    init: subprocess.Popen[bytes] | None = None
    _pid: int = 0
    _numbers: ClassVar[list[int]] = []

    def __post_init__(self) -> None:
        # Of a process of pytest-xdist, and in it.
        first = 8 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
        self.number = next(n for n in range(first, first + 8) if n not in self._numbers)
        self._numbers.append(self.number)

    # Addresses at this machine's end of the link

    @property
    def airflow_address(self) -> str:
        return f"10.231.{self.number}.1"

    @property
    def temporal_address(self) -> str:
        return f"10.231.{self.number}.2"

    @property
    def address(self) -> str:
        return f"10.231.{self.number}.3"

    @property
    def _link(self) -> str:
        return f"air{os.getpid() % 100000}x{self.number}"

    def start(self) -> None:
        """Be up."""
        self.init, self._pid = new_namespaces("net", "pid", "uts", "mount-proc")
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "up0", "netns", str(self._pid))
        for address in (self.airflow_address, self.temporal_address):
            _ip("address", "add", f"{address}/24", "dev", self._link)
        _ip("link", "set", self._link, "up")
        for command in (
            ["hostname", self.name],
            ["ip", "link", "set", "lo", "up"],
            ["ip", "address", "add", f"{self.address}/24", "dev", "up0"],
            ["ip", "link", "set", "up0", "up"],
            ["ip", "link", "add", "nowhere", "type", "veth", "peer", "name", "nothing"],
            ["ip", "link", "set", "nothing", "up"],
            ["ip", "link", "set", "nowhere", "arp", "off", "up"],
        ):
            self.run(*command)

    def enter(self, *command: str) -> list[str]:
        """Return the command that runs another one on the host."""
        return enter(self._pid, *command)

    def run(self, *command: str) -> str:
        """Run a command on the host, and return what it prints."""
        done = subprocess.run(self.enter(*command), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command} on {self.name}: {done.stderr}"
        return done.stdout

    def popen(self, *command: str, env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start a process on the host. Signals to what this returns do not reach it: see :meth:`signal`."""
        with log.open("ab") as output:
            return subprocess.Popen(
                self.enter(*command), env=env, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def signal(self, signum: signal.Signals, text: str) -> None:
        """Send a signal to the process of the host whose command line contains a text."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if text in " ".join(process.cmdline()):
                    process.send_signal(signum)

    def processes(self) -> list[psutil.Process]:
        """Return the host's processes, except its first."""
        found = []
        namespace = os.readlink(f"/proc/{self._pid}/ns/pid")
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if process.pid != self._pid and os.readlink(f"/proc/{process.pid}/ns/pid") == namespace:
                    found.append(process)
        return found

    # Faults

    def cut(self, *addresses: str) -> None:
        """Let what the host sends to these addresses vanish."""
        for address in addresses:
            self.run("ip", "route", "add", f"{address}/32", "dev", "nowhere")

    def mend(self) -> None:
        """Undo all cuts."""
        for address in (self.airflow_address, self.temporal_address):
            with contextlib.suppress(AssertionError):  # it was not cut
                self.run("ip", "route", "del", f"{address}/32", "dev", "nowhere")

    def kill(self) -> None:
        """Kill the host with all that is on it, as by pulling its plug."""
        if self.init is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self.init.wait()
            self.init = None
            wait_for(lambda: not os.path.exists(f"/sys/class/net/{self._link}"), "the host's link to vanish")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def address_here() -> str:
    """Return the address of the host that this process is on, for Airflow's ``hostname_callable``."""
    return os.environ["AIR_TEST_ADDRESS"]
