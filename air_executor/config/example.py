"""The text of ``airflow.cfg.example``; ``python -m air_executor.config.example`` prints it."""

from __future__ import annotations

import sys
import textwrap
from itertools import groupby

from air_executor.config.options import OPTIONS, SECTION


def example() -> str:
    """Return the text of ``airflow.cfg.example``: every option, by groups, with its default and its reason."""
    lines = [
        "# AirExecutor's part of airflow.cfg. Every option has its default here; leave out what you don't change.",
        f"# The same in the environment: AIRFLOW__CORE__EXECUTOR, AIRFLOW__{SECTION.upper()}__STATE_DIR and so on.",
        "",
        "[core]",
        "executor = air_executor.AirExecutor",
        "",
        f"[{SECTION}]",
    ]
    for group, options in groupby(OPTIONS, key=lambda option: option.group):
        lines += ["", f"## {group.value}"]
        for option in options:
            lines += ["", *(f"# {line}" for line in textwrap.wrap(option.description.replace("``", ""), 98))]
            if option.example is not None:
                lines.append(f"# Example: {option.name} = {option.example}")
            lines.append(f"{option.name} = {option.default}".rstrip())
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(example())
