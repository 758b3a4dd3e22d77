"""What Python's standard library lacks on macOS, and a way to run without it on Linux.

A folder of this name is put on ``PYTHONPATH``: every Python that starts with it then takes its system for macOS, and
finds neither ``/proc`` nor the functions below. What the C library, psutil and Airflow do is still Linux's.
"""

from __future__ import annotations

import builtins
import errno
import importlib
import io
import os
import select
import selectors
import sys
import sysconfig
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: The folder that makes it so.
FOLDER = Path(__file__).with_name("on_macos")

#: By module: what CPython 3.10 to 3.12 does not have there, of what it has on Linux. A star stands for any ending.
LACKING = {
    "os": """
        EFD_* GRND_* MFD_* O_DIRECT O_LARGEFILE O_NOATIME O_PATH O_RSYNC O_TMPFILE P_ALL P_PGID P_PID P_PIDFD
        POSIX_FADV_* SCHED_BATCH SCHED_IDLE SCHED_RESET_ON_FORK SPLICE_* TFD_* XATTR_* CLONE_*
        copy_file_range eventfd eventfd_read eventfd_write fdatasync getrandom getresgid getresuid getxattr listxattr
        memfd_create pidfd_open pipe2 posix_fadvise posix_fallocate posix_openpt removexattr sched_getaffinity
        sched_getparam sched_getscheduler sched_param sched_rr_get_interval sched_setaffinity sched_setparam
        sched_setscheduler setns setresgid setresuid setxattr splice timerfd_* unshare waitid waitid_result
    """,
    "signal": """
        SIGCLD SIGPOLL SIGPWR SIGRTMAX SIGRTMIN SIGSTKFLT pidfd_send_signal sigtimedwait sigwaitinfo struct_siginfo
    """,
    "socket": """
        AF_CAN AF_NETLINK AF_PACKET AF_TIPC IP_TRANSPARENT MSG_CMSG_CLOEXEC MSG_CONFIRM MSG_ERRQUEUE MSG_FASTOPEN
        MSG_MORE MSG_NOSIGNAL SCM_CREDENTIALS SOCK_CLOEXEC SOCK_NONBLOCK SO_BINDTODEVICE SO_DOMAIN SO_MARK SO_PASSCRED
        SO_PASSSEC SO_PEERCRED SO_PEERSEC SO_PRIORITY SO_PROTOCOL TCP_CORK TCP_DEFER_ACCEPT TCP_LINGER2 TCP_QUICKACK
        TCP_SYNCNT TCP_USER_TIMEOUT TCP_WINDOW_CLAMP
    """,
    "select": "EPOLL* epoll",
    "time": "CLOCK_BOOTTIME CLOCK_TAI pthread_getcpuclockid",
    "resource": """
        RLIMIT_MSGQUEUE RLIMIT_NICE RLIMIT_OFILE RLIMIT_RTPRIO RLIMIT_RTTIME RLIMIT_SIGPENDING RUSAGE_THREAD prlimit
    """,
    "fcntl": "F_ADD_SEALS F_GETPIPE_SZ F_GETSIG F_GET_SEALS F_NOTIFY F_OFD_* F_SEAL_* F_SETPIPE_SZ F_SETSIG",
    "mmap": "MADV_COLLAPSE MADV_DONTDUMP MADV_DONTFORK MADV_HUGEPAGE MADV_NOHUGEPAGE MAP_DENYWRITE MAP_POPULATE",
}

#: What is imported before: in these, "macOS" would be more than a name.
_AS_THEY_ARE = """
    asyncio ctypes.util multiprocessing.util platform psutil shutil socket ssl subprocess urllib.request uuid
"""


def is_lacking(module: str, name: str) -> bool:
    """Tell whether a module of the standard library has no such name on macOS."""
    patterns = LACKING.get(module, "").split()
    return any(name.startswith(each[:-1]) if each.endswith("*") else name == each for each in patterns)


def pretend() -> None:
    """Let this process take its system for macOS."""
    for name in _AS_THEY_ARE.split():
        importlib.import_module(name)
    sysconfig.get_config_vars()
    # The selector with a descriptor of its own stands for that of macOS, which has one, too.
    selectors.select = types.SimpleNamespace(**vars(select))  # type: ignore[attr-defined]
    for name in LACKING:
        module = importlib.import_module(name)
        for attribute in [each for each in vars(module) if is_lacking(name, each)]:
            delattr(module, attribute)
    for owner, name in ((builtins, "open"), (io, "open"), *((os, each) for each in _LOOKING)):
        setattr(owner, name, _without_proc(getattr(owner, name)))
    tempfile._O_TMPFILE_WORKS = False  # type: ignore[attr-defined]
    sys.platform = "darwin"


#: Functions of ``os`` that look at files; those of ``os.path`` and ``pathlib`` call them.
_LOOKING = ("open", "stat", "lstat", "listdir", "scandir", "readlink")


def _is_proc(path: Any) -> bool:
    text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
    return text == "/proc" or text.startswith("/proc/")


def _is_psutil() -> bool:
    # On macOS it asks the kernel, and here it has to find what it needs. Between it and us may be one of os.path.
    caller = sys._getframe(2)
    frames = [caller, caller.f_back or caller]
    return any(f"{os.sep}psutil{os.sep}" in frame.f_code.co_filename for frame in frames)


def _without_proc(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
        if _is_proc(path) and not _is_psutil():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return function(path, *args, **kwargs)

    return call
