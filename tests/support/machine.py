"""What a machine can run out of, for real: disk space, processes, and a clock that can be relied upon."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.waiting import wait_for

_CGROUPS = Path("/sys/fs/cgroup")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount, give files away and limit others")


class SmallDisk:
    """A file system of a few megabytes of its own, mounted at a folder."""

    def __init__(self, folder: Path, mebibytes: int = 8) -> None:
        self.folder = folder
        self.mebibytes = mebibytes

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        _run("mount", "-t", "tmpfs", "-o", f"size={self.mebibytes}m,mode=0700", "tmpfs", self.folder)
        try:
            yield
        finally:
            _run("umount", "--lazy", self.folder)

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Within this, nothing more can be written: what somebody removes makes no room either."""
        filler, is_over = self.folder / "filler", threading.Event()

        def fill() -> None:
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))

        def keep_full() -> None:
            while not is_over.wait(0.02):
                fill()

        with filler.open("wb", buffering=0) as file:
            fill()
            thread = threading.Thread(target=keep_full)
            thread.start()
            try:
                yield
            finally:
                is_over.set()
                thread.join()
                filler.unlink()

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """Within this, nothing can be changed. Files that are open stay what they were."""
        _run("mount", "--bind", self.folder, self.folder)
        try:
            _run("mount", "-o", "remount,bind,ro", self.folder)
            yield
        finally:
            _run("umount", "--lazy", self.folder)


@contextlib.contextmanager
def silent_disk(image: Path, mount: Path) -> Iterator[Path]:
    """A file system with a ``file``, whose writers are in uninterruptible sleep, as when a file server is gone."""
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(8 << 20)
    try:
        _run("mkfs.ext4", "-q", image)
        _run("mount", "-o", "loop", image, mount)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    try:
        (mount / "file").touch()
        _run("fsfreeze", "--freeze", mount)
        try:
            yield mount
        finally:
            _run("fsfreeze", "--unfreeze", mount)
    finally:
        _run("umount", "--lazy", mount)


@contextlib.contextmanager
def no_more_processes(process: psutil.Process) -> Iterator[Callable[[], bool]]:
    """Within this, ``process`` can't fork. What is yielded tells whether it has tried to."""
    parent = _CGROUPS / "pids" if (_CGROUPS / "pids").is_dir() else _CGROUPS
    group = parent / f"air-executor-test-{process.pid}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(process.pid))
        (group / "pids.max").write_text((group / "pids.current").read_text())
        yield lambda: (group / "pids.events").read_text().split() > ["max", "0"]
    finally:
        (group / "pids.max").write_text("max")
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):  # it has ended, or is about to
                (parent / "cgroup.procs").write_text(pid)
        with contextlib.suppress(OSError):
            group.rmdir()


def suspend_all(find: Callable[[], list[psutil.Process]], stopped: list[psutil.Process]) -> None:
    """Stop all processes that ``find`` returns, those too that are born meanwhile, and add each to ``stopped``."""

    def all_stand_still() -> bool:
        born = [each for each in find() if each not in stopped]
        for process in born:
            stopped.append(process)
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                process.suspend()
        return not born

    wait_for(all_stand_still, "everything to stand still", 120)


#: A process reads the clock's file again when the true time, in whole seconds, is more than this past its last look: a
#: second later than this at most. To read it at each look at the time costs an API server a minute.
_CACHED_S = 1


class Clock:
    """The time of day as it is told to processes that are started with :attr:`environment`."""

    def __init__(self, file: Path) -> None:
        import libfaketime

        self._file = file
        self._write("+0")
        library = Path(libfaketime.__file__).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
        assert library.exists()
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_CACHE_DURATION": str(_CACHED_S),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",  # files keep the time that they were given before
        }

    def shift(self, by: str, processes: Callable[[], list[psutil.Process]]) -> None:
        """Set the clock of all ``processes`` at once: ``by`` is as in "-1h", from the true time.

        They are stopped until what each has read is out of date. Without that, one that sees the new time would give
        another a token that is not valid yet.
        """
        stopped: list[psutil.Process] = []
        try:
            suspend_all(processes, stopped)
            self._write(by)
            time.sleep(_CACHED_S + 1)
        finally:
            for process in stopped:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()

    def _write(self, by: str) -> None:
        temporary = self._file.with_name(f".{self._file.name}")
        temporary.write_text(by + "\n")
        temporary.replace(self._file)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True)
