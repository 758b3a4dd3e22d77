"""What ``executor_config["air"]`` may say."""

from __future__ import annotations

import datetime
import math
import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from air_executor.errors import LimitsError
from air_executor.machine.sizes import mebibytes
from air_executor.runs import limits
from air_executor.runs.limits import Limits, as_json, parse, public
from tests.unit.processes import result_of

KEYS = ("memory", "cpu_time", "cpus", "nice", "timeout", "gpus", "environment")

GOOD: list[tuple[str, Any, Any]] = [
    ("memory", 1, 1),
    ("memory", 1 << 40, 1 << 40),
    ("memory", "1", 1),
    ("memory", 1000.0, 1000),
    ("memory", "10b", 10),
    ("memory", "1kB", 1000),
    ("memory", "1k", 1024),
    ("memory", "1KiB", 1024),
    ("memory", "512MiB", 512 << 20),
    ("memory", "512 M", 512 << 20),
    ("memory", " 2gb ", 2 * 1000**3),
    ("memory", "1.5GiB", 3 << 29),
    ("memory", "1T", 1 << 40),
    ("memory", "1TB", 1000**4),
    ("cpu_time", 1, 1.0),
    ("cpu_time", 0.5, 0.5),
    ("timeout", 1, 1.0),
    ("timeout", 86400.5, 86400.5),
    ("cpus", 1, 1),
    ("cpus", 1000, 1000),
    ("nice", 0, 0),
    ("nice", 19, 19),
    ("nice", -20, -20),
    ("gpus", 1, 1),
    ("gpus", 8, 8),
    ("environment", {}, {}),
    ("environment", {"A": "", "B_1": "x=y\n"}, {"A": "", "B_1": "x=y\n"}),
]

NOT_SECONDS = (0, -1, math.nan, math.inf, -math.inf, True, None, "10", "1h", [], {})
BAD: list[tuple[str, Any]] = [
    *(("memory", value) for value in (0, -1, 0.5, "0", "-1", "", "MiB", "1 XB", "1e3", "1.5.5", "1,5G", "½G", "0x10")),
    *(("memory", value) for value in (None, True, False, [], {}, math.nan, math.inf, "1GiB extra", "1 0")),
    *(("cpu_time", value) for value in NOT_SECONDS),
    *(("timeout", value) for value in NOT_SECONDS),
    *(("cpus", value) for value in (0, -1, 1.0, 0.5, True, None, "1", [])),
    *(("gpus", value) for value in (0, -1, 1.0, True, None, "1", ["0"])),
    *(("nice", value) for value in (-21, 20, 1.0, True, None, "1")),
    *(("environment", value) for value in (None, [], "A=B", {"A": 1}, {"A": None}, {1: "x"}, {"A": ["x"]})),
    *(("environment", value) for value in ({"": "x"}, {"A=B": "x"}, {"A\0": "x"}, {"A": "x\0"})),
]


def ids(value: Any) -> str:
    return repr(value)


@pytest.mark.parametrize(("key", "value", "expected"), GOOD, ids=ids)
def test_a_good_value_is_taken(key: str, value: Any, expected: Any) -> None:
    assert getattr(parse({key: value}), key) == expected


@pytest.mark.parametrize(("key", "value"), BAD, ids=ids)
def test_a_bad_value_is_refused_and_the_error_names_its_key(key: str, value: Any) -> None:
    with pytest.raises(LimitsError, match=rf"executor_config\['air'\]\['{key}'\] = .* can not be applied: ."):
        parse({key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("memory", "9" * 400),
        ("memory", "9" * 400 + "GiB"),
        ("memory", 10**400),
        ("cpu_time", 10**400),
        ("timeout", 10**400),
    ],
    ids=lambda value: str(value)[:9],
)
def test_a_value_beyond_all_numbers_is_refused_and_the_error_names_its_key(key: str, value: Any) -> None:
    with pytest.raises(LimitsError, match=rf"\['{key}'\]"):
        parse({key: value})


def test_every_key_has_good_and_bad_values_here() -> None:
    assert {key for key, *_ in GOOD} == {key for key, _ in BAD} == set(KEYS) == set(limits._PARSERS)


def test_unknown_keys_are_refused_by_name_with_the_known_ones() -> None:
    with pytest.raises(LimitsError, match=r"unknown keys: 5, colour, memry\. Known are: memory, ") as caught:
        parse({"memry": "1G", "colour": "red", "memory": 1, 5: 1})
    for key in KEYS:
        assert key in str(caught.value)


@pytest.mark.parametrize("raw", ["1G", 5, ["memory"], True, 1.5, b"x"])
def test_what_is_not_a_dict_is_refused(raw: Any) -> None:
    with pytest.raises(LimitsError, match="must be a dict of limits"):
        parse(raw)


@pytest.mark.parametrize("raw", [None, {}])
def test_without_limits_there_are_none(raw: Any) -> None:
    assert parse(raw) == Limits()
    assert not parse(raw).are_measured
    assert public(raw) == {}


def test_only_memory_and_cpu_time_have_to_be_measured() -> None:
    assert {key for key, value, _ in GOOD if parse({key: value}).are_measured} == {"memory", "cpu_time"}


# What is written down


def test_of_an_environment_only_the_names_are_written_down() -> None:
    raw = {"environment": {"TOKEN": "secret-1", "B": "secret-2", "A": ""}, "memory": "1KiB"}
    assert public(raw) == {"environment": ["A", "B", "TOKEN"], "memory": 1024}
    assert parse(raw).public() == public(raw)


@pytest.mark.parametrize(
    "environment",
    [{"TOKEN": "secret\0"}, {"TOKEN": 5, "B": "secret"}, {"TOKEN": "secret", "": "secret"}, {"TOKEN": ["secret"]}],
)
def test_an_error_about_an_environment_does_not_tell_its_values(environment: Any) -> None:
    with pytest.raises(LimitsError) as caught:
        parse({"environment": environment})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("raw", ["x", {"memory": "much"}, {"colour": 1}, {"environment": {"TOKEN": 5}}, 5])
def test_of_limits_that_cannot_be_used_nothing_is_written_down(raw: Any) -> None:
    assert public(raw) == {}


# On the way to the runner


def test_plain_limits_are_the_same_after_the_way_to_the_runner() -> None:
    raw = {key: value for key, value, _ in GOOD}
    assert as_json(raw) == raw
    assert parse(as_json(raw)) == parse(raw)
    assert as_json(None) is None


class Odd:
    def __repr__(self) -> str:
        return "<something odd>"


@pytest.mark.parametrize(
    "value",
    [Odd(), {1, 2}, b"bytes", Path("x"), 1j, lambda: None, datetime.timedelta(1), math.nan, [Odd()], (Odd(),)],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("key", KEYS)
def test_what_is_not_plain_data_is_refused_by_name_after_the_way_to_the_runner(key: str, value: Any) -> None:
    with pytest.raises(LimitsError, match=rf"\['{key}'\]"):
        parse(as_json({key: value}))


@pytest.mark.parametrize(
    "raw", [Odd(), {Odd(): 1}, {("memory",): 1}, {"memory": "\ud800"}, {"cpus": -(1 << 70)}, {None: 1}, {5: 1}]
)
def test_what_is_not_plain_at_all_is_refused_after_the_way_to_the_runner(raw: Any) -> None:
    with pytest.raises(LimitsError):
        parse(as_json(raw))


# Applied


def test_priority_cpus_and_environment_hold_for_the_process_and_its_children() -> None:
    def apply() -> list[Any]:
        before = os.nice(0)
        parse({"nice": 3, "cpus": 1, "environment": {"AIR_TEST_LIMIT": "x"}}).apply()
        child = result_of(lambda: [os.nice(0), len(os.sched_getaffinity(0)), os.environ["AIR_TEST_LIMIT"]])
        return [before, child]

    before, child = result_of(apply)
    assert child == [before + 3, 1, "x"]
    assert "AIR_TEST_LIMIT" not in os.environ


def test_more_cpus_than_there_are_is_refused_by_name() -> None:
    available = len(psutil.Process().cpu_affinity() or [])
    with pytest.raises(LimitsError, match=rf"\['cpus'\] = {available + 1} .*this machine has {available} for it"):
        parse({"cpus": available + 1}).apply()
    assert len(psutil.Process().cpu_affinity() or []) == available


def test_a_priority_that_is_not_allowed_is_refused_by_name() -> None:
    def as_nobody() -> str:
        if os.geteuid() == 0:
            os.setresuid(12345, 12345, 12345)
        try:
            parse({"nice": -5}).apply()
        except LimitsError as error:
            return str(error)
        return "applied"

    assert "executor_config['air']['nice'] = -5 can not be applied: the system refuses it" in result_of(as_nobody)


def test_sizes_for_people_are_in_mib() -> None:
    assert mebibytes(512 << 20) == "512 MiB"
    assert mebibytes(0) == "0 MiB"


@pytest.mark.parametrize(
    ("value", "ends", "peaks", "limit"),
    [
        (["1GiB", "2GiB", "4GiB"], 0, [], 1 << 30),
        (["1GiB", "2GiB", "4GiB"], 1, [], 2 << 30),
        (["1GiB", "2GiB", "4GiB"], 7, [], 4 << 30),
        (("1", 2), 1, [], 2),
        ("auto", 0, [100] * 4, None),
        ("auto", 0, [100, 1000, 100, 100, 100], 1200),
        ("auto", 1, [1000] * 5, 2400),
        ("auto", 500, [1000] * 5, 1200 << 8),
        ({"auto": {}}, 0, [1000] * 5, 1200),
        ({"auto": {"floor": 5000}}, 0, [1000] * 5, 5000),
        ({"auto": {"ceiling": 500}}, 0, [], 500),
        ({"auto": {"floor": "1KiB", "ceiling": "2KiB"}}, 3, [1000] * 9, 2048),
    ],
)
def test_a_memory_limit_by_try_or_learned(value: Any, ends: int, peaks: list[int], limit: int | None) -> None:
    parsed = parse({"memory": value})
    assert parsed.memory is None and parsed.memory_rule is not None
    assert parsed.memory_rule.limit(ends, peaks) == limit
    assert "memory_rule" not in parsed.public()
    assert parse({"memory": parsed.public()["memory"]}) == parsed


@pytest.mark.parametrize(
    "value",
    [
        (),
        ["x"],
        [1, None],
        {"auto": 5},
        {"auto": {"flor": 1}},
        {"auto": {"floor": 2, "ceiling": 1}},
        {"floor": 1},
        "Auto",
    ],
)
def test_a_memory_rule_that_can_not_be_used_is_refused_by_name(value: Any) -> None:
    with pytest.raises(LimitsError, match=r"\['memory'\]"):
        parse({"memory": value})
