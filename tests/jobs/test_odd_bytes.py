"""File names and arguments hold any bytes; they come back as they were."""

from __future__ import annotations

import os

from air_executor.jobs.model import TaskStatus
from tests.jobs.conftest import Yard


def test_any_bytes_in_names_and_arguments_come_back_as_they_were(yard: Yard) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    (yard.folder / name).write_bytes(b"12345")
    (yard.folder / "each.py").write_text(
        "import os\nfrom air_executor.jobs import queue_tasks\n"
        "def each():\n"
        "    found = [name for name in os.listdir() if name.endswith('.txt')]\n"
        "    queue_tasks([{'id': 'count', 'command': 'wc', 'args': ['-c', *found]}])\n"
        "    return found\n"
    )
    yard.submit({"id": "list", "function": "each:each"}, {"id": "odd", "command": name, "env": {"ODD": name}})
    files = yard.finish()
    assert files.tasks["list"].result == [name]
    assert files.tasks["count"].status is TaskStatus.COMPLETED
    assert os.fsencode(files.log_file("count").read_bytes().decode(errors="surrogateescape")) == b"5 caf\xe9.txt\n"
    assert "caf" in (files.tasks["odd"].error or "")
    assert "caf" in yard.call("job", "job")
    assert "caf" in yard.call("job", "job", "--json")
    assert "caf" in yard.call("results", "job", code=1)
