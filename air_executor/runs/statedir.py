"""Which state directory is used: one rule for every command, and for programs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from air_executor import config
from air_executor.errors import StateDirError
from air_executor.machine.ownership import check_state_dir

#: The folder that marks where jobs belong, as ``.git`` does for a repository.
FOLDER = ".air-executor"

#: Names the state directory. Every task of a job has it, and ``--state-dir`` sets it.
VARIABLE = "AIR_EXECUTOR_STATE_DIR"

RULE = (
    "It works on the state directory that --state-dir names, or AIR_EXECUTOR_STATE_DIR, or "
    "AIRFLOW__AIR_EXECUTOR__STATE_DIR, or the nearest .air-executor from this folder upwards, or else Airflow's "
    "([air_executor] state_dir)."
)


@dataclass(frozen=True)
class StateDir:
    """A state directory, and how it was found."""

    path: Path
    why: str
    is_airflows: bool = False
    """Whether ``[air_executor] state_dir`` decides, as for the scheduler."""

    def __str__(self) -> str:
        return f"{self.path} ({self.why})"


def locate(start: str | Path | None = None) -> StateDir:
    """Return the state directory for a working directory.

    It is the one that the environment names, or the nearest ``.air-executor`` from ``start`` upwards, or else that of
    Airflow. Without an Airflow it is a new one in ``start``.

    :param start: the working directory, unless another is given.
    :raises ConfigError: ``airflow.cfg``, or the option in it, can't be understood.
    :raises StateDirError: the working directory is gone, or the one that was found is not this user's alone.
    """
    if named := os.environ.get(VARIABLE):
        return StateDir(absolute(os.path.expanduser(named)), VARIABLE)
    variable = config.env_var("state_dir")
    if os.environ.get(variable):
        return StateDir(Path(config.plain_state_dir()), variable, is_airflows=True)
    here = absolute(start or working_dir("name --state-dir")).resolve()
    # Airflow's default state directory is skipped: airflow.cfg may name another one.
    default = (config.airflow_home() / FOLDER).resolve()
    for folder in (here, *here.parents):
        if (found := folder / FOLDER) != default and found.is_dir():
            check_state_dir(found)  # anybody may have placed it there
            return StateDir(found, f"the nearest {FOLDER}")
    if has_airflow():
        return StateDir(Path(config.plain_state_dir()), "Airflow's", is_airflows=True)
    return StateDir(here / FOLDER, f"there is no {FOLDER} from here upwards, and no Airflow")


def working_dir(otherwise: str = "") -> Path:
    """Return the working directory.

    :param otherwise: what helps beside another working directory, for the message.
    :raises StateDirError: it was removed.
    """
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        more = f", or {otherwise}" if otherwise else ""
        raise StateDirError(f"the working directory was removed: go to another one{more}") from error


def absolute(path: str | Path) -> Path:
    """Return an absolute path.

    :raises StateDirError: it is relative, and the working directory was removed.
    """
    return Path(path) if os.path.isabs(path) else working_dir("give an absolute path") / path


def has_airflow() -> bool:
    """Tell whether somebody has an Airflow set up here, which need not be installed beside this package."""
    home = config.airflow_home()
    return "AIRFLOW_HOME" in os.environ or "AIRFLOW_CONFIG" in os.environ or (home / "airflow.cfg").exists()
