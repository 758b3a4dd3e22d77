"""The database of a run: a copy of one that was made for this Airflow once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from air_executor import jsontext
from air_executor.pocket.request import DagError, Request

#: How long another process may take to make the template, in seconds.
_MAKE_S = 120.0

#: This many tasks may run at a time that name no pool, or as many as may run at all.
_DEFAULT_SLOTS = 128

#: Distributions that decide what is in a new database.
_DISTRIBUTIONS = ("apache-airflow", "apache-airflow-core", "sqlalchemy", "alembic")


def copy_template(to: Path) -> bool:
    """Copy the template, and return whether there is one."""
    unfinished = to.with_suffix(".copy")
    with contextlib.suppress(OSError):
        shutil.copyfile(_template(), unfinished)
        unfinished.replace(to)
        return True
    unfinished.unlink(missing_ok=True)
    return False


def make_template(path: Path) -> None:
    """Make a new database at ``path``, where Airflow is set up to have it, and keep a copy for the next runs."""
    template = _template()
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, Timeout):
            template.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            stack.enter_context(FileLock(f"{template}.lock", timeout=_MAKE_S, mode=0o600))
        if copy_template(path):
            return  # another run has made it meanwhile
        from air_executor.airflow.compat.pocketing import make_database

        make_database()
        with contextlib.closing(sqlite3.connect(path)) as connection:
            # Readers then wait for no writer. The file keeps it.
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with contextlib.suppress(OSError):  # the next run makes one of its own
            unfinished = template.with_suffix(f".{os.getpid()}")
            shutil.copyfile(path, unfinished)
            unfinished.replace(template)


def _template() -> Path:
    """Return where the template for this Airflow is."""
    found = [f"{name}={metadata.version(name)}" for name in _DISTRIBUTIONS]
    digest = hashlib.sha256("\n".join(found).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "air-executor" / f"airflow-{metadata.version('apache-airflow-core')}-{digest}.db"


def fill(request: Request, *, is_new: bool) -> None:
    """Bring in the connections, variables and pools of a request, as Airflow's own commands for files do.

    :param is_new: the run begins; later its tasks may have set variables.
    :raises DagError: a file is not as it should be.
    """
    from airflow.models import Connection, Pool, Variable
    from airflow.secrets.local_filesystem import load_connections_dict, load_variables
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        for conn_id, connection in _read(load_connections_dict, request.connections).items():
            connection.id = session.scalar(select(Connection.id).where(Connection.conn_id == conn_id))
            session.merge(connection)
        for key, value in (_read(load_variables, request.variables) if is_new else {}).items():
            Variable.set(key, value, serialize_json=not isinstance(value, str), session=session)
    default = {
        Pool.DEFAULT_POOL_NAME: {"slots": max(_DEFAULT_SLOTS, request.parallelism), "description": "Default pool"}
    }
    for name, pool in (default | _read(_pools, request.pools)).items():
        Pool.create_or_update_pool(
            name, pool["slots"], pool.get("description", ""), include_deferred=pool.get("include_deferred", False)
        )


def _read(read: Callable[[str], dict[str, Any]], path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return read(path)
    except Exception as error:  # Airflow raises many kinds
        raise DagError(f"{path} can't be used: {error}") from error


def _pools(path: str) -> dict[str, Any]:
    found = jsontext.loads(Path(path).read_bytes())
    if not isinstance(found, dict):
        raise ValueError('it must be an object, as {"name": {"slots": 3, "description": ""}}')
    for name, pool in found.items():
        if not isinstance(pool, dict) or not isinstance(pool.get("slots"), int):
            raise ValueError(f'pool {name} must be as {{"slots": 3, "description": ""}}')
    return found


def pools() -> dict[str, int]:
    """Return the slots of the pools that there are, by name."""
    from airflow.models import Pool
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        return {str(name): slots for name, slots in session.execute(select(Pool.pool, Pool.slots))}
