"""Whose a state directory is. One that others own, or may write to, is refused before anything is read or written.

Whoever can write files there decides what runs, with the rights of the user who works there: as with the ``.git`` of a
repository that somebody else has placed in a folder above (CVE-2022-24765).
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

from air_executor.errors import StateDirError

#: What AirExecutor has in the folder of jobs beside the jobs, of which there may be many.
_OF_JOBS = (".keys", ".ended", "manager.json", "manager.lock")


def check_state_dir(folder: str | Path, *, is_looking: bool = False) -> None:
    """Check that a state directory, and the folder of jobs in it, are this user's alone. What is missing passes.

    Nor may anything of AirExecutor in it be a link: a repository may hold one that leads to the user's files.

    :param is_looking: the caller only reads; then root may use the state directory of another user.
    :raises StateDirError: they are not; the message says what to do.
    """
    for path in (Path(folder), Path(folder) / "jobs"):
        try:
            status = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise StateDirError(f"cannot look at {path}: {error.strerror}") from error
        if not stat.S_ISDIR(status.st_mode):
            raise StateDirError(f"{path} is not a folder (a link is not followed)")
        if status.st_uid != os.geteuid():
            if is_looking and os.geteuid() == 0:
                return
            raise StateDirError(
                f"{path} belongs to {user_name(status.st_uid)}, not to {user_name(os.geteuid())}: nothing is read or "
                "written there. Keep your jobs in a folder of your own (`air-executor init`), or do this as that user"
            )
        if may_others_write(status):
            raise StateDirError(
                f"others may write to {path}, and so say what runs here: nothing is read or written there. If what is "
                f"in it is yours, close it: chmod go-w {path}"
            )
        _check_links(path)


def _check_links(folder: Path) -> None:
    """Check that no entry of ours is a link. A job that is one is refused by itself.

    :raises StateDirError: one is, or they can't be looked at.
    """
    try:
        entries = [folder / name for name in _OF_JOBS]
        if folder.name != "jobs":
            entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise StateDirError(f"cannot look at {folder}: {error.strerror}") from error
    for entry in entries:
        if entry.is_symlink():
            raise StateDirError(f"{entry} is a link, which is not followed: remove it, or put what it leads to there")


def may_others_write(status: os.stat_result) -> bool:
    """Tell whether anybody but its owner may write to a file or folder."""
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and not _is_private_group(status)


def _is_private_group(status: os.stat_result) -> bool:
    """Tell whether a group is its owner's own: most distributions give each user one, with umask 002."""
    if status.st_uid == 0:
        return False
    try:
        user, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    return user.pw_gid == group.gr_gid and user.pw_name == group.gr_name and not set(group.gr_mem) - {user.pw_name}


def user_name(uid: int) -> str:
    """Return a user's name, or ``#`` and the number if there is no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"
