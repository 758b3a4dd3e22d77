"""A job's JSON or YAML file, or the same on stdin, as ``run`` and ``submit`` take it."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from air_executor.cli.table import Argument
from air_executor.errors import JobError
from air_executor.jobs import again, api
from air_executor.jobs.fields import check_names
from air_executor.jobs.names import is_name
from air_executor.jobs.private import values_of
from air_executor.jobs.schema import GIVEN
from air_executor.jobs.store import JobStore

_YAML = (".yaml", ".yml")

_SUFFIXES = (".json", *_YAML)

#: The path that means stdin.
_STDIN = Path("-")

ENV_FROM = Argument(
    ("--env-from",),
    {
        "action": "append",
        "default": [],
        "metavar": "NAME",
        "help": "pass this variable of your environment to the tasks; its value is kept apart, in no file of the job",
    },
)

#: What the commands have in common that make a job from a file.
ARGUMENTS = (
    Argument(("--name",), {"help": "name of the job (default: the one in the file, or the file's)"}),
    Argument(
        ("--replace",),
        {"action": "store_true", "help": "if there is a job of that name: cancel it, and begin it anew with this file"},
    ),
    Argument(
        ("--new-name",), {"action": "store_true", "help": "if there is a job of that name: call this one NAME-2, …"}
    ),
    ENV_FROM,
)


def submit(args: argparse.Namespace, path: Path, state_dir: str, existing: str) -> str:
    """Make a job from a file, with the options of :data:`ARGUMENTS`, and return its name.

    :param existing: what to do when there is a job of that name, unless the command line says so; as for
        :func:`air_executor.jobs.api.submit`.
    :raises JobError: the file can't be read, or something in it can't be used.
    """
    document = read(path)
    if args.replace and args.new_name:
        raise JobError("--replace and --new-name are for the same case: choose one")
    existing = again.REPLACE if args.replace else again.NEW_NAME if args.new_name else existing
    given = {key: value for key, value in document.items() if key not in ("name", "tasks") and value is not None}
    given["private_env"] = values_of(args.env_from)
    given["key"] = getattr(args, "key", None)
    name = args.name or document["name"]
    return api.submit(name, document["tasks"], state_dir=state_dir, existing=existing, **given).name


def read(path: Path) -> dict[str, Any]:
    """Return what a job's file says, with a ``name`` and a list of ``tasks``; the tasks are not checked yet.

    :raises JobError: it can't be read, or is no job.
    """
    name = path.name.removesuffix(path.suffix if path.suffix in _SUFFIXES else "")
    parse: Callable[[bytes], Any] = _parse_yaml if path.suffix in _YAML else orjson.loads
    try:
        if path == _STDIN:
            parse = _parse_either
            text = sys.stdin.buffer.read()
            # Named by its content, so that the same text is the same job again, as the same file is.
            path, name = Path("stdin"), f"stdin-{hashlib.blake2b(text, digest_size=4).hexdigest()}"
        else:
            text = path.read_bytes()
    except OSError as error:
        raise JobError(f"{path} cannot be read: {error.strerror}") from error
    try:
        document = parse(text)
    except Exception as error:  # of either reader
        raise JobError(f"{path} cannot be understood: {' '.join(str(error).split())}") from None
    if isinstance(document, list):
        document = {"tasks": document}
    if isinstance(document, dict):
        check_names(document, [*GIVEN, "tasks"], str(path))
    if not isinstance(document, dict) or not isinstance(document.get("tasks"), list):
        raise JobError(f"{path} must be a list of tasks, or an object with a list 'tasks'")
    if document.get("name") is None:
        document = {**document, "name": name}
        if not is_name(name):
            raise JobError(
                f"{path}: {name!r} cannot be a job's name, which has only ASCII letters, digits and _ . : + @ = -; "
                "give it one with --name NAME, or a field 'name' in the file"
            )
    return document


def _parse_yaml(text: bytes) -> Any:
    import yaml

    return yaml.safe_load(text)


def _parse_either(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return _parse_yaml(text)


def is_file(store: JobStore, given: str) -> bool:
    """Tell whether ``given`` is a job's file rather than the name of a job that is there. Names may have dots.

    :raises JobError: it is neither.
    """
    if os.sep in given or Path(given) == _STDIN:
        return True
    has_suffix = Path(given).suffix in _SUFFIXES
    if has_suffix and Path(given).is_file():
        return True
    if store.has(given):
        return False  # beside it may lie a script of that name, or a folder
    if has_suffix or Path(given).is_file():
        return True
    raise JobError(f"{given!r} is neither a file, nor a job below {store.root}")
