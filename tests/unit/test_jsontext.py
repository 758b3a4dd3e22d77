"""JSON of any text: what is not UTF-8 comes back as it was."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from air_executor import jsontext

BYTES = st.binary(max_size=20).map(lambda data: data.decode("utf-8", "surrogateescape"))
NUMBERS = st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | BYTES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(BYTES, inner, max_size=4),
)


@given(VALUES, st.sampled_from([0, orjson.OPT_INDENT_2, orjson.OPT_APPEND_NEWLINE, orjson.OPT_SORT_KEYS]))
def test_what_is_written_is_read_back(value: object, option: int) -> None:
    assert jsontext.loads(jsontext.dumps(value, option), is_kept=True) == value


@given(st.binary(max_size=60))
def test_other_bytes_are_refused_as_json_is(data: bytes) -> None:
    try:
        value = jsontext.loads(data)
    except ValueError:
        return
    assert jsontext.loads(jsontext.dumps(value)) == value


@pytest.mark.parametrize(
    "data", [b'"\\ud800"', b'"\\udce9', b'["\\udce9", NaN]', b'["\\udce9", 1e400]', b'["\\udce9"' + b",[" * 100_000]
)
def test_what_is_no_text_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        jsontext.loads(data)


def test_what_could_not_be_written_again_is_refused_where_it_will_be() -> None:
    deep = b"[" * 300 + b"]" * 300
    assert jsontext.loads(deep)
    with pytest.raises(ValueError, match="nested too deeply"):
        jsontext.loads(deep, is_kept=True)


def test_numbers_too_large_are_read_alike_both_ways() -> None:
    [plain], [odd] = jsontext.loads(b"[123456789012345678901234567890]"), jsontext.loads(b"[18446744073709551616]")
    assert (type(plain), type(odd)) == (float, float)
    assert jsontext.loads(b'[18446744073709551616, "\\udce9"]') == [odd, "\udce9"]


def test_odd_bytes_are_shown_as_such() -> None:
    assert jsontext.shown("caf\udce9 ☕") == "caf\\xe9 ☕"
