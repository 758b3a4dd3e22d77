"""The page of the files' formats, and their JSON Schemas."""

from __future__ import annotations

import ast
import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

from markdown import markdown, page, table

from air_executor.jobs import fields
from air_executor.jobs.model import Job, Task
from air_executor.jobs.schema import job_file
from air_executor.runs import record


def schemas() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return what each schema describes, and the schema, by the names of their files."""
    tasks = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "tasks.json: the tasks of a job, and what became of them",
        "type": "array",
        "items": fields.schema(Task),
    }
    job = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "state.json: a job, without its tasks",
        **fields.schema(Job),
    }
    return {
        "job-file.json": ("what `run` and `submit` read, the same as `air-executor schema` prints", job_file()),
        "run.json": ("`runs/ID/state.json`: a run", run_schema()),
        "job-state.json": ("`jobs/NAME/state.json`: a job, without its tasks", job),
        "job-tasks.json": ("`jobs/NAME/tasks.json`: the tasks of a job", tasks),
    }


def run_schema() -> dict[str, Any]:
    """Return the JSON Schema of a run's record."""
    known = _described_fields(record.RunRecord)
    del known["unknown"]
    first = {"version": {"const": record.VERSION, "description": "Version of the document."}}
    later = {"description": "Fields that came after the first release."}
    known["limits"]["properties"] = {record.LATER: {"type": "object", **later}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The record of a run",
        "description": "Fields that are not set are left out. Moments are ISO 8601 in UTC.",
        "type": "object",
        "required": ["version", "id", "state", "identity"],
        "properties": {**first, **known},
        "$defs": {
            "Identity": {
                "type": "object",
                "required": ["kind", "workload_id", "name"],
                "properties": _described_fields(record.Identity),
            }
        },
    }


def _described_fields(model: Any) -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of each field of a dataclass, with what its docstring says."""
    tree = ast.parse(Path(record.__file__).read_text(encoding="utf-8"))
    body = next(each for each in tree.body if isinstance(each, ast.ClassDef) and each.name == model.__name__).body
    told: dict[str, str] = {}
    for each, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(each, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            told[ast.unparse(each.target)] = " ".join(markdown(str(after.value.value)).split())
    hints = typing.get_type_hints(model)
    return {
        each.name: _schema_of(hints[each.name]) | ({"description": told[each.name]} if each.name in told else {})
        for each in dataclasses.fields(model)
    }


_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object"}


def _schema_of(hint: Any) -> dict[str, Any]:
    kinds = [each for each in typing.get_args(hint) if each is not type(None)]
    if type(None) in typing.get_args(hint):
        return _schema_of(kinds[0])  # a field that is not set is left out
    if hint is record.RunState:
        return {"enum": [state.value for state in record.RunState]}
    if hint is record.Identity:
        return {"$ref": "#/$defs/Identity"}
    origin = typing.get_origin(hint) or hint
    if origin is list:
        return {"type": "array", "items": _schema_of(kinds[0])}
    return {"type": _PLAIN.get(origin, "object")}


def files() -> str:
    """Return the page of the files' formats."""
    shown = schemas()
    rows = [(f"[{name}](schemas/{name})", what) for name, (what, _) in shown.items()]
    run = shown["run.json"][1]
    parts = [
        "Most of what AirExecutor writes is below the [state directory](../operations.md#the-state-directory). "
        "Which files there are, and who may read them, is on [Records and files](../concepts/files.md). All documents "
        "are JSON. A reader keeps the fields that it does not know.",
        "## JSON Schemas",
        table(("schema", "describes"), rows),
        "## A run",
        "`runs/ID/state.json`. A field that is not set is left out.",
        _fields_table(run["properties"]),
        "`identity` says what is executed:",
        _fields_table(run["$defs"]["Identity"]["properties"]),
        "## A job",
        "`jobs/NAME/state.json`. What people write is described in [Jobs](jobs.md); the rest is AirExecutor's.",
        _fields_table(shown["job-state.json"][1]["properties"]),
        "## A task of a job",
        "In `jobs/NAME/tasks.json`.",
        _fields_table(shown["job-tasks.json"][1]["items"]["properties"]),
    ]
    return page("File formats", *parts)


def _fields_table(properties: dict[str, dict[str, Any]]) -> str:
    rows = [(f"`{name}`", _type(what), markdown(what.get("description", ""))) for name, what in properties.items()]
    return table(("field", "type", "meaning"), rows)


def _type(what: dict[str, Any]) -> str:
    if "$ref" in what:
        return "object"
    if "const" in what:
        return f"`{json.dumps(what['const'])}`"
    if "enum" in what:
        return ", ".join("null" if value is None else f"`{value}`" for value in what["enum"])
    if "anyOf" in what or "oneOf" in what:
        kinds = [_type(each) for each in what.get("anyOf", what.get("oneOf", []))]
        return " or ".join(dict.fromkeys(filter(None, kinds)))
    kind = what.get("type", "any")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)
