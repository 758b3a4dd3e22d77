"""The jobs of one state directory for AI agents: an MCP server on stdin and stdout, with the official SDK.

Every answer is bounded, so that no job, log or wait is more than a model can take in. No value of an environment is in
one. Unless the server was started with ``--write`` there is no tool that changes anything.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import subprocess
import time
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import anyio
import orjson
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.tools.base import Tool
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase
from mcp_types import CallToolResult, TextContent, ToolAnnotations
from pydantic import ConfigDict, Field

from air_executor import __version__, config
from air_executor.cli import where
from air_executor.cli.bounds import bounded, cut, part, utf8
from air_executor.cli.failure import envelope
from air_executor.errors import AirExecutorError, JobError, WrongStateError
from air_executor.jobs import api
from air_executor.jobs.fields import check_names
from air_executor.jobs.model import Task
from air_executor.jobs.requests import request
from air_executor.jobs.schema import GIVEN, job_file
from air_executor.jobs.store import JobFiles, JobStore
from air_executor.launcher.address import module_command
from air_executor.machine.safe_files import open_log
from air_executor.observe.everywhere import AllRuns
from air_executor.observe.jobs import listed, obstacle, summary
from air_executor.observe.query import observe_runs

#: A wait is no longer than this, in seconds: clients give up on calls that take long.
_MAX_WAIT_S = 300.0
_LOOK_S = 0.2

#: At most this many bytes of a log in one answer.
_MAX_LOG_BYTES = 256 * 1024

#: At most this many jobs, runs or tasks in one answer.
_MAX_ITEMS = 500

#: The manager begins within this time, in seconds, or its start fails.
_START_S = 60.0

_INSTRUCTIONS = """\
AirExecutor works on jobs: lists of commands, each a process of its own, kept as files below one state directory.
`status` shows all jobs, or one with its tasks; `wait` until one has ended; `logs` what a task has printed; `results`
what became of a job. An error is JSON: {"error", "retryable", "hint"}.
"""
_WRITING = """\
`submit` makes a job: give a key whenever the call may be repeated, then there is one job of that key. Nothing runs
without a manager: `start_manager` starts one in the background, if `status` shows none. `queue` adds tasks to a job.
"""
_READING = "This server is read-only: it was started without --write.\n"

_KEY = "Submit once: with the same key again, this returns the job that is there"

_F = TypeVar("_F", bound=Callable[..., Any])

_Name = Annotated[str, Field(description="The job's name")]
_Limit = Annotated[int, Field(ge=1, le=_MAX_ITEMS, description="At most this many")]
_Tasks = Annotated[
    list[dict[str, Any]],
    Field(
        min_length=1,
        description="Each an object with the fields of submit's tasks: id, command and args (or a command line as "
        "command, with shell: true), dependencies (ids), retries, timeout (seconds), env, cwd, key, and more",
    ),
]


def serve(*, may_write: bool) -> None:
    """Serve until stdin ends."""
    build(may_write=may_write).run("stdio")


def build(*, may_write: bool) -> MCPServer[Any]:
    """Return the server for the state directory of the present working directory."""
    tools = _Tools(where.options())
    server: MCPServer[Any] = MCPServer(
        "air-executor",
        version=__version__,
        instructions=_INSTRUCTIONS + (_WRITING if may_write else _READING),
        log_level="WARNING",
        tools=[_submit_tool(tools)] if may_write else [],
    )
    for reading in (tools.status, tools.wait, tools.logs, tools.results):
        server.add_tool(reading, annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False))
    for writing, is_destructive, is_idempotent in (
        (tools.queue, False, False),
        (tools.cancel, True, True),
        (tools.pause, False, True),
        (tools.resume, False, True),
        (tools.retry, False, False),
        (tools.start_manager, False, True),
    ):
        if may_write:
            server.add_tool(writing, annotations=_changes(is_destructive=is_destructive, is_idempotent=is_idempotent))
    return server


def _changes(*, is_destructive: bool, is_idempotent: bool) -> ToolAnnotations:
    return ToolAnnotations(read_only_hint=False, destructive_hint=is_destructive, idempotent_hint=is_idempotent)


class _JobArguments(ArgModelBase):
    """The arguments of ``submit`` as they were given: the engine checks them, as it does a job's file."""

    model_config = ConfigDict(extra="allow")

    def model_dump_one_level(self) -> dict[str, Any]:
        return {"document": dict(self.model_extra or {})}


def _submit_tool(tools: _Tools) -> Tool:
    """Return the tool ``submit``, whose arguments are the fields of a job's file."""
    tool = Tool.from_function(tools.submit, annotations=_changes(is_destructive=False, is_idempotent=False))
    metadata = tool.fn_metadata.model_copy(update={"arg_model": _JobArguments})
    return tool.model_copy(update={"parameters": submit_schema(), "fn_metadata": metadata})


def submit_schema() -> dict[str, Any]:
    """Return the JSON Schema of the arguments of ``submit``: that of job files, with a key, for what people give."""
    definitions = job_file()["$defs"]
    task, job = definitions["task"], definitions["job"]
    given = {name: what for name, what in task["properties"].items() if not what.get("readOnly")}
    properties = {**job["properties"], "key": {"type": ["string", "null"], "description": _KEY}}
    properties["tasks"] = {**properties["tasks"], "minItems": 1}
    return {
        **job,
        "properties": properties,
        "required": ["name", "tasks"],
        "$defs": {"task": {**task, "properties": given}, "hook": definitions["hook"]},
    }


def _told(tool: _F) -> _F:
    """Let an expected error of a tool reach the model as programs get it from the command line."""

    @functools.wraps(tool)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return utf8(tool(*args, **kwargs))
        except AirExecutorError as error:
            return _failure(error)

    @functools.wraps(tool)
    async def acall(*args: Any, **kwargs: Any) -> Any:
        try:
            return utf8(await tool(*args, **kwargs))
        except AirExecutorError as error:
            return _failure(error)

    return acall if inspect.iscoroutinefunction(tool) else call  # type: ignore[return-value]


def _failure(error: AirExecutorError) -> CallToolResult:
    document = {name: cut(value) if isinstance(value, str) else value for name, value in envelope(error).items()}
    text = TextContent(type="text", text=orjson.dumps(document).decode())
    return CallToolResult(is_error=True, content=[text], structured_content=document)


class _Tools:
    """What agents may call. The texts are for them."""

    def __init__(self, options: config.Config) -> None:
        self._options = options
        self._store = JobStore(options.state_dir)

    # Reading

    @_told
    def status(
        self,
        name: Annotated[str | None, Field(description="A job: with its tasks. Without: all jobs")] = None,
        ended: Annotated[bool, Field(description="Of all jobs, also those that have ended")] = False,
        offset: Annotated[int, Field(ge=0, description="Of a job's tasks, leave out this many first")] = 0,
        limit: _Limit = 100,
    ) -> dict[str, Any]:
        """Show all jobs and what runs, or one job with its tasks: status, tries, times, exit codes and errors."""
        if name is not None:
            files = self._store.open(name)
            return {
                "task_count": len(files.tasks),
                **_plain(summary(files)),
                **part("tasks", files.tasks.values(), offset, limit, shown=_shown),
            }
        jobs = listed(self._store.root.parent, most_ended=limit if ended else 0)
        return {
            "state_dir": str(self._options.state_dir),
            "manager": self._store.manager(),
            **part("jobs", jobs.jobs, 0, limit, shown=_plain, more=jobs.left_out if ended else 0),
            **part("runs", observe_runs(AllRuns(self._options.state_dir)), 0, limit, shown=_run),
        }

    @_told
    async def wait(
        self,
        name: _Name,
        timeout_s: Annotated[float, Field(ge=0, le=_MAX_WAIT_S, description="Wait at most this many seconds")] = 30.0,
    ) -> dict[str, Any]:
        """Wait until a job has ended, or the time is over: has_ended says which. Call it again to wait longer.

        An obstacle is why the job does not go on: nobody works on it, it is paused, or not trusted.
        """
        until_s = time.monotonic() + timeout_s
        while not (found := await anyio.to_thread.run_sync(self._stand, name))["has_ended"]:
            if time.monotonic() >= until_s:
                break
            await anyio.sleep(_LOOK_S)
        return found

    def _stand(self, name: str) -> dict[str, Any]:
        files = self._store.files(name)
        has_ended = files.is_over()
        if not has_ended:
            return {"name": name, "has_ended": False, "obstacle": cut(obstacle(self._store, files))}
        return {"has_ended": True, **_plain(summary(self._store.open(name)))}

    @_told
    def logs(
        self,
        name: _Name,
        task: Annotated[str, Field(description="The task's id")],
        max_bytes: Annotated[int, Field(ge=1, le=_MAX_LOG_BYTES, description="At most this many bytes")] = 16 * 1024,
        offset: Annotated[
            int | None, Field(ge=0, description="Begin at this byte; without, the end of the log is returned")
        ] = None,
    ) -> dict[str, Any]:
        """Return what a task has printed: its end, or a part from offset on. next_offset is where to read on."""
        found = _task(self._store.open(name), task)
        path = self._store.files(name).log_file(task)
        try:
            with open_log(path) as file:
                size = file.seek(0, os.SEEK_END)
                begin = max(0, size - max_bytes) if offset is None else min(offset, size)
                file.seek(begin)
                data = file.read(max_bytes)
        except FileNotFoundError:
            size, begin, data = 0, 0, b""
        return {
            "job": name,
            "task": task,
            "status": found.status.value,
            "log": data.decode(errors="replace"),
            "offset": begin,
            "next_offset": begin + len(data),
            "size": size,
        }

    @_told
    def results(self, name: _Name, limit: _Limit = 100) -> dict[str, Any]:
        """Return what became of a job: the results of its tasks, and the errors of those that failed."""
        files = self._store.open(name)
        found = api.Results(files.job, list(files.tasks.values()))
        return {
            **_plain(summary(files)),
            **part("failures", found.failed, 0, limit, shown=_failed),
            **part("values", found.values.items(), 0, limit, shown=lambda each: {"id": each[0], "result": each[1]}),
        }

    # Writing

    @_told
    def submit(self, document: dict[str, Any]) -> dict[str, Any]:
        """Make a job, which the manager works on. Give a key whenever the call may be repeated."""
        check_names(document, [*GIVEN, "tasks", "key"], "submit")
        given = {name: value for name, value in document.items() if value is not None}
        name, tasks = given.pop("name", None), given.pop("tasks", None)
        if not isinstance(tasks, list) or not tasks:
            raise JobError("submit needs 'tasks', a list with at least one task")
        job = api.submit(name, tasks, **given, state_dir=self._options.state_dir)
        has_manager = self._store.manager() is not None
        return {"name": job.name, "state": job.state.value, "has_manager": has_manager}

    @_told
    def queue(self, name: _Name, tasks: _Tasks) -> dict[str, Any]:
        """Add tasks to a job, also to one that has ended; return their ids. Of tasks with the same key there is one."""
        return {"ids": api.queue_tasks(tasks, job=name, state_dir=self._options.state_dir)}

    @_told
    def cancel(self, name: _Name) -> dict[str, Any]:
        """End a job: what runs is stopped, what waits is not run."""
        return self._ask(name, "cancel")

    @_told
    def pause(self, name: _Name) -> dict[str, Any]:
        """Start no more tasks of a job; what runs, runs on."""
        return self._ask(name, "pause")

    @_told
    def resume(self, name: _Name) -> dict[str, Any]:
        """Go on with a job that was paused."""
        return self._ask(name, "resume")

    @_told
    def retry(
        self,
        name: _Name,
        tasks: Annotated[list[str] | None, Field(description="Ids of failed tasks; without, all of them")] = None,
    ) -> dict[str, Any]:
        """Try the failed tasks of a job again, and what depends on them."""
        return self._ask(name, "retry", tasks or [])

    @_told
    def start_manager(self) -> dict[str, Any]:
        """Start the manager of the jobs in the background, unless there is one. It works on all jobs that wait."""
        if (pid := self._store.manager()) is not None:
            return {"pid": pid, "is_new": False}
        done = subprocess.run(
            [*module_command("air_executor.cli.main"), "start", "--detach", "--json"],
            stdin=subprocess.DEVNULL,  # stdin and stdout are the protocol's
            capture_output=True,
            env={**os.environ, "AIR_EXECUTOR_STATE_DIR": str(self._options.state_dir)},
            timeout=_START_S,
        )
        if done.returncode:
            raise _failed_start(done.stdout)
        return {**orjson.loads(done.stdout), "is_new": True}

    def _ask(self, name: str, action: str, tasks: list[str] | None = None) -> dict[str, Any]:
        return _plain(summary(request(self._options, name, action, tasks or (), heeds_signals=False)))


def _failed_start(said: bytes) -> AirExecutorError:
    try:
        document = orjson.loads(said)
        return WrongStateError(document["error"], hint=document["hint"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return WrongStateError("the manager did not start", hint="`air-executor doctor --json` shows what is wrong")


def _task(files: JobFiles, task_id: str) -> Task:
    if task_id not in files.tasks:
        raise JobError(
            f"there is no task {task_id!r} in job {files.job.name}", hint=f"its first tasks: {[*files.tasks][:20]}"
        )
    return files.tasks[task_id]


def _plain(each: Any) -> dict[str, Any]:
    return bounded(dataclasses.asdict(each))


def _run(run: Any) -> dict[str, Any]:
    return bounded(run.to_dict())


def _failed(task: Task) -> dict[str, Any]:
    return {"id": task.id, "exit_code": task.exit_code, "error": cut(task.error)}


def _shown(task: Task) -> dict[str, Any]:
    """Return a task without the values of its environment, and with no field that is long."""
    document = {name: value for name, value in task.to_dict().items() if value not in (None, [], {}, "")}
    document.pop("job_name", None)
    if "env" in document:
        document["env"] = sorted(document["env"])
    return bounded(document)
