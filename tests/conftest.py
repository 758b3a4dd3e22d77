"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from filelock import FileLock
from xdist.scheduler import LoadScopeScheduling

from air_executor.machine import system
from air_executor.runs.store import RunStore
from tests.support import airflow_env, postgres
from tests.support.airflow_env import Airflow
from tests.support.postgres import Postgres

# Examples take as long as they take, and each run of the tests has the same.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tests")

# A script's background jobs are begun with it ignored, which all that is begun here would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

#: For tests that depend neither on the database nor on Airflow's version.
ONE_AIRFLOW = pytest.mark.parametrize("airflow", ["postgres"], indirect=True)

#: Files whose tests share what takes long to start: one worker has all tests of such a file.
_SHARES_BY_FILE = ("/e2e/", "/faults/", "/temporal/", "/unit/test_row_locks.py")


def scope_of(nodeid: str) -> str:
    """Return what a test shares with those that have the same Airflow; a test that shares nothing is its own scope."""
    file = nodeid.split("::")[0]
    if "/e2e/" in nodeid and (database := re.search(r"[\[-](sqlite|postgres)[\]-]", nodeid)):
        return f"{file} {database.group(1)}"
    return file if any(part in nodeid for part in _SHARES_BY_FILE) else nodeid


class ByEnvironment(LoadScopeScheduling):
    """Gives all tests of one Airflow to one worker, so that each Airflow is started once."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return ByEnvironment(config, log)


#: Files with unit tests and those of jobs that are run on one Python only, and why.
ANY_PYTHON = {
    **dict.fromkeys(
        "test_again test_cli test_doctor test_mcp test_newcomer test_ownership test_programs test_trust".split(),
        "a Python is started for each step; what it does there, other tests do in their own process",
    ),
    **dict.fromkeys(("test_garbage", "test_soak"), "many rounds of what other tests do once"),
    **dict.fromkeys(
        "test_births test_crash test_farewell test_faults_of_the_cpu test_fingerprint test_generations test_hang "
        "test_service test_survivors test_trees test_unreadable test_usage test_versions".split(),
        "what dies, hangs, measures or meets others: the kernel's part; test_launcher and test_backend have Python's",
    ),
    **dict.fromkeys(
        ("test_preload", "test_rehearsal", "test_row_locks", "test_traces", "test_unheard"),
        "Airflow is imported for each test; the end-to-end core has a launcher that was rehearsed",
    ),
    **dict.fromkeys(
        "test_airflow_air test_foreach test_listing_jobs test_odd_bytes test_operators test_owner test_private "
        "test_retention test_scheduling".split(),
        "managers at work, each with another kind of job; test_manager has what a Python could change of it",
    ),
    "test_tasks": "the core has its tasks whose launcher forks; those of one that does not are slow",
    **dict.fromkeys("test_demo test_deployment test_docs test_parts test_readme test_release".split(), "other files"),
}


def pytest_configure() -> None:
    # Where nothing else is set up, the kernel shares the CPU out among sessions. Each task of an Airflow is one: all
    # workers together would get as little of the CPU as one of the dozens of tasks that some test runs.
    if os.environ.get("PYTEST_XDIST_WORKER") and os.getsid(0) != os.getpid():
        os.setsid()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        is_same = item.path.stem in ANY_PYTHON or item.get_closest_marker("faults") is not None
        if item.path.parent.name in ("unit", "jobs") and not is_same:
            item.add_marker("every_python")
    if part := config.getoption("--part"):
        left_out = set(outside_of(*part, items))
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


def outside_of(part: int, parts: int, items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Return the tests that one of several parts leaves out. All have what does not take turns.

    The scopes of the others take turns in the order of their names: each part has some of every test's cases.
    """
    others = [item for item in items if takes_turns(item)]
    mine = set(sorted({scope_of(item.nodeid) for item in others})[part::parts])
    return [item for item in others if scope_of(item.nodeid) not in mine]


def takes_turns(item: pytest.Item) -> bool:
    """Tell whether a test is in one part only: what is neither core nor for every Python, and some of the core."""
    marks = {mark.name for mark in item.iter_markers()}
    return "by_turns" in marks or not marks & {"core", "every_python"}


def _part(text: str) -> tuple[int, int]:
    part, parts = map(int, text.split("/"))
    if not 0 < part <= parts:
        raise ValueError(text)
    return part - 1, parts


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("parts")
    group.addoption("--part", type=_part, metavar="K/N", help="of what takes turns, run one of N parts only, the K-th")
    group = parser.getgroup("faults by chance")
    group.addoption("--faults-seed", type=int, help="run faults by chance, from this seed; 0 draws one")
    group.addoption("--faults-minutes", type=float, default=10.0, help="for so long")
    group = parser.getgroup("hostile tasks by chance")
    group.addoption("--hostile-seed", type=int, default=1, help="draw hostile tasks from this seed; 0 draws one")
    group.addoption("--hostile-tasks", type=int, default=200, help="this many of them")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    # Without its seed it is not wanted, which is not the same as skipped.
    return True if collection_path.name == "test_random.py" and config.getoption("--faults-seed") is None else None


@pytest.fixture(scope="session")
def shared_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this test run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore(tmp_path / "state")
    store.prepare()
    return store


@pytest.fixture(scope="session", autouse=True)
def _prepared(tmp_path_factory: pytest.TempPathFactory) -> None:
    system.prepare()
    os.environ["AIR_EXECUTOR_PRIVATE_DIR"] = str(tmp_path_factory.mktemp("private"))  # not the developer's own


def postgres_url(shared: Path) -> str:
    """Return the address of the tests' PostgreSQL, a real one."""
    note = shared / "postgres.folder"
    with FileLock(shared / "postgres.lock"):
        if not note.exists():
            note.write_text(str(postgres.new_folder()))
        server = postgres.serve(Path(note.read_text()), is_kept=False)
    return server.get_uri().replace("postgresql://", "postgresql+psycopg2://")


def own_postgres(shared: Path) -> Postgres:
    """Start a server of a test's own, whose database has Airflow's tables and the DAGs, made once and then copied."""
    template = shared / "own-postgres"
    with FileLock(f"{template}.lock"):
        if not template.exists():
            server = Postgres()
            env = Airflow(shared / "home-of-own-postgres", server.url)
            env.copy_dags()
            env.run("airflow", "db", "migrate")
            env.run("airflow", "dags", "reserialize")
            server.stop(save_as=template)
    return Postgres(template)


def give_postgres(env: Airflow, shared: Path) -> None:
    """Give an Airflow a database of its own on the tests' PostgreSQL, with its tables, made once and then copied.

    An Airflow without DAG processor finds the DAGs in it.
    """
    import psycopg2

    (env.home / "airflow.db").unlink()
    url, name = postgres_url(shared), f"airflow_{env.port}"  # the port is nobody else's
    option = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"

    def url_of(database: str) -> str:
        return url.replace("/postgres?", f"/{database}?")

    def make(template: str) -> None:
        cursor.execute("SELECT datname FROM pg_database WHERE datname = %s", (template,))
        if cursor.fetchone() is not None:
            return
        if template == "tables":
            cursor.execute("CREATE DATABASE fresh")
            env.run("airflow", "db", "migrate", **{option: url_of("fresh")})
        else:
            make("tables")
            cursor.execute("CREATE DATABASE fresh TEMPLATE tables")
            env.run("airflow", "dags", "reserialize", **{option: url_of("fresh")})
        cursor.execute(f"ALTER DATABASE fresh RENAME TO {template}")

    with FileLock(shared / "databases.lock"):
        connection = psycopg2.connect(url.replace("postgresql+psycopg2://", "postgresql://"))
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                template = "tables" if env.has_dag_processor else "dags"
                make(template)
                cursor.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        finally:
            connection.close()
    env.env[option] = url_of(name)


@pytest.fixture(scope="module")
def components() -> Sequence[str]:
    """The components of a file's Airflow."""
    return airflow_env.COMPONENTS


@pytest.fixture(scope="module")
def dags() -> Sequence[str] | None:
    """The files with DAGs of a file's Airflow, see :func:`airflow_env.make`."""
    return None


@pytest.fixture(scope="module")
def options() -> dict[str, str]:
    """Options of a file's Airflow beyond those that every one has."""
    return {}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("sqlite", marks=(pytest.mark.core, pytest.mark.on_sqlite)),
        pytest.param("postgres", marks=(pytest.mark.core, pytest.mark.on_postgres)),
    ],
)
def airflow(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    shared_dir: Path,
    components: Sequence[str],
    dags: Sequence[str] | None,
    options: dict[str, str],
) -> Iterator[Airflow]:
    """A running Airflow with AirExecutor, once on SQLite and once on PostgreSQL."""
    home = tmp_path_factory.mktemp(request.param) / "home"
    is_core = request.param == "sqlite"
    env = airflow_env.make(home, shared_dir, options, components, dags=dags, is_quick=not is_core)
    if is_core:
        env.env["AIRFLOW__CORE__PARALLELISM"] = "8"  # with more at once, SQLite is waited for too long now and then
        env.split_api_server()
    else:
        give_postgres(env, shared_dir)
    env.start()
    yield env
    env.end()
