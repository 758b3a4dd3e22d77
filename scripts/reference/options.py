"""The page of all options."""

from __future__ import annotations

from markdown import markdown, page, table

from air_executor import config


def configuration() -> str:
    """Return the page of all options."""
    parts = [
        "Options stand in the section `[air_executor]` of `airflow.cfg`, or in the environment. The environment wins. "
        "`airflow config list --section air_executor` prints the values in use, and `air-executor doctor` checks them. "
        "The scheduler refuses to start with a value that can't be used, and names the option.",
        "Restart the scheduler for a change to take effect. Tasks that run keep the values that they began with. "
        "Another value of an option that a launcher uses gives another launcher; the old one ends with its last task.",
        table(
            ("option", "type", "default"),
            [(f"[`{each.name}`](#{each.name})", each.type, _literal(each.default)) for each in config.OPTIONS],
        ),
    ]
    group = None
    for option in sorted(config.OPTIONS, key=lambda each: list(config.Group).index(each.group)):
        if option.group is not group:
            group = option.group
            parts.append(f"## {group.value}")
        given = [f"- Type: {option.type}", f"- Default: {_literal(option.default)}"]
        if option.example is not None:
            given.append(f"- Example: `{option.example}`")
        given.append(f"- In the environment: `{config.env_var(option.name)}`")
        parts += [f"### {option.name}", markdown(option.description), "\n".join(given)]
    return page("Configuration", *parts)


def _literal(text: str) -> str:
    return f"`{text}`" if text else "empty"
