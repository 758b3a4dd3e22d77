"""What a launcher imports ahead, and what it leaves to the tasks."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import platform
import signal
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from air_executor.launcher.exec import Spawn
from air_executor.launcher.order import Order
from air_executor.launcher.preload import preloader as preload
from air_executor.launcher.preload.preloader import Preloader, Verdict, read_verdicts
from air_executor.launcher.server import spares
from air_executor.launcher.server.spares import Spares
from air_executor.runner.imports import new_packaged_modules
from air_executor.runner.stash import names, stash
from air_executor.runs.backend import RunRequest
from air_executor.runs.imported import write_preload
from air_executor.runs.store import RunStore
from tests.support.airflow_env import config
from tests.unit.documents import identity, record
from tests.unit.trials import Trials, learn, seen_in_a_task

SLOW = "sum(range(2_000_000))\n"

#: Packages that are installed for these tests, with what they do when they are imported.
PACKAGES = {
    "ahead_slow/__init__.py": SLOW + "from . import inner\n",
    "ahead_slow/inner.py": "",
    "ahead_slow/later.py": "",
    "ahead_cheap.py": "",
    "ahead_threads.py": SLOW
    + "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
    "ahead_waits.py": "import time; time.sleep(0.2)",
    "ahead_sockets.py": SLOW + "import socket; kept = socket.socket()",
    "ahead_fails.py": SLOW + "raise RuntimeError('not today')",
    "ahead_dies.py": "import os; os._exit(0)",
}

#: Those of which the import takes next to no processor time.
CHEAP = ("ahead_cheap", "ahead_waits")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages."""
    folder = tmp_path / "site-packages"
    for name, text in PACKAGES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    paths = {"purelib": str(folder), "platlib": str(folder)}
    monkeypatch.setattr(sysconfig, "get_path", lambda name: paths[name])
    monkeypatch.syspath_prepend(folder)
    gc.collect()  # nothing that others have dropped is closed while a package is tried
    yield folder
    forget_all()


@pytest.fixture(scope="module")
def trials() -> Iterator[Trials]:
    with Trials() as trials:
        yield trials


def forget_all() -> None:
    """Let nothing have been imported ahead."""
    stash.__init__()  # type: ignore[misc]
    sys.meta_path[:] = [each for each in sys.meta_path if each is not stash]
    for name in [name for name in sys.modules if name.startswith("ahead_")]:
        del sys.modules[name]


def test_new_modules_of_installed_packages_are_noted_in_the_process_of_a_task(packages: Path, tmp_path: Path) -> None:
    (tmp_path / "ahead_of_the_user.py").write_text("import ahead_slow")
    known = len(sys.modules)
    sys.path.insert(0, str(tmp_path))
    try:
        __import__("ahead_of_the_user")
    finally:
        sys.path.remove(str(tmp_path))
    assert set(new_packaged_modules(known)) == {"ahead_slow", "ahead_slow.inner"}
    assert new_packaged_modules(len(sys.modules)) == []


def test_what_takes_time_and_does_no_harm_is_imported_ahead_and_remembered(store: RunStore, packages: Path) -> None:
    preloader = Preloader(store)
    assert not preloader.has_imported
    learn(preloader, store, "ahead_slow.inner", "ahead_slow.later", "ahead_slow")
    assert {"ahead_slow", "ahead_slow.inner", "ahead_slow.later"} <= set(names())
    assert "ahead_slow" not in sys.modules
    assert preloader.has_imported
    [verdict] = read_verdicts(store)
    assert (verdict.package, verdict.refused) == ("ahead_slow", None)
    assert verdict.modules == ["ahead_slow", "ahead_slow.later"]
    assert verdict.seconds >= preload._PAYS_S

    forget_all()
    preloader = Preloader(store)
    assert not preloader.has_imported
    preloader.import_remembered()
    assert set(verdict.modules) <= set(names())
    assert preloader.has_imported


def test_trying_a_package_leaves_no_files(
    store: RunStore, packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    learn(Preloader(store), store, "ahead_slow")
    assert "ahead_slow" in names()
    assert list(place.iterdir()) == []


def test_what_a_launcher_has_died_of_is_not_imported_by_the_next_one(
    store: RunStore, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn(Preloader(store), store, "ahead_slow.inner", "ahead_slow")
    assert [each.refused for each in read_verdicts(store)] == [None]
    pid = os.fork()
    if not pid:
        monkeypatch.setattr(stash, "load", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        with contextlib.suppress(BaseException):
            Preloader(store).import_remembered()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    Preloader(store).import_remembered()
    (verdict,) = read_verdicts(store)
    assert verdict.refused == "its import has ended or blocked a launcher"
    assert list(store.root.glob("importing.*")) == []


def test_runners_that_begin_and_end_while_a_launcher_imports_are_nothing_of_the_package(
    store: RunStore, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children: list[int] = []

    def load(*_: Any, **__: Any) -> None:
        children.append(os.fork() or os._exit(0))  # type: ignore[func-returns-value]

    preloader = Preloader(store)
    with monkeypatch.context() as patch:
        patch.setattr(stash, "load", load)
        learn(preloader, store, "ahead_slow")
    os.waitpid(children[0], 0)
    assert [verdict.refused for verdict in read_verdicts(store)] == [None]


def test_what_only_one_task_has_imported_is_left_alone(store: RunStore, packages: Path) -> None:
    preloader = Preloader(store)
    preloader.take_note(seen_in_a_task(store, "ahead_slow"))
    assert preloader.candidate() is None


@pytest.mark.parametrize(
    ("package", "why"),
    [
        ("ahead_cheap", "takes no time"),
        ("ahead_waits", "takes no time"),
        ("ahead_threads", "starts threads"),
        ("ahead_sockets", "opens socket:"),
        ("ahead_fails", "cannot be imported: RuntimeError: not today"),
        ("ahead_dies", "its import ends or blocks the process"),
        ("ahead_is_not_there", "ModuleNotFoundError"),
    ],
)
def test_what_is_of_no_use_or_does_not_survive_a_fork_is_left_to_the_tasks(
    store: RunStore, packages: Path, monkeypatch: pytest.MonkeyPatch, package: str, why: str
) -> None:
    if package in CHEAP:
        monkeypatch.setattr(preload, "_PAYS_S", 0.1)
    preloader = Preloader(store)
    learn(preloader, store, package)
    assert package not in stash
    assert not preloader.has_imported
    [verdict] = read_verdicts(store)
    assert why in (verdict.refused or "")
    assert verdict.is_cheap is (package in CHEAP)
    again = Preloader(store)
    again.take_note(seen_in_a_task(store, package))
    again.take_note(seen_in_a_task(store, package))
    assert again.candidate() is None


def test_other_installed_packages_are_tried_anew(store: RunStore, packages: Path) -> None:
    learn(Preloader(store), store, "ahead_fails")
    (packages / "ahead_fails.py").write_text(SLOW)
    os.utime(packages, (1, 1))  # an upgrade
    preloader = Preloader(store)
    learn(preloader, store, "ahead_fails")
    assert "ahead_fails" in stash


def test_what_is_excluded_is_never_imported_ahead(store: RunStore, packages: Path) -> None:
    learn(Preloader(store), store, "ahead_slow")
    forget_all()
    preloader = Preloader(store, ["ahead_slow"])
    preloader.import_remembered()
    learn(preloader, store, "ahead_slow", "ahead_slow.inner")
    assert "ahead_slow" not in stash


#: What an import may do that every task of every DAG would find, or that a later task would work with; and the reason.
HARMFUL = {
    "time.sleep": ("import time; time.sleep = lambda seconds: None", "replaces time.sleep"),
    "a builtin": ("import builtins; builtins.print = lambda *_: None", "replaces builtins.print"),
    "a new builtin": ("import builtins; builtins.ahead_profile = 1", "adds builtins.ahead_profile"),
    "a method": (
        "import json; json.JSONEncoder.default = lambda self, o: 1",
        "replaces json.encoder.JSONEncoder.default",
    ),
    "code": ("import json; json.dumps.__code__ = (lambda *_, **__: '').__code__", "replaces the code of json.dumps"),
    "a module": ("import sys, types; sys.modules['json'] = types.ModuleType('json')", "replaces the module json"),
    "the environment": ("import os; os.environ['PATH'] = '/nowhere'", "changes the environment: PATH"),
    "environ's back": ("import os; os.putenv('AHEAD_BEHIND', '1')", "sets the variable AHEAD_BEHIND behind os.environ"),
    "SIGTERM": ("import signal; signal.signal(signal.SIGTERM, lambda *_: None)", "changes signal handlers"),
    "blocked signals": ("import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])", "blocks signals"),
    "a timer": ("import signal; signal.setitimer(signal.ITIMER_VIRTUAL, 3600)", "starts a timer"),
    "root's handlers": ("import logging; logging.root.addHandler(logging.NullHandler())", "changes the logger root"),
    "root's level": ("import logging; logging.root.setLevel(1)", "changes the logger root"),
    "a logger": ("import logging; logging.getLogger('asyncio').setLevel(1)", "changes the logger asyncio"),
    "a child": ("import subprocess; kept = subprocess.Popen(['sleep', '60'])", "leaves a child process"),
    "a child that ended": ("import subprocess; subprocess.run(['true'])", "starts a process"),
    "a fork": ("import os; os.fork() or os._exit(0); os.wait()", "starts a process: os.fork"),
    "umask": ("import os; os.umask(0o123)", "changes the umask"),
    "cwd": ("import os; os.chdir('/usr')", "changes the working directory"),
    "locale": (
        "import locale; locale.setlocale(locale.LC_ALL, 'C' if locale.setlocale(locale.LC_ALL) != 'C' else 'C.UTF-8')",
        "changes the locale",
    ),
    "limits": ("import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (200, r.getrlimit(r.RLIMIT_NOFILE)[1]))", "limits"),
    "scheduling": ("import os; os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))", "changes the scheduling"),
    "tiny numbers": (
        "import ctypes\nlibm, state = ctypes.CDLL('libm.so.6'), (ctypes.c_uint32 * 8)()\nlibm.fegetenv(state)\n"
        "state[7] |= 0x8040\nlibm.fesetenv(state)\ndel libm, state",
        "changes how the processor calculates",
    ),
    "rounding": ("import ctypes; ctypes.CDLL('libm.so.6').fesetround(0xC00)", "changes how the processor calculates"),
    "shared memory": ("import mmap; kept = mmap.mmap(-1, 4096)", "shares memory with processes that are forked"),
    "an open file": ("kept = open(__file__, 'rb')", "opens /"),
    "a context variable": (
        "import contextvars; kept = contextvars.ContextVar('ahead'); kept.set(1)",
        "sets context variables: ahead",
    ),
    "errors of NumPy": ("import numpy; numpy.seterr(all='raise')", "sets context variables: numpy"),
    "output of NumPy": ("import numpy; numpy.set_printoptions(precision=2)", "sets context variables: "),
    "fields": ("import csv; csv.field_size_limit(1 << 20)", "changes the limit of fields of CSV files"),
    "stacks": ("import threading; threading.stack_size(1 << 20)", "changes the stack size of threads"),
    "memory": ("import tracemalloc; tracemalloc.start()", "traces memory allocations"),
    "loading": (
        "import os, sys; sys.setdlopenflags(sys.getdlopenflags() ^ os.RTLD_GLOBAL)",
        "changes how extension modules are loaded",
    ),
    "translations": ("import locale; locale.textdomain('ahead')", "changes the domain of translations"),
    "nice": ("import os; os.nice(1)", "changes priorities"),
    "timeouts": ("import socket; socket.setdefaulttimeout(3)", "changes the default timeout of sockets"),
    "sys.path": ("import sys; sys.path.append('/ahead')", "changes sys.path"),
    "finders": ("import sys; sys.meta_path.insert(0, type('F', (), {'find_spec': lambda *_: None}))", "sys.meta_path"),
    "hooks": ("import sys; sys.excepthook = lambda *_: None", "replaces sys.excepthook"),
    "the stack": ("import sys; sys.setrecursionlimit(4321)", "changes settings of the interpreter"),
    "switches": ("import sys; sys.setswitchinterval(0.5)", "changes settings of the interpreter"),
    "profilers": ("import threading; threading.setprofile(lambda *_: None)", "replaces threading._profile_hook"),
    "collection": ("import gc; gc.disable()", "changes settings of the interpreter"),
    "an audit hook": ("import sys; sys.addaudithook(lambda *_: None)", "adds an audit hook"),
    "decimals": ("import decimal; decimal.getcontext().prec = 5", "changes the context of decimal"),
    "processes": ("import multiprocessing as m; m.set_start_method('spawn', force=True)", "multiprocessing"),
    "event loops": (
        "import asyncio; asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())",
        "_event_loop_policy",
    ),
    "types of files": ("import mimetypes; mimetypes.add_type('a/b', '.ahead')", "mimetypes"),
    "codecs": ("import codecs; codecs.register(lambda _: None)", "registers a codec"),
    "a seeded generator": ("import random; random.seed(1)", "draws from or seeds the random generator"),
    "warning filters": ("import warnings; warnings.resetwarnings()", "takes warning filters away"),
    "output": ("print('hello')", "prints: hello"),
    "a warning": ("import warnings; warnings.warn('ahead', UserWarning)", "warns: UserWarning: ahead"),
    "a record": ("import logging; logging.getLogger('ahead').error('no')", "logs: ahead: no"),
    "the clock": ("import time; BORN = time.time()", "is not the same twice: ahead_harms.inner.BORN"),
    "the day": (
        "import datetime; TODAY = datetime.date.today().isoformat()",
        "is not the same twice: ahead_harms.inner.TODAY",
    ),
    "the month": ("import time; MONTH = time.strftime('%m')", "is not the same twice: ahead_harms.inner.MONTH"),
    "a year in a class": (
        "import datetime\nclass Report:\n  year = datetime.datetime.now().year",
        "is not the same twice: ahead_harms.inner.Report",
    ),
    "a cached clock": (
        "import functools, time\n@functools.cache\ndef born(): return time.time()\nborn()",
        "is not the same twice: ahead_harms.inner.born",
    ),
    "a generator": ("import random; rng = random.Random()", "is not the same twice: ahead_harms.inner.rng"),
    "a closure": (
        "import random\ndef make():\n  rng = random.Random()\n  return lambda: rng.random()\ndraw = make()",
        "is not the same twice: ahead_harms.inner.draw",
    ),
    "uuid": ("import uuid; ID = [{'id': uuid.uuid4()}]", "is not the same twice: ahead_harms.inner.ID"),
    "secrets": ("import secrets; TOKEN = secrets.token_hex()", "is not the same twice: ahead_harms.inner.TOKEN"),
    "a pid": ("import os; PID = os.getpid()", "is not the same twice: ahead_harms.inner.PID"),
    "where it is": ("import os; HERE = os.getcwd()", "is not the same twice: ahead_harms.inner.HERE"),
    "another's files": ("import pathlib; pathlib.Path('/tmp/ahead_harms').write_text('')", "writes /tmp/ahead_harms"),
    "the process's files": ("x = open('/proc/self/environ').read()", "reads /proc/self/environ"),
    "others": (
        "import socket\ntry: socket.getaddrinfo('localhost', 1)\nexcept OSError: pass",
        "talks to others: socket.getaddrinfo",
    ),
}


if platform.machine() != "x86_64":  # others keep the processor's settings elsewhere
    del HARMFUL["tiny numbers"], HARMFUL["rounding"]


@pytest.mark.parametrize("kind", HARMFUL)
def test_what_an_import_changes_or_takes_from_outside_keeps_it_from_being_imported_ahead(
    store: RunStore, packages: Path, trials: Trials, kind: str
) -> None:
    harm, why = HARMFUL[kind]
    # In a submodule, where it is seen as well.
    (packages / "ahead_harms").mkdir()
    (packages / "ahead_harms/__init__.py").write_text(SLOW + "from .inner import *")
    (packages / "ahead_harms/inner.py").write_text(harm)
    is_ahead = trials.accept(store, packages, "ahead_harms")
    [verdict] = read_verdicts(store)
    assert why in (verdict.refused or "imported ahead")
    assert not is_ahead


#: What an import may do, as no task that does not import it can tell.
HARMLESS = {
    "a seeded generator": "import random; rng = random.Random(4)",
    "its own state": "import re, logging; P = re.compile('a+'); L = logging.getLogger(__name__); D = {1: [P, L]}",
    "its own handlers": "import logging; L = logging.getLogger('ahead_fine'); L.addHandler(logging.NullHandler())",
    "the level of its logger": "import logging; logging.getLogger('ahead_fine').setLevel(logging.DEBUG)",
    "what to do at the end": "import atexit\nfrom atexit import register\nregister(print)",
    "a moment that is given": "import datetime; D = datetime.datetime(2020, 1, 1)",
    "its own data": "import pathlib; T = pathlib.Path(__file__).read_text()",
    "its version": "import importlib.metadata; V = importlib.metadata.version('orjson')",
    "a class for others": "import numbers\nclass N: pass\nnumbers.Number.register(N)",
    "what it puts back": "import os; os.environ['AHEAD'] = '1'; del os.environ['AHEAD']",
    "the environment, reading": "import os; HOME = os.environ.get('HOME')",
    "locks": "import threading; lock = threading.Lock(); local = threading.local()",
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_no_other_task_can_tell_is_imported_ahead(
    store: RunStore, packages: Path, trials: Trials, kind: str
) -> None:
    (packages / "ahead_fine.py").write_text(SLOW + HARMLESS[kind])
    is_ahead = trials.accept(store, packages, "ahead_fine")
    [verdict] = read_verdicts(store)
    assert verdict.refused is None
    assert is_ahead


def test_what_needs_a_package_that_sets_up_a_logger_is_imported_ahead_too(
    store: RunStore, packages: Path, trials: Trials
) -> None:
    (packages / "ahead_logs.py").write_text(
        SLOW + "import logging; logging.getLogger('of.ahead').addHandler(logging.NullHandler())"
    )
    (packages / "ahead_of_logs.py").write_text(SLOW + "import ahead_logs")
    assert trials.accept(store, packages, "ahead_logs", "ahead_of_logs")
    assert [verdict.refused for verdict in read_verdicts(store)] == [None, None]


def test_files_beside_installed_packages_are_compared_before_a_task_gets_what_reads_them(
    store: RunStore, packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    (tmp_path / "settings").write_text("")
    (packages / "ahead_reads.py").write_text(SLOW + f"TEXT = open({str(tmp_path / 'settings')!r}).read()")
    learn(Preloader(store), store, "ahead_reads")
    [verdict] = read_verdicts(store)
    assert verdict.files == {"ahead_reads": [str(tmp_path / "settings")]}


def test_what_is_not_of_an_installed_package_is_not_even_tried(
    store: RunStore, packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "dags"
    own.mkdir()
    (own / "ahead_of_a_dag.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(own)
    learn(Preloader(store), store, "ahead_of_a_dag")
    [verdict] = read_verdicts(store)
    assert (verdict.refused or "").startswith("is not of an installed package")
    assert not (tmp_path / "ran").exists()


def test_what_was_learned_is_not_forgotten_when_there_is_much_of_it(store: RunStore) -> None:
    reason = "x" * 300
    verdicts = [asdict(Verdict(f"package_{n}", [], 1.0, reason, "")) for n in range(4000)]
    write_preload(store, verdicts)
    known = [verdict.package for verdict in read_verdicts(store)]
    assert len(known) > 1000
    assert known[-1] == "package_3999"


@pytest.mark.parametrize("content", [b"{", b"{}", b"[1, null]", b'[{"package": 1}]', b'["../x", "a b", "os; x"]'])
def test_documents_that_make_no_sense_are_passed_over(store: RunStore, content: bytes) -> None:
    (store.root / "preload.json").write_bytes(content)
    run = record()
    store.create(run)
    (store.folder(run.id) / "imports.json").write_bytes(content)
    preloader = Preloader(store)
    preloader.import_remembered()
    for _ in range(3):
        preloader.take_note(run.id)
    assert preloader.candidate() is None
    assert read_verdicts(store) == []


def test_a_task_with_variables_of_its_own_finds_nothing_imported_ahead(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    executed: list[str] = []
    pids = itertools.count(1)

    def spawn_by_exec(*_: Any) -> Spawn:
        def spawn(order: Order) -> int:
            executed.append(order.id)
            return next(pids)

        return spawn

    monkeypatch.setattr(spares, "spawn_by_exec", spawn_by_exec)
    spare = SimpleNamespace(become_runner=lambda _: next(pids))
    monkeypatch.setattr(Spares, "_fork", lambda *_, **__: spare)
    waiting = Spares(store, config(store.root), lambda: None, died=lambda: None)
    for limits, is_executed in [
        ({"environment": {"A": "b"}}, True),
        ({"environment": {"A=": "can't be used"}}, False),
        ({"memory": "1GiB"}, False),
        (None, False),
    ]:
        request = RunRequest(id=str(uuid.uuid4()), identity=identity(), workload={}, air=limits)
        message = {"type": "start", "request": request.to_message()}
        waiting.spawn(Order.from_message(message, b""))
        assert (request.id in executed) is is_executed


def test_a_verdict_without_a_reason_is_not_cheap() -> None:
    assert not Verdict("p", ["p"], 1.0, None, "").is_cheap


@pytest.mark.core
def test_what_makes_requests_is_imported_ahead_where_airflow_is() -> None:
    """Airflow imports ``certifi``, and ``requests`` has that find its file."""
    look = """
        from air_executor.airflow import warmup
        from air_executor.launcher.preload.trial import hold
        warmup.warm_up(())
        print("refused:", hold(["requests"]).refused)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(look)], capture_output=True, text=True, timeout=400)
    assert done.stdout.splitlines()[-1:] == ["refused: None"], done.stdout + done.stderr
