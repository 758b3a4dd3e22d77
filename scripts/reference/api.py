"""The page of what programs import, from the docstrings. Nothing is imported for it, as operators need Airflow."""

from __future__ import annotations

import ast
import re
import typing
from collections.abc import Iterator
from pathlib import Path

from markdown import markdown, page, table

_REPOSITORY = Path(__file__).resolve().parents[2]

#: What programs use, in the order of the page: title, module, names. Without names: errors, all of the module.
API: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Jobs", "air_executor.jobs", ("submit", "queue_tasks", "wait", "results", "Results")),
    ("States", "air_executor.jobs", ("JobState", "TaskStatus")),
    ("Follow-up work in DAGs", "air_executor.follow_up", ("follow_up",)),
    ("Operators", "air_executor.operators", ("AirJobOperator",)),
    ("Sensors", "air_executor.sensors", ("AirJobSensor",)),
    ("Errors", "air_executor.errors", ()),
)


def api() -> str:
    """Return the page of what programs import."""
    parts = [
        "What is on this page is the public Python interface. It changes only with a note in the "
        "[changelog](../changelog.md). Other modules are internal."
    ]
    for title, module, names in API:
        parts += [f"## {title}", f"From `{module}`."]
        if names:
            for name in names:
                parts += _described(_find(module, name))
        else:
            rows = [_error(each) for each in _tree(module).body if _is_described(each)]
            parts.append(table(("error", "of the family", "meaning"), rows))
    return page("Python", *parts)


_Described = ast.FunctionDef | ast.ClassDef


def _is_described(node: ast.AST) -> typing.TypeGuard[_Described]:
    return isinstance(node, _Described)


def _tree(module: str) -> ast.Module:
    path = _REPOSITORY / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def _find(module: str, name: str) -> _Described:
    """Return where a name is defined that a module has, perhaps from another one. Nothing is imported for it."""
    body = _tree(module).body
    # A package that imports at first use names what it has for type checkers.
    for each in body + [inner for outer in body if isinstance(outer, ast.If) for inner in outer.body]:
        if _is_described(each) and each.name == name:
            return each
        if isinstance(each, ast.ImportFrom) and each.module and any(alias.name == name for alias in each.names):
            return _find(each.module, name)
    raise LookupError(f"{module} has no {name}; change API in scripts/reference/api.py")


def _error(node: _Described) -> tuple[str, ...]:
    bases = node.bases if isinstance(node, ast.ClassDef) else []
    family = ", ".join(f"`{ast.unparse(base)}`" for base in bases)
    return f"`{node.name}`", family, markdown(ast.get_docstring(node) or "")


def _described(node: _Described) -> Iterator[str]:
    yield f"### {node.name}"
    if isinstance(node, ast.FunctionDef):
        yield _signature(node.name, node)
        yield docstring(node)
        return
    init = next((each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"), None)
    if init is not None:
        yield _signature(node.name, init)
    yield docstring(node)
    if members := list(_members(node)):
        yield table(("member", "meaning"), members)


def _signature(name: str, node: ast.FunctionDef) -> str:
    arguments = ast.unparse(node.args).removeprefix("self, ")
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None and name == node.name else ""
    line = f"{name}({arguments}){returns}"
    if len(line) > 100:
        parts = _split_arguments(arguments)
        line = f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returns}"
    return f"```python\n{line}\n```"


def _split_arguments(text: str) -> list[str]:
    """Return the arguments of a signature, apart at the commas outside of brackets."""
    parts, depth, begin = [], 0, 0
    for place, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append(text[begin:place].strip())
            begin = place + 1
    return [*parts, text[begin:].strip()]


def _members(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for each, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(each, ast.FunctionDef):
            is_property = any(ast.unparse(mark) == "property" for mark in each.decorator_list)
            if is_property and not each.name.startswith("_"):
                yield f"`{each.name}`", markdown(ast.get_docstring(each) or "")
        elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            yield f"`{each.target.id}`", f"`{ast.unparse(each.annotation)}`. {markdown(str(text))}".strip()
        elif isinstance(each, ast.Assign) and isinstance(each.value, ast.Constant):
            name = ast.unparse(each.targets[0])
            if name.isupper():
                yield f"`{name}`", f"`{each.value.value}`"


def docstring(node: _Described) -> str:
    """Return what a docstring says, as Markdown: its text, then what goes in, comes out and is raised."""
    text = ast.get_docstring(node) or ""
    body, fields_ = [], []
    for paragraph in re.split(r"\n\s*\n", text):
        lines = paragraph.splitlines()
        if lines and lines[0].startswith(":"):
            fields_ += re.split(r"\n(?=:)", paragraph)
        else:
            body.append(markdown(paragraph))
    rows = []
    for each in fields_:
        match = re.match(r":(param|return|returns|raises?)\s*([^:]*):\s*(.*)", each, re.DOTALL)
        if match is None:
            raise ValueError(f"{node.name}: the field {each!r} of its docstring is none that is known")
        kind, name, what = match.groups()
        what = " ".join(what.split())
        what = f"{what[:1].upper()}{what[1:]}" if kind != "param" else what
        label = {"param": f"`{name}`", "return": "returns", "returns": "returns"}.get(kind, f"raises `{name}`")
        rows.append((label, markdown(what)))
    return "\n\n".join([*body, *([table(("argument", "meaning"), rows)] if rows else [])])
