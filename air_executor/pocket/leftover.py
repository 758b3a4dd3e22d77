"""What still runs of a DAG's run whose Airflow is gone: runners outlive it, and so does their launcher."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from air_executor.launcher import protocol
from air_executor.launcher.address import Address, all_addresses
from air_executor.launcher.client.control import ask_to_stop, status
from air_executor.machine import system
from air_executor.machine.marks import is_launcher
from air_executor.runs.ordered import OrderedRuns
from air_executor.runs.record import RunRecord
from air_executor.runs.store import RunStore

#: How long tasks have for ``on_kill``, and then to die, and launchers to end, in seconds.
_STOP_S, _KILL_S, _LAUNCHER_S = 40.0, 10.0, 10.0

#: How often to look, in seconds.
_LOOK_S = 0.1


def live_runs(state_dir: Path) -> list[RunRecord]:
    """Return the records of the runs that have not ended, here and on other hosts."""
    return [record for store in (RunStore(state_dir), OrderedRuns.of(state_dir)) for record in _live(store)]


def _live(store: RunStore) -> list[RunRecord]:
    if not store.root.exists():
        return []
    settled = (store.settled(record) for record in store.open_records())
    return [record for record in settled if not record.state.is_end]


def stop_runs(state_dir: Path, reason: str, which: Callable[[RunRecord], bool] = lambda _: True) -> None:
    """Stop runs of this machine, by force if they don't end, and return when they have ended."""
    store = RunStore(state_dir)
    for record in filter(which, _live(store)):
        store.request_stop(record.id, reason)
        if not ask_to_stop(store, record.id):
            store.signal_run(record.id, signal.SIGTERM)
    if not _all_end(store, which, _STOP_S):
        for record in filter(which, _live(store)):
            store.signal_run(record.id, signal.SIGKILL)
        _all_end(store, which, _KILL_S)


def _all_end(store: RunStore, which: Callable[[RunRecord], bool], timeout_s: float) -> bool:
    until_s = time.monotonic() + timeout_s
    while any(map(which, _live(store))):
        if time.monotonic() >= until_s:
            return False
        time.sleep(_LOOK_S)
    return True


def end_launchers(state_dir: Path, *, wait: bool = False) -> None:
    """End the launchers, and with them what they still run.

    :param wait: return when they have ended.
    """
    addresses, asked = all_addresses(RunStore(state_dir)), set[int]()
    until_s = time.monotonic() + (_LAUNCHER_S if wait else 0.0)
    while [address for address in addresses if _ends(address, asked)] and time.monotonic() < until_s:
        time.sleep(_LOOK_S)


def _ends(address: Address, asked: set[int]) -> bool:
    """Ask the launcher to end, once; tell whether there is one.

    One that is still warming up answers no question, but the kernel knows who in this namespace listens. Until
    the launcher does, that is who has started it.
    """
    try:
        with protocol.connect(address.socket) as connection:
            who = system.peer(connection)
    except OSError:
        return False
    if who is None:
        answer = status(address)
        pid = None if answer is None else int(answer["pid"])
    else:
        pid = who.pid if is_launcher(who.pid) else None
    if pid is not None and pid not in asked:
        asked.add(pid)
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGTERM)
    return True
