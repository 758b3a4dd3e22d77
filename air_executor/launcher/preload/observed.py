"""Observing an import while it runs: what it reads from outside, what it prints and logs, what it starts.

Audit hooks can't be removed, and nothing that is replaced here is restored: use it in processes that are thrown away.
"""

from __future__ import annotations

import ctypes
import datetime
import functools
import gc
import importlib.machinery
import logging
import os
import sys
import sysconfig
import tempfile
import time
import types
import warnings
from collections.abc import Callable
from typing import Any

#: What may be read of the machine, as it is the same for all tasks there.
_MACHINE = (
    "/dev/null /dev/urandom /dev/random /etc/localtime /etc/ld.so.cache /usr/share/zoneinfo /usr/lib /usr/lib64 /lib "
    "/lib64 /usr/local/lib /proc/cpuinfo /proc/stat /proc/sys /proc/self/maps /proc/self/status /proc/self/task "
    "/sys/devices /sys/fs/cgroup"
).split()

#: Where systems keep certificates. An import may look which of these folders there are.
_TRUST = ("/etc/ssl", "/etc/pki")

#: Audit events: a process is started.
_PROCESSES = frozenset(
    "subprocess.Popen os.system os.exec os.posix_spawn os.spawn os.fork os.forkpty os.startfile pty.spawn".split()
)

#: Audit events: something talks to other processes or machines.
_TALK = frozenset(
    "socket.connect socket.getaddrinfo socket.gethostbyname socket.gethostbyaddr socket.getnameinfo socket.sendto "
    "socket.sendmsg urllib.Request http.client.connect ftplib.connect smtplib.connect sqlite3.connect syslog.openlog "
    "syslog.syslog os.kill os.killpg signal.pthread_kill".split()
)

#: Audit events: a file is changed; the first argument is its path.
_CHANGES = frozenset(
    "os.mkdir os.rename os.remove os.rmdir os.link os.symlink os.chmod os.chown os.truncate os.utime os.setxattr "
    "tempfile.mkstemp tempfile.mkdtemp shutil.copyfile shutil.move shutil.rmtree".split()
)

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

#: An import may read at most this many files outside of installed packages.
_FILES = 50

#: Files of modules that search for modules.
_SEEKERS = ("<frozen importlib", "<frozen zipimport", os.sep + os.path.join("importlib", "metadata"))


class Observer:
    """Observes an import.

    Create it before the processes are forked whose modules are compared: both need the same replaced functions.
    """

    def __init__(self) -> None:
        """Replace functions and install the audit hook; observe nothing yet."""
        self.objections: list[str] = []
        self.files: dict[str, None] = {}
        """Files outside of installed packages that were read or looked for. A dict for its order."""
        self.order = _Order()
        self._is_on = False
        self._folders = own_folders()
        self._allowed = (*(folder + os.sep for folder in self._folders), *(f"{each}/" for each in _MACHINE))
        self._put: dict[str, str] = {}
        _make_clock_shiftable()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = (open(fd, "w", errors="replace", closefd=False) for fd in (1, 2))  # noqa: SIM115
        self._wrap(os, "stat", "lstat", "access", "readlink")
        self._refuse(__import__("codecs"), "register", "registers a codec")
        self._refuse(__import__("codecs"), "register_error", "registers a handler of codecs' errors")
        warnings.showwarning = self._warning  # type: ignore[assignment]
        logging.root.addHandler(_Records(self._object))
        sys.meta_path.insert(0, self.order)
        sys.addaudithook(self._on_event)

    def prepare(self, shift_s: float) -> None:
        """In the observed process: capture what it prints, and set its clock ``shift_s`` seconds ahead."""
        shift_clock(shift_s)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process)
        for fd in (1, 2):
            os.dup2(self._said.fileno(), fd)

    def __enter__(self) -> Observer:
        self._is_on = self.order.is_on = True
        return self

    def __exit__(self, *_: object) -> None:
        self._is_on = self.order.is_on = False
        self.order.finish()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if said := os.pread(self._said.fileno(), 200, 0).decode(errors="replace").strip():
            self._object(f"prints: {said.splitlines()[0]}")
        for name, value in self._put.items():
            if os.environ.get(name, "") != value:
                self._object(f"sets the variable {name} behind os.environ")

    def _object(self, reason: str) -> None:
        if len(self.objections) < 20 and reason not in self.objections:
            self.objections.append(reason)

    def _note(self, path: Any) -> None:
        text = _text(path)
        if text.startswith(("/proc/", "/sys/", "/dev/")) or len(self.files) >= _FILES:
            self._object(f"reads {text}")
        self.files[text] = None

    def _warning(self, message: object, category: type[Warning], *_: object) -> None:
        if not _shift_s:  # a warning that depends on the shifted clock does not count
            self._object(f"warns: {category.__name__}: {message}")

    def _wrap(self, module: types.ModuleType, *names: str) -> None:
        for name in names:
            real = getattr(module, name)
            wrapper = functools.partial(self._look, real)
            functools.update_wrapper(wrapper, real)
            for supported in (
                os.supports_fd,
                os.supports_follow_symlinks,
                os.supports_dir_fd,
                os.supports_effective_ids,
            ):
                if real in supported:
                    supported.add(wrapper)
            setattr(module, name, wrapper)

    def _look(self, real: Callable[..., Any], path: Any, *args: Any, **kwargs: Any) -> Any:
        if self._is_on and not _text(path).startswith(_TRUST) and not self._is_allowed(path) and not _is_search():
            self._note(path)
        return real(path, *args, **kwargs)

    def _refuse(self, module: types.ModuleType, name: str, reason: str) -> None:
        real = getattr(module, name)

        @functools.wraps(real)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            code = sys._getframe(1).f_code
            if self._is_on and not code.co_filename.startswith(_standard_library()):
                self._object(f"{reason} ({code.co_filename}:{sys._getframe(1).f_lineno})")
            return real(*args, **kwargs)

        setattr(module, name, wrapper)

    def _on_event(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._is_on:
            return
        try:
            self._judge(event, args)
        except Exception as error:  # an exception of a hook would be raised in the observed code
            self._object(f"could not be observed at {event}: {error}")

    def _judge(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            self._on_open(*args[:3])
        elif event in ("os.listdir", "os.scandir"):
            if not self._is_allowed(args[0] or ".") and not _is_search():
                self._note(args[0] or ".")
        elif event in _PROCESSES:
            self._object(f"starts a process: {event}: {_text(args[0] if args else '')}")
        elif event in _TALK:
            self._object(f"talks to others: {event}")
        elif event in _CHANGES:
            if not self._is_bytecode(args[0] if args else ""):
                self._object(f"changes files: {event}: {_text(args[0] if args else '')}")
        elif event == "sys.addaudithook":
            self._object("adds an audit hook")
        elif event in ("os.putenv", "os.unsetenv"):
            value = os.fsdecode(args[1]) if event == "os.putenv" else ""
            self._put[os.fsdecode(args[0])] = value

    def _on_open(self, path: Any, mode: Any, flags: Any) -> None:
        if isinstance(path, int) or path is None:
            return
        flags = flags if isinstance(flags, int) else 0
        writes = flags & _WRITING or (isinstance(mode, str) and set(mode) & set("wax+"))
        if writes and not self._is_bytecode(path) and not _text(path).startswith("/dev/"):
            self._object(f"writes {_text(path)}")
        elif not writes and not self._is_allowed(path) and not _is_search():
            self._note(path)

    def _is_allowed(self, path: Any) -> bool:
        if isinstance(path, int):
            return True
        # Not realpath: it asks the file system, which would call this again.
        text = os.path.normpath(os.path.join(_START, _text(path)))
        return (
            text in _MACHINE
            or text == "/proc/self"
            or text.startswith(self._allowed)
            or text in self._folders
            or any(folder.startswith(text.rstrip(os.sep) + os.sep) for folder in self._folders)
        )

    def _is_bytecode(self, path: Any) -> bool:
        return f"{os.sep}__pycache__" in _text(path) and self._is_allowed(path)


#: Where relative paths start; if the working directory was removed, at the root, where nothing of ours is.
try:
    _START = os.getcwd()
except FileNotFoundError:
    _START = os.sep


class _Order:
    """A finder that finds nothing, and notes in which order modules are imported."""

    def __init__(self) -> None:
        self.is_on = False
        self.roots: list[str] = []
        """Modules that were imported from outside their own package, in the order in which their imports ended."""
        self._running: list[tuple[str, bool]] = []

    def find_spec(self, name: str, *_: object) -> None:
        """Find nothing."""
        if self.is_on:
            self._pop_finished()
            top = name.partition(".")[0]
            is_root = all(other.partition(".")[0] != top for other, _ in self._running)
            self._running.append((name, is_root))

    def finish(self) -> None:
        """Note the imports that are still open as ended."""
        self._pop_finished(all_of_them=True)

    def _pop_finished(self, *, all_of_them: bool = False) -> None:
        while self._running:
            name, is_root = self._running[-1]
            spec = getattr(sys.modules.get(name), "__spec__", None)
            if getattr(spec, "_initializing", False) and not all_of_them:
                return
            self._running.pop()
            if is_root and name in sys.modules and name not in self.roots:
                self.roots.append(name)


class _Records(logging.Handler):
    """Reports what is logged."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(f"logs: {record.name}: {record.getMessage()}")


def own_folders() -> tuple[str, ...]:
    """Return the folders of the standard library and of installed packages."""
    paths = [os.path.dirname(os.__file__), *map(_path_of, _INSTALLED)]
    return tuple({each for path in paths for each in (os.path.normpath(path), os.path.realpath(path))})


_INSTALLED = ("purelib", "platlib")


def installed_folders() -> tuple[str, ...]:
    """Return the folders of installed packages, each with a separator at its end."""
    paths = [_path_of(name) for name in _INSTALLED]
    return tuple({each + os.sep for path in paths for each in (os.path.normpath(path), os.path.realpath(path))})


def _path_of(name: str) -> str:
    return str(sysconfig.get_path(name))


def _standard_library() -> tuple[str, ...]:
    folder = os.path.dirname(os.__file__)
    return (folder + os.sep, os.path.realpath(folder) + os.sep, "<frozen ")


def stray_module(name: str) -> str | None:
    """Return where a module comes from, unless from an installed package or the standard library."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    origin = getattr(spec, "origin", None)
    if origin in ("built-in", "frozen"):
        return None
    places = [origin] if origin else list(getattr(module, "__path__", ()))
    folders = (*installed_folders(), *_standard_library())
    for place in places:
        if not isinstance(place, str) or not (place.startswith(folders) or os.path.realpath(place).startswith(folders)):
            return str(place)
    return None


def stray_package(name: str) -> str | None:
    """Return where the outermost package of ``name`` is, unless it is among the installed packages."""
    top = name.partition(".")[0]
    spec = importlib.machinery.PathFinder.find_spec(top)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {top!r}")
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    folders = installed_folders()
    for place in places:
        if not (place.startswith(folders) or os.path.realpath(place).startswith(folders)):
            return str(place)
    return None


def _is_search() -> bool:
    """Tell whether a search for modules, and not the modules themselves, asks the file system."""
    frame: types.FrameType | None = sys._getframe(2)
    for _ in range(8):
        if frame is None:
            return False
        if frame.f_code.co_filename != __file__ and any(each in frame.f_code.co_filename for each in _SEEKERS):
            return "_bootstrap>" not in frame.f_code.co_filename
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return False
        frame = frame.f_back
    return False


def _text(path: Any) -> str:
    try:
        return os.fsdecode(path)
    except (TypeError, ValueError):
        return str(path)


#: How far this process's clock is ahead, in seconds. A global, not a closure: modules that keep the functions below
#: have to look alike in both processes.
_shift_s = 0.0


def shift_clock(shift_s: float) -> None:
    """Set the clock that this process's Python code sees ``shift_s`` seconds ahead."""
    global _shift_s
    _shift_s = shift_s


def _make_clock_shiftable() -> None:
    real = {name: getattr(time, name) for name in ("time", "time_ns", "localtime", "gmtime", "ctime", "strftime")}

    def shifted_time() -> float:
        return float(real["time"]() + _shift_s)

    def shifted_time_ns() -> int:
        return int(real["time_ns"]() + int(_shift_s) * 10**9)

    def of_moment(name: str) -> Callable[..., Any]:
        def shifted(seconds: float | None = None) -> Any:
            return real[name](shifted_time() if seconds is None else seconds)

        return shifted

    def shifted_strftime(format: str, *moment: Any) -> str:
        return str(real["strftime"](format, *(moment or (time.localtime(),))))

    before = datetime.date.today()
    time.time, time.time_ns, time.strftime = shifted_time, shifted_time_ns, shifted_strftime
    time.localtime, time.gmtime, time.ctime = of_moment("localtime"), of_moment("gmtime"), of_moment("ctime")
    _shift(datetime.datetime, "now", "utcnow")
    shift_clock(3 * 86400.0)
    if datetime.date.today() == before:  # where it does not ask time.time()
        _shift(datetime.date, "today")
    shift_clock(0.0)


def _shift(kind: type, *names: str) -> None:
    # The dict with the methods of a type written in C can be reached through the garbage collector only.
    [methods] = [each for each in gc.get_referents(kind.__dict__) if type(each) is dict]

    def shifted(method: Any) -> Any:
        def call(cls: type, *args: Any, **kwargs: Any) -> Any:
            return method.__get__(None, cls)(*args, **kwargs) + datetime.timedelta(seconds=_shift_s)

        return classmethod(call)

    for name in names:
        methods[name] = shifted(methods[name])
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(kind))
