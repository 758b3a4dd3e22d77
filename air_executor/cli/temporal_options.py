"""What the commands that need Temporal have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from air_executor import config
from air_executor.cli import table
from air_executor.errors import AirExecutorError

if TYPE_CHECKING:
    from temporalio.client import Client

    from air_executor.temporal.overview import Overview
    from air_executor.temporal.settings import Settings


def option(section: str, name: str) -> str | None:
    """Return the text of an option; ``None``: it is not set."""
    return config.plain_getter(section)(name)


@contextlib.contextmanager
def with_temporal() -> Iterator[None]:
    """Explain that Temporal's packages are missing, if they are imported in this context and are.

    From here on this process ends at once, see ``table.ends_at_once``.

    :raises AirExecutorError: they are.
    """
    table.ends_at_once = True
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("temporalio", "cryptography"):
            raise
        raise AirExecutorError(
            'this needs the package temporalio: install AirExecutor with its extra "temporal", in a clone: '
            "pip install '.[temporal]'"
        ) from None


async def look_around(settings: Settings, queues: Iterable[str] = ()) -> tuple[Client, Overview]:
    """Return a connection to Temporal, and what it knows. Call it where :func:`with_temporal` has been entered.

    :param queues: of Airflow, to be shown even if no worker serves them.
    :raises AirExecutorError: it can't be reached, or asked.
    """
    from temporalio.service import RPCError

    from air_executor.temporal.overview import look

    client = await settings.connect()
    try:
        return client, await look(client, settings, queues)
    except RPCError as error:
        raise AirExecutorError(f"Temporal can't be asked: {error}") from None
