"""Draws what tasks do to an executor, by chance: scripts for ``tests/dags/hostile.py``."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

#: How a script may end, and what becomes of its task: the state in Airflow. From outside, the test ends some.
ENDS: dict[str, str] = {
    "return": "success",
    "raise": "failed",
    "exit": "failed",
    "exit_0_unseen": "failed",
    "exit_3_unseen": "failed",
    "sigkill": "failed",
    "sigabrt": "failed",
    "sigalrm": "failed",
    "fault": "failed",
    "exec": "failed",
    "recursion": "failed",
    "closing_all": "failed",
    "losing_its_channel": "failed",
}

#: Who is killed from outside while a script waits, once it has done its deeds or at any moment.
VICTIMS = ("task", "runner", "runner politely", "launcher and runner", "launcher")

_IGNORABLE = (1, 2, 3, 10, 12, 13, 14, 15, 17)


@dataclass(frozen=True)
class Script:
    """What one task does."""

    deeds: list[dict[str, Any]]
    end: str
    victim: str | None = None
    delay_s: float | None = None
    """When the victim is killed, in seconds after the task has begun; ``None``: when its deeds are done."""

    def conf(self) -> dict[str, Any]:
        """Return it as the DAG wants it."""
        return {"deeds": self.deeds, "end": self.end}

    @property
    def state(self) -> str:
        """The state of its task in the end."""
        return "failed" if self.end == "waiting" else ENDS[self.end]


def draw(rng: random.Random) -> Script:
    """Draw a script: up to six deeds, and an end by itself or by a kill from outside."""
    deeds = [_DEEDS[rng.choice(sorted(_DEEDS))](rng) for _ in range(rng.randint(0, 6))]
    if rng.random() < 0.3:
        victim = rng.choice(VICTIMS[:-1])
        return Script(deeds, "waiting", victim, rng.choice([None, None, rng.uniform(0, 0.5)]))
    # A launcher that is killed ends nobody.
    victim = "launcher" if rng.random() < 0.03 else None
    return Script(deeds, rng.choice(sorted(ENDS)), victim, 0.0 if victim else None)


def _child(rng: random.Random) -> dict[str, Any]:
    return {
        "do": "child",
        "depth": rng.choice([1, 1, 2, 3, 5, 10]),
        "session": rng.random() < 0.5,
        "stubborn": rng.random() < 0.5,
        "become": rng.choice([None, "sleep", "shell"]),
        "megabytes": rng.choice([0, 0, 5]),
    }


def _command(rng: random.Random) -> dict[str, Any]:
    argv = rng.choice(
        [
            ["sleep", "3600"],
            ["sh", "-c", "trap '' TERM; sleep 3600; sleep 3600"],
            ["sh", "-c", "(sleep 3600 &) ; exec sleep 3600"],
            ["nohup", "sleep", "3600"],
            ["sh", "-c", "setsid sleep 3600 & wait"],
        ]
    )
    return {"do": "command", "argv": argv, "session": rng.random() < 0.5}


_DEEDS = {
    "child": _child,
    "child again": _child,
    "command": _command,
    "pool": lambda rng: {"do": "pool"},
    "zombies": lambda rng: {"do": "zombies", "number": rng.randint(1, 5)},
    "signals": lambda rng: {"do": "signals", "numbers": rng.sample(_IGNORABLE, rng.randint(1, 5))},
    "block": lambda rng: {"do": "block", "numbers": rng.sample(_IGNORABLE, rng.randint(1, 5))},
    "settings": lambda rng: {"do": "settings", "umask": rng.choice([0, 0o77, 0o777]), "nice": rng.choice([0, 5])},
    "limits": lambda rng: {"do": "limits", "files": rng.choice([512, 1024])},
    "descriptors": lambda rng: {"do": "descriptors", "number": rng.choice([10, 40])},
    "memory": lambda rng: {"do": "memory", "megabytes": rng.choice([1, 20])},
    "shared": lambda rng: {"do": "shared", "megabytes": rng.choice([1, 5])},
    "threads": lambda rng: {"do": "threads", "number": rng.randint(1, 4), "daemon": rng.random() < 0.5},
    "loop": lambda rng: {"do": "loop"},
    "octets": lambda rng: {"do": "octets", "number": rng.choice([1, 50])},
    "unended": lambda rng: {"do": "unended", "kilobytes": rng.choice([1, 300])},
    "lines": lambda rng: {"do": "lines", "number": rng.choice([10, 2000])},
    "errors": lambda rng: {"do": "errors", "number": rng.randint(1, 20)},
}
