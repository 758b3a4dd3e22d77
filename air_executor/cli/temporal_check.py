"""The doctor's check of Temporal."""

from __future__ import annotations

import asyncio
from pathlib import Path

from air_executor import config
from air_executor.cli.temporal_options import look_around, option, with_temporal
from air_executor.errors import AirExecutorError
from air_executor.observe.check import Check

#: How long Temporal may take for all answers, in seconds.
_TIMEOUT_S = 15.0

_REMEDY = (
    "See [air_executor] temporal_address and temporal_namespace, and whether it runs: `air-executor temporal status`."
)


def is_used(state_dir: Path) -> bool:
    """Tell whether this machine's Airflow orders runs through Temporal, or has a worker that takes them."""
    executor = config.plain_getter("core")("executor") or ""
    return "TemporalExecutor" in executor or (state_dir / "worker.id").exists()


def examine() -> Check:
    """Check that Temporal can be reached, and that hosts take orders."""
    try:
        return asyncio.run(asyncio.wait_for(_look(), _TIMEOUT_S))
    except AirExecutorError as error:
        return Check("temporal", False, str(error), _REMEDY)
    except asyncio.TimeoutError:
        return Check("temporal", False, f"it has not answered within {_TIMEOUT_S:.0f} s", _REMEDY)


async def _look() -> Check:
    with with_temporal():
        from air_executor.temporal.settings import Settings
    client, found = await look_around(Settings.load(option))
    hosts = ", ".join(f"{host.name} ({', '.join(host.queues)})" for host in found.hosts)
    text = f"namespace {client.namespace}: {len(found.hosts)} workers" + (f": {hosts}" if hosts else "")
    return Check("temporal", bool(found.hosts), text, "Orders wait. Start one on each host: air-executor worker.")
