"""What the commands that need Temporal have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from air_executor import config
from air_executor.cli import table
from air_executor.errors import AirExecutorError


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
        raise AirExecutorError("this needs the package temporalio: pip install 'air-executor[temporal]'") from None
