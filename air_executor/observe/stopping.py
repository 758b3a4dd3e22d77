"""Having a run stopped, wherever it is."""

from __future__ import annotations

import signal

from air_executor.errors import WrongStateError
from air_executor.launcher.client.control import ask_to_stop
from air_executor.observe.everywhere import AllRuns
from air_executor.runs.record import RunRecord


def stop_here(runs: AllRuns, record: RunRecord, reason: str) -> None:
    """Have a run of this machine stopped: its task gets time for ``on_kill``, then it is killed.

    :param reason: noted in the record and in Airflow's audit log; it should name who wants it.
    :raises WrongStateError: it has ended, or nobody can reach it. One that begins later finds the request.
    :raises StateDirError: the request can't be written, or the state directory is another user's.
    """
    if record.state.is_end:
        raise WrongStateError(f"run {record.id} has ended already: {record.state.value}")
    store = runs.here
    store.refuse_strangers()
    store.request_stop(record.id, reason)
    if not ask_to_stop(store, record.id) and not store.signal_run(record.id, signal.SIGTERM):
        raise WrongStateError(
            f"run {record.id} is {record.state.value} on {record.host or 'an unknown host'}, and neither its launcher "
            "nor its process can be reached from here"
        )
