"""``air-executor mcp`` as an agent has it: a process of its own, talked to by the SDK's own client over stdio."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import jsonschema
import pytest
from mcp import Client, StdioServerParameters
from mcp_types import TextContent

from air_executor.jobs.schema import GIVEN
from tests.jobs.conftest import LONG_S, Yard
from tests.support.waiting import wait_for

READING = {"status", "wait", "logs", "results"}
WRITING = {"submit", "queue", "cancel", "pause", "resume", "retry", "start_manager"}


class Agent:
    """What an agent does with the server."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        result = await self.client.call_tool(tool, arguments)
        assert not result.is_error, result.content
        assert isinstance(result.structured_content, dict)
        return result.structured_content

    async def refused(self, tool: str, **arguments: Any) -> str:
        result = await self.client.call_tool(tool, arguments)
        assert result.is_error, result.content
        [content] = result.content
        assert isinstance(content, TextContent)
        return content.text


def talk(yard: Yard, *arguments: str, mode: str = "auto") -> Callable[[Callable[[Agent], Awaitable[None]]], None]:
    """Return what lets an agent talk to a server of a yard."""

    def run(conversation: Callable[[Agent], Awaitable[None]]) -> None:
        async def connected() -> None:
            command, *rest = yard.command("mcp", *arguments)
            server = StdioServerParameters(command=command, args=rest, env=yard.env, cwd=yard.folder)
            async with Client(server, mode=mode, read_timeout_seconds=1.5 * LONG_S) as client:
                await conversation(Agent(client))

        asyncio.run(asyncio.wait_for(connected(), 3 * LONG_S))

    return run


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_only_with_write_there_are_tools_that_change_anything(yard: Yard, mode: str) -> None:
    async def reads(agent: Agent) -> None:
        tools = {tool.name: tool for tool in (await agent.client.list_tools()).tools}
        assert tools.keys() == READING
        for tool in tools.values():
            assert tool.annotations is not None
            assert tool.annotations.read_only_hint is True
            assert tool.description
        assert "read-only" in (agent.client.instructions or "")
        told = await agent.client.call_tool("submit", {"name": "a", "tasks": [{"command": "true"}]})
        assert told.is_error

    async def writes(agent: Agent) -> None:
        assert {tool.name for tool in (await agent.client.list_tools()).tools} == READING | WRITING

    talk(yard, mode=mode)(reads)
    assert yard.store.names() == []
    talk(yard, "--write", mode=mode)(writes)


def test_an_agent_has_a_job_done(yard: Yard) -> None:
    async def conversation(agent: Agent) -> None:
        tasks = [
            {"id": "a", "command": "echo one", "shell": True, "env": {"SECRET": "swordfish"}},
            {"id": "b", "function": "math:factorial", "arguments": {"n": 5}, "dependencies": ["a"]},
        ]
        tasks[1] = {"id": "b", "function": "json:loads", "arguments": {"s": "[120]"}, "dependencies": ["a"]}
        submitted = await agent.call("submit", name="sums", tasks=tasks, key="k")
        assert submitted == {"name": "sums", "state": "waiting", "has_manager": False}
        assert (await agent.call("submit", name="sums", tasks=tasks, key="k"))["name"] == "sums"
        waited = await agent.call("wait", name="sums", timeout_s=0.1)
        assert waited["has_ended"] is False
        assert "no manager works here" in waited["obstacle"]
        assert (await agent.call("start_manager"))["is_new"] is True
        assert (await agent.call("start_manager"))["is_new"] is False
        assert (await agent.call("wait", name="sums", timeout_s=300))["state"] == "completed"
        shown = await agent.call("status", name="sums")
        assert [task["status"] for task in shown["tasks"]] == ["completed", "completed"]
        assert shown["tasks"][0]["env"] == ["SECRET"]
        assert "swordfish" not in json.dumps(shown)
        assert (await agent.call("results", name="sums"))["values"] == [{"id": "b", "result": [120]}]
        log = await agent.call("logs", name="sums", task="a")
        assert (log["log"], log["next_offset"], log["status"]) == ("one\n", 4, "completed")
        assert (await agent.call("queue", name="sums", tasks=[{"id": "c", "command": "false"}])) == {"ids": ["c"]}
        await asyncio.to_thread(wait_for, lambda: "c" in yard.tasks("sums"), "the task")
        assert (await agent.call("wait", name="sums", timeout_s=300))["state"] == "failed"
        failures = (await agent.call("results", name="sums"))["failures"]
        assert failures == [{"id": "c", "exit_code": 1, "error": "it ended with exit code 1"}]
        assert (await agent.call("retry", name="sums", tasks=["c"]))["name"] == "sums"
        assert (await agent.call("status", ended=True))["jobs"][0]["name"] == "sums"

    try:
        talk(yard, "--write")(conversation)
    finally:
        yard.call("stop", "--wait")


def test_submit_takes_all_fields_of_a_jobs_file_and_says_so_in_the_same_schema(yard: Yard) -> None:
    fields: dict[str, Any] = {
        "max_runners": 3,
        "folder": str(yard.folder),
        "env": {"A": "1"},
        "env_from": ["HOME"],
        "env_file": ".env",
        "on_success": "echo good",
        "on_failure": {"command": "echo", "args": ["bad"]},
        "paused": True,
        "priority": 7,
    }
    task = {"id": "a", "command": "exit 3", "shell": True, "retries": 2, "retry_on": [3], "limits": {"memory": "1GiB"}}
    job = {"name": "all", **fields, "tasks": [task, {"id": "b", "command": "true", "when": "failed"}]}
    job["tasks"][1]["dependencies"] = ["a"]

    async def conversation(agent: Agent) -> None:
        [submit] = [tool for tool in (await agent.client.list_tools()).tools if tool.name == "submit"]
        schema = submit.input_schema
        assert {*GIVEN, "tasks", "key"} == schema["properties"].keys()
        assert {*fields, "name"} == set(GIVEN), "all fields are tried"
        jsonschema.validate(job, schema)
        for wrong in ({"max_runers": 2}, {"max_runners": 0}, {"tasks": []}, {"tasks": [{**task, "retires": 3}]}):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate({**job, **wrong}, schema)
            assert (await agent.client.call_tool("submit", {**job, **wrong})).is_error
        assert "did you mean 'max_runners'?" in await agent.refused("submit", **job, max_runers=2)
        for other in ("state_dir", "existing", "private_env"):
            assert f"no field '{other}'" in await agent.refused("submit", **job, **{other: "x"})
        assert (await agent.call("submit", **job))["state"] == "waiting"

    talk(yard, "--write")(conversation)
    files = yard.store.open("all")
    assert {name: getattr(files.job, name) for name in fields} == {**fields, "folder": files.job.folder}
    assert (files.tasks["a"].retry_on, files.tasks["a"].limits) == ([3], {"memory": "1GiB"})
    assert files.tasks["b"].when.value == "failed"


def test_an_agent_pauses_resumes_and_cancels_a_job(yard: Yard) -> None:
    yard.submit({"id": "a", "command": "sleep", "args": ["600"]})

    async def conversation(agent: Agent) -> None:
        assert (await agent.call("pause", name="job"))["paused"] is True  # where no manager works
        yard.start_manager()
        assert (await agent.call("resume", name="job"))["paused"] is False
        await asyncio.to_thread(yard.runner_of, "a")
        assert (await agent.call("status"))["manager"] == yard.managers[0].pid
        assert (await agent.call("cancel", name="job"))["state"] == "cancelled"
        assert "has ended already" in await agent.refused("cancel", name="job")

    talk(yard, "--write")(conversation)


def test_errors_are_told_as_programs_get_them(yard: Yard) -> None:
    yard.submit({"id": "a", "command": "true"})

    async def conversation(agent: Agent) -> None:
        for tool, arguments in (
            ("status", {"name": "nope"}),
            ("wait", {"name": "nope"}),
            ("logs", {"name": "nope", "task": "a"}),
            ("results", {"name": "nope"}),
            ("cancel", {"name": "nope"}),
            ("queue", {"name": "nope", "tasks": [{"command": "true"}]}),
        ):
            told = json.loads(await agent.refused(tool, **arguments))
            assert told == {
                "error": f"there is no job nope below {yard.store.root}",
                "retryable": False,
                "hint": "`air-executor jobs --json` lists the jobs",
            }, tool
        assert "there is no task 'x'" in json.loads(await agent.refused("logs", name="job", task="x"))["error"]
        assert "needs a command" in json.loads(await agent.refused("submit", name="b", tasks=[{"id": "a"}]))["error"]
        assert "cannot be a job's name" in json.loads(await agent.refused("status", name="../x"))["error"]
        # What is no argument of the tool is refused before it.
        for tool, arguments in (
            ("wait", {"name": "job", "timeout_s": 1e9}),
            ("logs", {"name": "job", "task": "a", "max_bytes": 1 << 30}),
            ("status", {"limit": 1 << 30}),
            ("submit", {"name": "b", "tasks": []}),
        ):
            await agent.refused(tool, **arguments)

    talk(yard, "--write")(conversation)
    assert yard.store.names() == ["job"]


def test_answers_are_bounded(yard: Yard) -> None:
    script = "import sys; [print('x' * 99) for _ in range(20000)]; print('the end')"
    yard.submit(
        {"id": "loud", "command": sys.executable, "args": ["-c", script]},
        *({"id": f"t{n}", "function": "json:loads", "arguments": {"s": json.dumps("y" * 60000)}} for n in range(10)),
        *({"id": f"long{n}", "command": "echo " + "z" * 5000, "shell": True} for n in range(150)),
        max_runners=4,
    )
    yard.finish()

    async def conversation(agent: Agent) -> None:
        log = await agent.call("logs", name="job", task="loud")
        assert log["log"].endswith("x\nthe end\n")
        assert (len(log["log"]), log["size"]) == (16 * 1024, 2_000_008)
        part = await agent.call("logs", name="job", task="loud", offset=100, max_bytes=300)
        assert (part["log"], part["next_offset"]) == (("x" * 99 + "\n") * 3, 400)
        assert (await agent.call("logs", name="job", task="loud", offset=1 << 40))["log"] == ""
        shown = await agent.call("status", name="job")
        assert len(shown["tasks"]) == 100
        assert shown["tasks_left_off"] == 61
        rest = await agent.call("status", name="job", offset=100)
        assert (rest["tasks"][-1]["id"], rest["tasks_left_off"]) == ("long149", 100)
        found = await agent.call("results", name="job")
        assert found["values_left_off"] == 6
        for answer in (log, shown, rest, found):
            assert len(json.dumps(answer)) < 600_000

    talk(yard)(conversation)


def test_an_answer_is_bounded_whichever_field_is_long(yard: Yard) -> None:
    long = "w" * 900_000
    own = {f"x-{number}": "v" * 1900 for number in range(300)}
    yard.submit(
        {"id": "a", "command": "true", "args": [long], "x-mine": {long: long}, "env": {"A": long}, **own},
        {"id": "b", "command": "false", "foreach": [long, 2], "env": {f"V{n}": "v" * 99 for n in range(5000)}},
        *({"id": f"n{number:0>190}", "command": "true"} for number in range(300)),
        {"id": "c", "command": "true", "dependencies": [f"n{number:0>190}" for number in range(300)]},
    )
    files = yard.store.open("job")
    files.tasks["a"].result = files.tasks["b"].result = {"much": ["r" * 1000] * 500}
    files.tasks["c"].result = 7
    files.tasks["c"].error = files.job.error = long
    files.write()

    async def conversation(agent: Agent) -> None:
        shown = await agent.call("status", name="job")
        assert [task["id"] for task in shown["tasks"]][:2] == ["a", "b"]
        assert shown["tasks"][0]["fields_left_off"] > 200
        last = await agent.call("status", name="job", offset=302)
        assert last["tasks"][0]["dependencies"].startswith('["n000')
        results = await agent.call("results", name="job")
        assert results["values"][2] == {"id": "c", "result": 7}
        for answer in (
            shown,
            last,
            results,
            await agent.call("status"),
            await agent.call("wait", name="job", timeout_s=0),
        ):
            assert len(json.dumps(answer)) < 300_000
        assert len(await agent.refused("logs", name="job", task="t" * 20_000)) < 10_000

    talk(yard)(conversation)


def test_without_the_sdk_one_line_says_what_to_install(yard: Yard) -> None:
    code = "import sys; sys.modules['mcp'] = None; from air_executor.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "mcp"], env=yard.env, capture_output=True, text=True, timeout=LONG_S
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install '.[mcp]'" in done.stderr
