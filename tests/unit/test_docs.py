"""The documentation holds: links lead somewhere, names exist, code can be parsed, made pages are what the code says."""

from __future__ import annotations

import ast
import configparser
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from air_executor.cli.main import parser
from air_executor.config import OPTIONS
from air_executor.runs.record import LATER, Identity, RunState, queued
from tests.support.airflow_env import REPOSITORY

PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
IDS = [str(page.relative_to(REPOSITORY)) for page in PAGES]
DESIGN = (REPOSITORY / "docs" / "design.md").read_text()

#: Words that complete an example and are no command.
PLACEHOLDERS = {"COMMAND", "…"}


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and Sphinx make them."""
    found: set[str] = set()
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        number = 1
        while (unique := slug if number == 1 else f"{slug}-{number - 1}") in found:
            number += 1
        found.add(unique)
    return found


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_internal_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_pages_of_the_site_link_to_nothing_outside_of_it() -> None:
    docs = REPOSITORY / "docs"
    outside = [
        (str(page), target)
        for page in docs.rglob("*.md")
        for target in re.findall(r"\]\(([^)#\s]+)", without_code(page.read_text()))
        if not re.match(r"[a-z]+:", target) and docs not in (page.parent / target).resolve().parents
    ]
    assert outside == []


def test_pages_that_are_made_from_the_code_are_what_it_says() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/reference", "--check"], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), "write them: .venv/bin/python scripts/reference"


def blocks() -> Iterator[Any]:
    for page, name in zip(PAGES, IDS, strict=True):
        found = re.findall(r"^( *)```(\w+)\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)
        for number, (indent, language, text) in enumerate(found, 1):
            lines = [line.removeprefix(indent) for line in text.splitlines()]
            yield pytest.param(language, "\n".join(lines) + "\n", id=f"{name}-{number}-{language}")


@pytest.mark.parametrize(("language", "text"), list(blocks()))
def test_every_block_of_code_can_be_parsed(language: str, text: str) -> None:
    if language == "python":
        ast.parse(_with_body(text))
    elif language == "yaml":
        assert yaml.safe_load(text) is not None
    elif language == "json":
        json.loads(text)
    elif language == "ini":
        configparser.ConfigParser(interpolation=None).read_string(text)
    elif language == "bash":
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        assert done.stderr == ""
    else:
        assert language in ("console", "text")
    if language in ("bash", "console"):
        for command in commands(text):
            check_command(command)


def _with_body(text: str) -> str:
    """Return a signature, as the reference shows it, as what Python parses; all else as it is."""
    is_signature = re.match(r"[A-Za-z_]+\((.*: |\n)", text) is not None and "=" not in text.split("(")[0]
    return f"def {text.rstrip()}: ..." if is_signature and _fails(text) else text


def _fails(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return True
    return False


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each ``air-executor`` command of a script."""
    text = re.sub(r"\\\n", " ", text)
    for line in text.splitlines():
        for part in re.split(r"[|;&]+", re.sub(r"(^|\s)#.*", "", line.removeprefix("$ "))):
            try:
                words = shlex.split(part)
            except ValueError:
                continue  # a quote that spans lines
            if "air-executor" in words:
                yield words[words.index("air-executor") + 1 :]


def check_command(words: list[str]) -> None:
    [subparsers] = [each for each in parser()._actions if isinstance(each.choices, dict)]
    assert isinstance(subparsers.choices, dict)
    if not words or words[0] in PLACEHOLDERS or words[0].startswith("-"):
        return
    assert words[0] in subparsers.choices, words
    known = {flag for action in subparsers.choices[words[0]]._actions for flag in action.option_strings}
    given = words[1 : words.index("--")] if "--" in words else words[1:]
    unknown = {word.partition("=")[0] for word in given if word.startswith("--")} - known
    assert unknown == set(), words


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_options_that_pages_name_exist(page: Path) -> None:
    known = {option.name for option in OPTIONS}
    text = page.read_text()
    named = set(re.findall(r"\[air_executor\] ([a-z_]+)", text))
    named |= {name.lower() for name in re.findall(r"AIRFLOW__AIR_EXECUTOR__([A-Z_]+[A-Z])", text)}
    assert named - known == set()


def test_every_function_on_the_way_of_one_workload_exists() -> None:
    walk = DESIGN.partition("<!-- walk: begin -->")[2].partition("<!-- walk: end -->")[0]
    names = [name for name in re.findall(r"`([a-z_]+(?:\.[A-Za-z_]+)+)`", walk) if not name.endswith(".json")]
    assert len(names) > 30
    assert [name for name in names if not exists(name)] == []


def test_every_file_that_the_design_names_exists() -> None:
    named = set(re.findall(r"`([a-z_/]+\.py)`", DESIGN))
    assert len(named) > 20
    assert [
        name for name in sorted(named) if not any((REPOSITORY / at / name).exists() for at in (".", "air_executor"))
    ] == []


def exists(dotted: str) -> bool:
    """Tell whether a function, class or method below the package exists."""
    parts = dotted.split(".")
    for end in range(len(parts) - 1, 0, -1):
        path = REPOSITORY / "air_executor" / "/".join(parts[:end])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.exists():
                return _has(ast.parse(file.read_text()), parts[end:])
    return False


def _has(tree: Any, names: list[str]) -> bool:
    if not names:
        return True
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return any(isinstance(each, kinds) and each.name == names[0] and _has(each, names[1:]) for each in tree.body)


def test_a_record_is_as_its_schema_says() -> None:
    schema = json.loads((REPOSITORY / "docs" / "reference" / "schemas" / "run.json").read_text())
    identity = Identity(kind="task", workload_id="9f0c1d62-8a55-4f0b-8f0f-0a6f3e6a1b11", name="d.t", map_index=-1)
    first = queued("9f0c1d62-8a55-4f0b-8f0f-0a6f3e6a1b12", identity, limits={"memory": 1}, log_file="/tmp/x.log")
    running = first.advance(RunState.STARTING, pid=1, pid_started=1.5).advance(RunState.RUNNING, gpus=["0"])
    last = running.advance(RunState.KILLED, signal="SIGKILL", reason="killed", exception="E: x", cpu_time_s=0.5)
    for record in (first, running, last):
        document = json.loads(record.to_json())
        jsonschema.validate(document, schema)
        unknown = document.keys() - schema["properties"].keys()
        assert unknown == set()
        assert document["limits"].get(LATER, {}).keys() <= schema["properties"].keys()
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**json.loads(last.to_json()), "state": "asleep"}, schema)
