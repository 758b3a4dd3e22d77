"""Whether two processes have imported the same: what is compared of their modules."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest

from air_executor.launcher.preload.module_state import contents


def number_of(value: Any) -> dict[str, int]:
    module = types.ModuleType("package.part")
    vars(module)["kept"] = value
    return contents({"package.part": module}, set())


def records(filler: bytes, value: int) -> Any:
    layout = {"names": ["a"], "formats": ["u1"], "offsets": [0], "itemsize": 16}
    found = np.ndarray((1,), dtype=np.dtype(layout), buffer=bytearray(filler * 16))
    found["a"] = value
    return found


def long_double(filler: bytes, value: float) -> Any:
    whole = np.longdouble(value).tobytes()
    used = 10 if len(whole) > 8 and np.finfo(np.longdouble).nmant == 63 else len(whole)
    return np.ndarray((1,), dtype=np.longdouble, buffer=bytearray(whole[:used] + filler * (len(whole) - used)))


@pytest.mark.parametrize("make", [records, long_double])
def test_bytes_of_an_array_that_belong_to_no_value_do_not_count(make: Any) -> None:
    assert number_of(make(b"\x00", 3)) == number_of(make(b"\xff", 3))
    assert number_of(make(b"\x00", 3)) != number_of(make(b"\x00", 4))


def test_arrays_of_other_kinds_are_compared_by_what_they_hold() -> None:
    assert number_of(np.array([1.0, 2.0])) == number_of(np.array([1.0, 2.0]))
    assert number_of(np.array([1.0, 2.0])) != number_of(np.array([1.0, 3.0]))
    assert number_of(np.array([1, 2], dtype="i4")) != number_of(np.array([1, 2], dtype="i8"))
