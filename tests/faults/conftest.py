"""An Airflow whose runners reach the API server through a proxy that can fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.conftest import postgres_url
from tests.support import airflow_env
from tests.support.airflow_env import Airflow
from tests.support.proxy import Proxy


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    with Proxy() as proxy:
        yield proxy


@pytest.fixture(scope="module")
def options() -> dict[str, str]:
    """Options of this file's Airflow beyond those that every one has."""
    return {}


@pytest.fixture(scope="module")
def env(
    request: pytest.FixtureRequest,
    proxy: Proxy,
    options: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    shared_dir: Path,
) -> Iterator[Airflow]:
    name = request.module.__name__.rsplit(".", 1)[-1]
    options = {"AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{proxy.port}/execution/", **options}
    env = airflow_env.make(tmp_path_factory.mktemp(name) / "home", shared_dir, options)
    env.env["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = own_database(env, shared_dir, name)
    proxy.upstream = ("127.0.0.1", env.port)
    try:
        env.start()
        yield env
    finally:
        env.end()


@pytest.fixture(autouse=True)
def _mended(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let no test find what another has broken."""
    yield
    if "proxy" in request.fixturenames:
        request.getfixturevalue("proxy").set("pass")


def own_database(env: Airflow, shared: Path, name: str) -> str:
    """Return a database of its own on the tests' PostgreSQL, with Airflow's tables, made once and then copied."""
    import psycopg2

    url = postgres_url(shared)

    def url_of(database: str) -> str:
        return url.replace("/postgres?", f"/{database}?")

    with FileLock(shared / "databases.lock"):
        connection = psycopg2.connect(url.replace("postgresql+psycopg2://", "postgresql://"))
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT datname FROM pg_database WHERE datname = 'migrated'")
                if cursor.fetchone() is None:
                    cursor.execute("CREATE DATABASE fresh")
                    env.run("airflow", "db", "migrate", AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=url_of("fresh"))
                    cursor.execute("ALTER DATABASE fresh RENAME TO migrated")
                cursor.execute(f"CREATE DATABASE {name} TEMPLATE migrated")
        finally:
            connection.close()
    return url_of(name)
