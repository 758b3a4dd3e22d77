"""The page of all commands."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from markdown import markdown, page, table

from air_executor.cli import help as cli_help
from air_executor.cli.commands import all_commands
from air_executor.cli.table import STATE_DIR, Argument, Command


def commands() -> str:
    """Return the page of all commands."""
    parts = [
        f"{cli_help.DESCRIPTION} `airflow air COMMAND` is the same as `air-executor COMMAND`.",
        f"{cli_help.RULE} See [the state directory](../operations.md#the-state-directory).",
        "Exit codes: 0 it worked, 1 it did not, 2 wrong use or no such thing, 124 a wait timed out, 130 Ctrl-C. "
        "With `--json`, an error is one object on stdout: `error`, `retryable`, `hint`.",
    ]
    for title, members in cli_help.grouped(all_commands()):
        parts.append(f"## {title.partition(' (')[0]}")
        for command in members:
            parts += _command(command)
    return page("Command line", *parts)


def _command(command: Command) -> Iterator[str]:
    yield f"### {command.name}"
    yield markdown(f"{command.help[:1].upper()}{command.help[1:]}.")
    arguments = [*command.arguments, STATE_DIR]
    usage = " ".join(filter(None, (_usage(each) for each in command.arguments)))
    yield f"```text\nair-executor {command.name} {usage}".rstrip() + "\n```"
    yield table(("argument", "meaning"), [(_flags(each), _meaning(each)) for each in arguments])
    examples = cli_help.epilog(command, "air-executor").partition("\n\n")[0]
    if examples.startswith("Examples:"):
        lines = [line.strip() for line in examples.splitlines()[1:]]
        shown = "\n".join(f"{line}  # {what}" for line, what in zip(lines[::2], lines[1::2], strict=True))
        yield f"```console\n{shown}\n```"


def _usage(argument: Argument) -> str:
    word = _value(argument)
    if argument.flags[0].startswith("-"):
        text = f"{argument.flags[-1]} {word}".strip()
        return text if argument.options.get("required") else f"[{text}]"
    many = argument.options.get("nargs")
    if many in ("*", argparse.REMAINDER):
        return f"[{word}…]"
    return {"?": f"[{word}]", "+": f"{word}…"}.get(str(many), word)


def _value(argument: Argument) -> str:
    options = argument.options
    if options.get("action") in ("store_true", "store_false", "count"):
        return ""
    if (metavar := options.get("metavar")) is not None:
        return metavar if isinstance(metavar, str) else " ".join(metavar)
    if (choices := options.get("choices")) is not None:
        return "{" + ",".join(map(str, choices)) + "}"
    name = argument.flags[-1].lstrip("-")
    return name.upper().replace("-", "_") if argument.flags[0].startswith("-") else name.upper()


def _flags(argument: Argument) -> str:
    if not argument.flags[0].startswith("-"):
        return f"`{_value(argument) or argument.flags[0]}`"
    return ", ".join(f"`{f'{flag} {_value(argument)}'.strip()}`" for flag in argument.flags)


def _meaning(argument: Argument) -> str:
    options = argument.options
    text = str(options.get("help", ""))
    default = options.get("default")
    text = text.replace("%(default)s", str(default)).replace("%%", "%")
    return markdown(text)
