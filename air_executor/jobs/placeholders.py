"""The placeholders ``${tasks.ID.result}`` and ``${item}``: how they look, and which tasks a text names with them.

:mod:`air_executor.jobs.templates` puts the values in their place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from air_executor.jobs.names import NAME

#: A text that is the result of a task, and nothing else. The group is the task's id.
REFERENCE = rf"\$\{{tasks\.({NAME})\.result\}}"

#: A placeholder within a text; ``escape`` is the ``$`` before one that is to stay as it is.
PLACEHOLDER = re.compile(rf"(?P<escape>\$?)(?P<text>\$\{{(?:tasks\.(?P<id>{NAME})\.result|item)\}})")


def references(*values: Any) -> list[str]:
    """Return the ids of the tasks whose results are named anywhere in ``values``, each once, in order."""
    found = dict.fromkeys(
        match["id"]
        for value in values
        for text in texts(value)
        if "${tasks." in text
        for match in PLACEHOLDER.finditer(text)
        if match["id"] and not match["escape"]
    )
    return list(found)


def texts(value: Any) -> Iterator[str]:
    """Yield each text in plain data, however deep it lies. Keys of objects are not among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts(each)
