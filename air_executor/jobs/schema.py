"""The JSON Schema of job files, for editors and programs."""

from __future__ import annotations

from typing import Any

from air_executor.jobs import fields
from air_executor.jobs.model import NOT_OF_HOOKS, Job, Task

#: The fields of a job that users give. AirExecutor writes the others.
GIVEN = tuple(fields.schema(Job, without_own=True)["properties"])


def job_file() -> dict[str, Any]:
    """Return the JSON Schema of a job file, as `submit` and `run` take it."""
    job = fields.schema(Job, without_own=True, required=("tasks",))
    job["properties"]["tasks"] = {"description": "The tasks.", "type": "array", "items": {"$ref": "#/$defs/task"}}
    task = fields.schema(Task)
    one_of = [
        {"required": [name], "properties": {name: {"type": "string"}, other: {"type": "null"}}}
        for name, other in (("command", "function"), ("function", "command"))
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A job of AirExecutor",
        "anyOf": [{"$ref": "#/$defs/job"}, {"type": "array", "items": {"$ref": "#/$defs/task"}}],
        "$defs": {
            "job": job,
            "task": {"description": "One command, or one call of a Python function.", **task, "oneOf": one_of},
            "hook": {
                "description": "A task that runs when the job has ended.",
                **task,
                "properties": {
                    name: what
                    for name, what in task["properties"].items()
                    if name not in NOT_OF_HOOKS and not what.get("readOnly")
                },
                "oneOf": one_of,
            },
        },
    }
