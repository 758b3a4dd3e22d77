"""Calls the command line as the user nobody, for real: run by test_unreadable.py as root, with the calls on stdin.

Everything is imported before a call gives up its rights, as nobody may be unable to read the interpreter's folders.
"""

from __future__ import annotations

import contextlib
import email.parser
import importlib.metadata
import json
import os
import signal
import sys
import sysconfig
import tempfile
import traceback
from typing import Any

import yaml

from air_executor.cli.main import main

del yaml, email
importlib.metadata.version("air-executor")
sysconfig.get_config_vars()

NOBODY = 65534


def call(argv: list[str], cwd: str, env: dict[str, str], timeout_s: int) -> dict[str, Any]:
    """Call the command line in a fork; return its exit code, ``None`` if it was killed, and what it printed."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if not pid:
            _be_nobody(argv, cwd, env, out.fileno(), err.fileno(), timeout_s)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        texts = [os.pread(file.fileno(), 1 << 20, 0).decode() for file in (out, err)]
    return {"argv": argv, "code": None if code < 0 else code, "out": texts[0], "err": texts[1]}


def _be_nobody(argv: list[str], cwd: str, env: dict[str, str], out: int, err: int, timeout_s: int) -> None:
    code = 99
    try:
        os.setsid()
        signal.alarm(timeout_s)  # which kills it: what hangs has no exit code
        os.environ.clear()
        os.environ.update(env)
        os.chdir(cwd)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        sys.argv = ["air-executor", *argv]
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    print(json.dumps([call(argv, asked["cwd"], asked["env"], asked["timeout_s"]) for argv in asked["calls"]]))
