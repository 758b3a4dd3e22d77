"""What a command asks for: which DAG, with what, and how."""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from air_executor import jsontext
from air_executor.errors import AirExecutorError

#: Where the tasks run.
PLACES = ("local", "temporal")


class DagError(AirExecutorError):
    """A DAG can't be run as it was asked for. The message says what is wrong, and where."""


class RunFailedError(DagError):
    """The run's Airflow ended before the run has. The same call goes on with it."""

    exit_code = 1


class BusyError(DagError):
    """Another command works on this run."""

    retryable = True
    exit_code = 1


@dataclass(frozen=True)
class Source:
    """Where a DAG's code is."""

    bundle: str
    """The folder that Airflow takes for the folder of DAGs."""
    path: str
    """The file, or the folder, that is read for DAGs."""
    variable: str | None = None
    """The DAG's variable in the module, or its id, if that was named."""


@dataclass(frozen=True)
class Request:
    """What a command asks for. The first fields say which run it is: with the same ones it goes on with that run."""

    target: str
    """A file, a folder, or ``package.module:dag``."""
    dag_id: str | None = None
    conf: dict[str, Any] = field(default_factory=dict)
    run_id: str | None = None
    logical_date: str | None = None
    """In ISO 8601; now, if it is not given."""
    tasks: tuple[str, ...] = ()
    """Patterns of task ids, like a shell's: only these tasks run, and those whose results they need."""
    on: str = "local"
    listen: str = "127.0.0.1"
    """The address of this machine at which tasks on other hosts reach the run's API."""
    parallelism: int = 32
    connections: str | None = None
    """A file as for ``airflow connections import``."""
    variables: str | None = None
    """A file as for ``airflow variables import``."""
    pools: str | None = None
    """A file as for ``airflow pools import``."""
    env_file: str | None = None
    config_from: tuple[str, ...] = ()
    """Files as ``airflow.cfg``, or ``env`` for the environment."""
    keep: bool = False
    """Whether the run's Airflow stays when it has ended."""
    source: Source = Source("", "")
    """Where the DAG's code is: :func:`check` finds it."""

    def identity(self) -> dict[str, Any]:
        """Return what tells one run from another."""
        names = ("target", "dag_id", "conf", "run_id", "logical_date", "tasks", "on")
        return {name: getattr(self, name) for name in names}

    def is_same_run(self, other: Request) -> bool:
        """Tell whether two requests are for the same run: with an id, whatever else they say."""
        if self.run_id is not None:
            return (self.target, self.dag_id, self.run_id) == (other.target, other.dag_id, other.run_id)
        return self.identity() == other.identity()

    def to_json(self) -> bytes:
        """Return the request as a document."""
        return jsontext.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> Request:
        """Read a document.

        :raises DagError: it is none.
        """
        try:
            document = jsontext.loads(data)
            for name in ("tasks", "config_from"):
                document[name] = tuple(document[name])
            document["source"] = Source(**document["source"])
            return cls(**document)
        except (ValueError, TypeError, KeyError) as error:
            raise DagError(f"a request can't be understood: {error}") from None


def parse_conf(text: str) -> dict[str, Any]:
    """Return a DAG run's configuration from a JSON object, or from a file whose name follows ``@``.

    :raises DagError: it is none.
    """
    where = "--conf"
    data = text.encode("utf-8", "surrogateescape")
    if text.startswith("@"):
        where = text[1:]
        data = _read(where)
    try:
        conf = jsontext.loads(data)
    except ValueError as error:
        raise DagError(f"{where} is not JSON: {error}") from None
    if not isinstance(conf, dict):
        raise DagError(f'{where} must be a JSON object, as {{"day": "monday"}}, not {type(conf).__name__}')
    return conf


def _read(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise DagError(f"{path} can't be read: {error.strerror}") from None


def check(request: Request) -> Request:
    """Return the request with absolute paths, after looking whether the files it names are there.

    :raises DagError: one is not.
    """
    changes: dict[str, Any] = {"source": locate(request.target)}
    named = {name: getattr(request, name) for name in ("connections", "variables", "pools", "env_file")}
    changes |= {name: _present(path) for name, path in named.items() if path is not None}
    if not _is_module(request.target):
        changes["target"] = os.path.abspath(os.path.expanduser(request.target))
    changes["config_from"] = tuple(each if each == "env" else _present(each) for each in request.config_from)
    if request.on not in PLACES:
        raise DagError(f"a DAG runs on {' or '.join(PLACES)}, not on {request.on!r}")
    if request.on == "local" and request.listen != "127.0.0.1":
        raise DagError("tasks of this machine need no other address: --listen is for --on temporal")
    if request.parallelism < 1:
        raise DagError("--parallelism must be 1 or more")
    try:
        jsontext.dumps(request.conf)
    except TypeError as error:
        raise DagError(f"conf is not JSON: {error}") from None
    return dataclasses.replace(request, **changes)


def _present(path: str) -> str:
    absolute = os.path.abspath(os.path.expanduser(path))
    if not os.path.isfile(absolute):
        raise DagError(f"there is no file {absolute}")
    return absolute


def _is_module(target: str) -> bool:
    module, colon, name = target.partition(":")
    is_module = all(part.isidentifier() for part in module.split("."))
    return bool(colon) and is_module and bool(name) and not os.path.exists(target)


def locate(target: str) -> Source:
    """Return where the code of a target is.

    :raises DagError: there is none.
    """
    path = Path(target).expanduser().absolute()
    if path.is_dir():
        return Source(str(path), str(path))
    if path.is_file():
        return Source(str(path.parent), str(path))
    if not _is_module(target):
        raise DagError(
            f"there is no file or folder {path}" + ("" if ":" in target else "; a module is written package.module:dag")
        )
    module, _, name = target.partition(":")
    relative = Path(*module.split("."))
    roots = [Path.cwd(), *(Path(entry) for entry in sys.path if entry)]
    for root in roots:
        for file in (root / relative.with_suffix(".py"), root / relative / "__init__.py"):
            if file.is_file():
                return Source(str(root.absolute()), str(file.absolute()), name)
    raise DagError(f"there is no module {module}: neither below {Path.cwd()} nor on Python's path")
