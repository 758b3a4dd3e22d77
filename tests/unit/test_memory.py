"""How a launcher lays out its memory. In forked children: this process's memory stays as it is."""

from __future__ import annotations

import errno
import os
import sys
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest

from air_executor.launcher import memory
from tests.unit.processes import result_of

#: A block size of which there is plenty: that of small dicts' instances and texts.
SIZE = 64


def test_free_blocks_are_found_and_filled() -> None:
    def fill() -> list[int]:
        kept: Any = [bytes(SIZE - sys.getsizeof(b"")) for _ in range(50_000)]
        kept = kept[::2]  # every other one is free
        before = memory.free_blocks()[SIZE]
        memory.fill_gaps()
        after = memory.free_blocks()[SIZE]
        del kept
        return [before, after]

    before, after = result_of(fill)
    assert before > 20_000
    assert after < 1_000


def test_a_full_disk_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(memory, "tempfile", SimpleNamespace(TemporaryFile=full))
    assert memory.free_blocks() == {}
    assert "gaps in memory can't be found" in capfd.readouterr().out


def test_code_that_was_used_is_gathered() -> None:
    def gather() -> list[Any]:
        functions: list[FunctionType] = []
        for number in range(2000):
            names: dict[str, Any] = {}
            exec(f"def function(x):\n    return [x * {number + 1000}, 'of number {number}']", names)
            functions.append(names["function"])
        used = functions[::20]
        spared = [each for number, each in enumerate(functions) if number % 20]
        spared_code = [each.__code__ for each in spared]
        pages_before = len({id(each.__code__) >> 12 for each in used})
        expected = [each(2) for each in functions]
        memory.gather_code([each.__code__ for each in used])
        return [
            pages_before,
            len({id(each.__code__) >> 12 for each in used}),
            all(each.__code__ is code for each, code in zip(spared, spared_code, strict=True)),
            [each(2) for each in functions] == expected,
        ]

    pages_before, pages_after, are_spared, work_as_before = result_of(gather)
    assert pages_after < pages_before / 2
    assert are_spared
    assert work_as_before
