"""What was imported ahead, and how a task that imports it gets it."""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import logging
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from air_executor.runner.imports import new_packaged_modules
from air_executor.runner.stash import Stash

PACKAGES = {
    "put_away/__init__.py": "import warnings, os\nwarnings.filterwarnings('ignore', 'put away')\n"
    "from . import inner\nfrom .inner import Thing\nVALUE = os.environ.get('PUT_AWAY')\nCOPIES = []\n",
    "put_away/inner.py": "from . import circle\nclass Thing:\n    pass\n",
    "put_away/circle.py": "import put_away\n",
    "put_away/later.py": "from put_away import inner\n",
    "put_away_user.py": "import put_away, os\nos.environ['PUT_AWAY_USER'] = '1'\n",
    "put_away_hears.py": "import os\nHEARD = []\nos.register_at_fork(before=lambda: HEARD.append(1))\n",
    "put_away_reads.py": "TEXT = open(PATH).read()\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages."""
    folder = tmp_path / "site-packages"
    for name, text in PACKAGES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.replace("PATH", repr(str(tmp_path / "settings"))))
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def stash(folder: Path) -> Iterator[Stash]:
    stash = Stash()
    yield stash
    sys.meta_path[:] = [each for each in sys.meta_path if each is not stash]


def in_a_task(do: Callable[[], object]) -> None:
    """Do something in a fork of this process, and fail as it fails."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            assert do() in (None, True)
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_task_that_does_not_import_it_has_none_of_it(stash: Stash) -> None:
    modules, filters, environment = dict(sys.modules), list(warnings.filters), dict(os.environ)
    for name in ("put_away", "put_away_user", "put_away.later"):
        stash.load(name)
    assert dict(sys.modules) == modules
    assert list(warnings.filters) == filters
    assert dict(os.environ) == environment


def test_a_task_that_imports_it_gets_all_that_an_import_would_have_made(stash: Stash) -> None:
    stash.load("put_away")
    stash.load("put_away.later")
    stash.load("put_away_user")
    ahead = stash.modules_of("put_away")["put_away"]

    def task() -> None:
        known = len(sys.modules)
        import put_away  # type: ignore[import-not-found]
        import put_away_user  # type: ignore[import-not-found]

        assert put_away is ahead is put_away_user.put_away
        assert put_away.inner.Thing is put_away.Thing is sys.modules["put_away.inner"].Thing
        assert "put_away.later" not in sys.modules
        assert not hasattr(put_away, "later")
        from put_away import later

        assert later is put_away.later is stash.modules_of("put_away.later")["put_away.later"]
        assert os.environ["PUT_AWAY_USER"] == "1"
        with warnings.catch_warnings(record=True) as heard:
            warnings.warn("put away: silenced by the package", stacklevel=1)
        assert not [each for each in heard if "put away" in str(each.message)]
        for module in (put_away, put_away_user):
            assert module.__spec__.name == module.__name__
            assert type(module.__spec__.loader).__name__ == type(module.__loader__).__name__ == "SourceFileLoader"
        assert importlib.util.find_spec("put_away").origin == put_away.__file__
        assert pickle.loads(pickle.dumps(put_away.Thing())).__class__ is put_away.Thing
        put_away.COPIES.append(1)
        assert importlib.reload(put_away) is put_away
        assert put_away.COPIES == []
        assert not any(name.startswith("put_away") for name in new_packaged_modules(known))

    in_a_task(task)


def test_what_only_looks_for_it_does_not_import_it(stash: Stash) -> None:
    stash.load("put_away")

    def task() -> None:
        spec = importlib.util.find_spec("put_away")
        assert type(spec.loader).__name__ == "SourceFileLoader"  # type: ignore[union-attr]
        assert "put_away" not in sys.modules

    in_a_task(task)


def test_threads_that_import_it_at_once_get_the_same(stash: Stash) -> None:
    stash.load("put_away")
    stash.load("put_away_user")

    def task() -> None:
        found: list[object] = []
        names = ["put_away", "put_away_user", "put_away.inner", "put_away.circle"] * 5
        threads = [
            threading.Thread(target=lambda name=name: found.append(importlib.import_module(name))) for name in names
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 20
        assert {id(each) for each in found} == {id(sys.modules[name]) for name in names}

    in_a_task(task)


def test_a_task_that_sets_a_variable_that_it_reads_imports_it_anew(
    stash: Stash, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PUT_AWAY", raising=False)
    stash.load("put_away")
    stash.load("put_away_user")

    def task() -> None:
        os.environ["PUT_AWAY"] = "mine"
        import put_away
        import put_away_user

        assert put_away.VALUE == "mine"
        assert put_away_user.put_away is put_away

    in_a_task(task)

    def other_task() -> None:
        os.environ["UNRELATED"] = "mine"
        import put_away

        assert put_away is stash.modules_of("put_away")["put_away"]

    in_a_task(other_task)


def test_a_task_imports_it_anew_when_a_file_that_it_reads_has_changed(stash: Stash, tmp_path: Path) -> None:
    settings = tmp_path / "settings"
    settings.write_text("first")
    stash.load("put_away_reads", files=[str(settings)])
    settings.write_text("second")

    def task() -> bool:
        return importlib.import_module("put_away_reads").TEXT == "second"  # type: ignore[no-any-return]

    in_a_task(task)


@pytest.mark.parametrize("place", ["before", "behind"])
def test_more_of_a_package_in_the_folder_of_a_dag_is_found(
    stash: Stash, folder: Path, tmp_path: Path, place: str
) -> None:
    text = "import pkgutil\n__path__ = pkgutil.extend_path(__path__, __name__)\n"
    dags = tmp_path / "dags"
    for base in (folder, dags):
        (base / "put_away_acme").mkdir(parents=True)
        (base / "put_away_acme/__init__.py").write_text(text)
    (dags / "put_away_acme/reports.py").write_text("")
    stash.load("put_away_acme")

    def task() -> None:
        sys.path.insert(0 if place == "before" else len(sys.path), str(dags))
        importlib.import_module("put_away_acme.reports")

    in_a_task(task)
    in_a_task(lambda: importlib.import_module("put_away_acme") is stash.modules_of("put_away_acme")["put_away_acme"])


def test_what_can_not_be_imported_twice_is_given_unless_the_folder_of_a_dag_has_another(
    stash: Stash, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PUT_AWAY", raising=False)
    stash.load("put_away", is_lasting=True)
    ahead = stash.modules_of("put_away")["put_away"]
    (tmp_path / "put_away.py").write_text("")

    def task() -> None:
        os.environ["PUT_AWAY"] = "mine"
        assert importlib.import_module("put_away") is ahead

    def other_task() -> None:
        sys.path.insert(0, str(tmp_path))
        assert importlib.import_module("put_away").__file__ == str(tmp_path / "put_away.py")

    in_a_task(task)
    in_a_task(other_task)


def test_what_it_does_at_forks_is_done_only_where_it_was_imported(stash: Stash) -> None:
    stash.load("put_away_hears")

    def task() -> None:
        in_a_task(lambda: None)
        module = importlib.import_module("put_away_hears")
        assert module.HEARD == []
        in_a_task(lambda: None)
        assert module.HEARD == [1]

    in_a_task(task)


def test_what_is_dropped_is_given_to_no_task_nor_is_what_needs_it(stash: Stash) -> None:
    for name in ("put_away", "put_away_user", "put_away_hears"):
        stash.load(name)
    stash.drop(["put_away"])
    assert "put_away" not in stash
    assert "put_away_user" not in stash
    assert "put_away_hears" in stash
    in_a_task(lambda: importlib.import_module("put_away_user").put_away is sys.modules["put_away"])


def test_a_logger_of_it_is_as_new(stash: Stash, folder: Path) -> None:
    (folder / "put_away_logs.py").write_text("import logging\nLOG = logging.getLogger('put_away_logs')\n")
    stash.load("put_away_logs")

    def task() -> None:
        logging.getLogger("put_away_logs").disabled = True  # as logging.config does with those that are there
        assert importlib.import_module("put_away_logs").LOG is logging.getLogger("put_away_logs")
        assert not logging.getLogger("put_away_logs").disabled

    in_a_task(task)


def test_a_logger_of_it_is_set_up_only_where_it_is_imported(
    stash: Stash, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PUT_AWAY_LOGS", raising=False)
    (folder / "put_away_logs.py").write_text(
        "import logging, os\nos.environ.get('PUT_AWAY_LOGS')\nLOG = logging.getLogger('put_away.logs')\n"
        "LOG.addHandler(logging.StreamHandler())\nLOG.addFilter(lambda _: True)\n"
        "LOG.setLevel(10)\nLOG.propagate = False\n"
    )
    (folder / "put_away_logs_user.py").write_text("import put_away_logs\n")
    stash.load("put_away_logs")
    stash.load("put_away_logs_user")
    logger = logging.getLogger("put_away.logs")

    def state() -> tuple[object, ...]:
        return len(logger.handlers), len(logger.filters), logger.level, logger.propagate

    def task() -> None:
        logger.addHandler(logging.NullHandler())
        importlib.import_module("put_away_logs")
        assert state() == (2, 1, 10, False)
        logger.handlers.clear()
        importlib.import_module("put_away_logs_user")
        assert state() == (0, 1, 10, False)

    def other_task() -> None:
        os.environ["PUT_AWAY_LOGS"] = "imports it anew"
        importlib.import_module("put_away_logs")
        assert state() == (1, 1, 10, False)

    assert state() == (0, 0, 0, True)
    in_a_task(task)
    in_a_task(other_task)


def test_what_it_registers_for_the_end_of_the_process_runs_at_the_end_of_tasks_that_import_it(
    stash: Stash, folder: Path, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    (folder / "put_away_ends.py").write_text(
        "import atexit\nfrom atexit import register\n"
        f"def end(word):\n    open({str(ran)!r}, 'a').write(word)\n"
        "atexit.register(end, 'no')\natexit.unregister(end)\n"
        "atexit.register(end, 'first')\nregister(end, word='last ')\n"
    )
    (folder / "put_away_ends_user.py").write_text("import put_away_ends\n")
    known = atexit._ncallbacks()
    stash.load("put_away_ends")
    stash.load("put_away_ends_user")
    assert atexit._ncallbacks() == known

    def task(name: str) -> None:
        atexit._clear()  # as Airflow does
        module = importlib.import_module(name)
        assert getattr(module, "register", atexit.register) is atexit.register
        atexit._run_exitfuncs()

    in_a_task(lambda: task("put_away"))
    assert not ran.exists()
    for name in ("put_away_ends", "put_away_ends_user"):
        in_a_task(lambda name=name: task(name))  # type: ignore[misc]
        assert ran.read_text() == "last first"
        ran.unlink()


@pytest.mark.parametrize(
    "scan",
    [
        "dict(os.environ)",
        "os.environ.copy()",
        "{name: value for name, value in os.environ.items()}",
        "[name for name in os.environ if name.startswith('PUT_AWAY_')]",
        "sorted(os.environ.keys())",
        "len(os.environ)",
        "repr(os.environ)",
        "os.environb.get(b'PUT_AWAY_NEW')",
        "list(os.environb)",
    ],
)
def test_what_reads_all_variables_is_imported_anew_when_a_task_has_set_one(
    stash: Stash, folder: Path, scan: str
) -> None:
    (folder / "put_away_scans.py").write_text(f"import os\nFOUND = {scan}\n")
    stash.load("put_away_scans")
    ahead = stash.modules_of("put_away_scans")["put_away_scans"]

    def task(*, sets: bool) -> bool:
        if sets:
            os.environ["PUT_AWAY_NEW"] = "mine"
        return (importlib.import_module("put_away_scans") is ahead) is not sets

    in_a_task(lambda: task(sets=False))
    in_a_task(lambda: task(sets=True))


def test_what_a_task_takes_out_is_imported_anew(stash: Stash, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PUT_AWAY", raising=False)
    for name in ("put_away", "put_away.later", "put_away_user"):
        stash.load(name)

    def task() -> None:
        first = importlib.import_module("put_away")
        first.COPIES.append(1)
        del sys.modules["put_away"]
        second = importlib.import_module("put_away")
        assert second is not first
        assert second.COPIES == []
        assert importlib.import_module("put_away_user").put_away is second

    def other_task() -> None:
        ahead = importlib.import_module("put_away.inner")
        del sys.modules["put_away.inner"]
        assert importlib.import_module("put_away.inner") is not ahead

    in_a_task(task)
    in_a_task(other_task)


def test_numpy_draws_other_numbers_in_each_task() -> None:
    script = """
import os, sys
from air_executor.runner.stash import stash
for name in ("numpy", "numpy.random"):
    stash.load(name, is_lasting=True)
for _ in range(3):
    if not os.fork():
        assert "numpy" not in sys.modules
        import numpy
        assert numpy is stash.modules_of("numpy")["numpy"]
        os.write(1, f"{numpy.random.random()} {numpy.arange(6).sum()}\\n".encode())
        os._exit(0)
    os.wait()
"""
    lines = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split(
        "\n"
    )
    numbers = [line.split() for line in lines if line]
    assert len({number for number, _ in numbers}) == 3
    assert [total for _, total in numbers] == ["15"] * 3
