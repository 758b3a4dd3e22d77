"""Options: where they come from, and what they may be."""

from __future__ import annotations

import configparser
import dataclasses
import json
import os
import sys
from itertools import groupby
from pathlib import Path

import pytest
from airflow.configuration import AirflowConfigParser

from air_executor import config
from air_executor.config import OPTIONS, Config, Group, airflow_home, env_var, load, plain_getter
from air_executor.config.example import example
from air_executor.errors import ConfigError
from air_executor.machine import gpu_pool
from tests.support import airflow_env


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An Airflow home with nothing set anywhere."""
    for name in [*os.environ]:
        if name.startswith("AIRFLOW"):
            monkeypatch.delenv(name)
    path = tmp_path / "home"
    path.mkdir()
    monkeypatch.setenv("AIRFLOW_HOME", str(path))
    return path


def loaded(**options: str) -> Config:
    return load(options.get)


def test_every_option_has_a_default_that_can_be_used(home: Path) -> None:
    assert load(plain_getter()) == Config(
        state_dir=str(home / ".air-executor"),
        launch="exec" if sys.platform == "darwin" else "fork",
        launcher="own",
        on_shutdown="detach",
        api_patience_seconds=3600.0,
        preload=("auto",),
        launcher_idle_seconds=300.0,
        stop_grace_seconds=10.0,
        keep_days=7.0,
        keep_runs=10000,
        gpus=(),
    )


def test_every_option_is_a_value_of_the_configuration_and_is_described() -> None:
    ours = {option.name for option in OPTIONS if option.group is not Group.TEMPORAL}
    assert {*ours, "serves", "fence_seconds"} == set(Config.__dataclass_fields__)
    assert len(OPTIONS) == len({option.name for option in OPTIONS})
    for option in OPTIONS:
        assert option.description.endswith(".")
        assert option.type in ("string", "integer", "float")
        option.parse(option.default)
        if option.example:
            option.parse(option.example)


def test_the_options_of_a_group_stand_side_by_side() -> None:
    assert [group for group, _ in groupby(OPTIONS, key=lambda option: option.group)] == list(Group)


def test_what_is_kept_and_what_a_scheduler_does_at_its_end_asks_for_no_other_launcher() -> None:
    others = {option.name for option in OPTIONS if not option.for_launcher and option.group is not Group.TEMPORAL}
    budgets = {"cpu_budget", "over_budget", "budget_dir"}
    assert others == {"on_shutdown", "keep_days", "keep_runs", "keep_jobs", *budgets}


def test_the_example_file_is_what_the_table_says_and_sets_every_option_to_its_default(tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "airflow.cfg.example"
    assert path.read_text() == example(), "write it anew: python -m air_executor.config.example > airflow.cfg.example"
    parser = configparser.ConfigParser()
    parser.read(path)
    assert dict(parser["air_executor"]) == {option.name: option.default for option in OPTIONS}


BAD = [
    *(
        (name, value)
        for name in ("launcher_idle_seconds", "stop_grace_seconds", "keep_days")
        for value in ("-1", "nan")
    ),
    *(
        (name, value)
        for name in ("launcher_idle_seconds", "stop_grace_seconds", "keep_days")
        for value in ("inf", "1h")
    ),
    *((name, "") for name in ("launcher_idle_seconds", "stop_grace_seconds", "keep_days", "keep_runs", "launch")),
    *(("memory_budget", value) for value in ("-1", "0", "much", "auto, 1GiB", "")),
    *(("cpu_budget", value) for value in ("-1", "0", "nan", "inf", "")),
    ("over_budget", "wait"),
    ("budget_dir", "here"),
    *(("keep_runs", value) for value in ("-1", "1.5", "many", "1e3")),
    *(("launch", value) for value in ("Fork", "spawn", "fork,exec")),
    *(("preload", value) for value in ("pandas;numpy", "a b", "a..b", ".a", "a.", "../x", "1a", "a-b")),
    *(("gpus", value) for value in ("0,0", "../x", "-1", "0 1", "0;1", "GPU/1", ".", "auto,1 2")),
    *(("state_dir", value) for value in ("", " ", "relative", "./x", "../x", "{HOME}/x")),
]


@pytest.mark.parametrize(("name", "value"), BAD)
@pytest.mark.parametrize("source", ["environment", "file"])
def test_a_bad_value_is_refused_and_the_error_names_option_and_variable(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, source: str
) -> None:
    if source == "environment":
        monkeypatch.setenv(env_var(name), value)
    else:
        (home / "airflow.cfg").write_text(f"[air_executor]\n{name} = {value}\n")
    with pytest.raises(ConfigError, match=rf"\[air_executor\] {name} = ") as caught:
        load(plain_getter())
    assert f"AIRFLOW__AIR_EXECUTOR__{name.upper()}" in str(caught.value)
    assert repr(value.strip()) in str(caught.value)


def test_values_are_read_from_the_file(home: Path) -> None:
    (home / "airflow.cfg").write_text(
        "[core]\nexecutor = x\nkeep_runs = 1\n\n[air_executor]\nkeep_runs = 5\nkeep_days = 0.5 \npreload = a, b.c,\n"
        "launch=exec\n"
    )
    options = load(plain_getter())
    assert (options.keep_runs, options.keep_days, options.preload) == (5, 0.5, ("a", "b.c"))
    assert options.launch == "exec"


def test_the_environment_beats_the_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "airflow.cfg").write_text("[air_executor]\nkeep_runs = 5\nkeep_days = 2\n")
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__KEEP_RUNS", "6")
    options = load(plain_getter())
    assert (options.keep_runs, options.keep_days) == (6, 2)


def test_another_file_can_be_named(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "airflow.cfg").write_text("[air_executor]\nkeep_runs = 5\n")
    (tmp_path / "other.cfg").write_text("[air_executor]\nkeep_runs = 7\n")
    monkeypatch.setenv("AIRFLOW_CONFIG", str(tmp_path / "other.cfg"))
    assert load(plain_getter()).keep_runs == 7


def test_percent_signs_and_twice_named_options_do_not_stop_the_reading(home: Path) -> None:
    (home / "airflow.cfg").write_text(
        "[logging]\nlog_format = %(asctime)s %%\n[air_executor]\nkeep_runs = 5\nkeep_runs = 6\n"
        "[air_executor]\ngpus = 1\n"
    )
    options = load(plain_getter())
    assert (options.keep_runs, options.gpus) == (6, ("1",))


#: What people write for a folder, in the environment or in ``airflow.cfg``, and in which of them it has a meaning.
FOLDERS = [
    "/plain",
    "$AIRFLOW_HOME/air",
    "${AIRFLOW_HOME}/air",
    "~/air",
    "{AIRFLOW_HOME}/air",
    "$FOLDER_OF_FOLDERS/air",
    "/air/$NOT_THERE",
    "/air/${NOT_THERE}/$",
    "/with spaces/and#hash",
    "/semi;colon # no comment",
    "/100%%/x",
    "%(keep_runs)s",
    "/x/%(keep_runs)s",
    '"/quoted"',
    "  /around  ",
    "/$HOME/~",
    "/ü/é",
    "/x/%(nobody)s",
    "/100%/x",
]


@pytest.mark.parametrize("place", ["file", "environment"])
def test_the_command_line_finds_what_airflow_finds(
    place: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOLDER_OF_FOLDERS", "$AIRFLOW_HOME/nested")
    monkeypatch.setenv("HOME", str(tmp_path / "person"))
    for folder in FOLDERS:
        parser = AirflowConfigParser()
        if place == "file":
            (home / "airflow.cfg").write_text(f"[air_executor]\nkeep_runs = 5\nstate_dir = {folder}\n")
            parser.read(home / "airflow.cfg")
        else:
            monkeypatch.setenv(env_var("state_dir"), folder)
        try:
            wanted = parser.get("air_executor", "state_dir")
        except configparser.InterpolationError:
            with pytest.raises(ConfigError, match="state_dir"):
                plain_getter()("state_dir")
            continue
        assert plain_getter()("state_dir") == wanted, folder


def test_where_airflow_cfg_is_may_be_told_with_variables(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "other.cfg").write_text("[air_executor]\nkeep_runs = 7\n")
    for path in ("~/other.cfg", "$HOME/other.cfg"):
        monkeypatch.setenv("AIRFLOW_CONFIG", path)
        assert load(plain_getter()).keep_runs == 7
    monkeypatch.setenv("AIRFLOW_HOME", "$HOME/somewhere")
    assert airflow_home() == tmp_path / "somewhere"


def test_a_variable_that_refers_to_itself_is_said_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIRCLE", "$CIRCLE/x")
    monkeypatch.setenv(env_var("state_dir"), "$CIRCLE")
    with pytest.raises(ConfigError, match="refers to itself"):
        plain_getter()("state_dir")


@pytest.mark.parametrize("data", [b"keep_runs = 5\n", b"[air_executor\nx", b"[air_executor]\nkeep_runs = \xff\n"])
def test_a_file_that_is_not_one_is_refused_by_its_path(home: Path, data: bytes) -> None:
    path = home / "airflow.cfg"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load(plain_getter())
    assert str(path) in str(caught.value)


def test_airflow_home_stands_for_itself_in_the_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded(state_dir="{AIRFLOW_HOME}/x/{AIRFLOW_HOME}").state_dir == f"{home}/x/{home}".replace("//", "/")
    monkeypatch.delenv("AIRFLOW_HOME")
    monkeypatch.setenv("HOME", str(home))
    assert airflow_home() == home / "airflow"
    assert loaded().state_dir == str(home / "airflow" / ".air-executor")
    assert loaded(state_dir="~/x").state_dir == str(home / "x")


def test_values_may_have_space_around_them(tmp_path: Path) -> None:
    options = loaded(state_dir=f"  {tmp_path} ", keep_runs=" 5 ", launch=" exec\n", gpus=" 0 , 1 ")
    assert options.state_dir == str(tmp_path)
    assert (options.keep_runs, options.launch, options.gpus) == (5, "exec", ("0", "1"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        (",", ()),
        ("0", ("0",)),
        ("3,1,2", ("3", "1", "2")),
        ("GPU-8f6e0c5a-1d3b", ("GPU-8f6e0c5a-1d3b",)),
        ("MIG_1", ("MIG_1",)),
    ],
)
def test_gpus_are_numbers_or_names_in_the_order_given(text: str, expected: tuple[str, ...]) -> None:
    assert loaded(gpus=text).gpus == expected


def test_gpus_can_be_those_of_the_machine_that_this_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpu_pool, "devices", lambda: [2, 5])
    assert loaded(gpus="auto").gpus == loaded(gpus=" auto ").gpus == ("0@2", "1@5")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert loaded(gpus="auto").gpus == ("1@5",)
    assert loaded(gpus="0,1").gpus == ("1@5",)


def test_modules_are_a_list_with_commas() -> None:
    assert loaded(preload="").preload == ()
    assert loaded(preload="pandas").preload == ("pandas",)
    assert loaded(preload=" pandas , a.b.c_1 ,, ").preload == ("pandas", "a.b.c_1")


@pytest.mark.parametrize(
    ("options", "rehearses"),
    [
        ({}, True),
        ({"preload": "pandas"}, True),
        ({"preload": "auto,-rehearsal"}, False),
        ({"preload": "off"}, False),
        ({"preload": ""}, False),
        ({"launch": "exec"}, False),
    ],
)
def test_runs_are_rehearsed_unless_nothing_is_prepared_or_it_is_said(options: dict[str, str], rehearses: bool) -> None:
    assert loaded(**{"launch": "fork", **options}).rehearses_runs is rehearses


def test_auto_is_resolved_and_the_others_stay() -> None:
    assert loaded(launch="auto").launch in ("fork", "exec")
    assert loaded(launch="fork").launch == "fork"
    assert loaded(launch="exec").launch == "exec"


def test_options_come_back_from_json_as_they_were(tmp_path: Path) -> None:
    options = loaded(
        state_dir=f'{tmp_path}/ü "x" $HOME',
        preload="a,b.c",
        gpus="0,GPU-1",
        keep_days="0.25",
        launcher_idle_seconds="0",
    )
    text = options.to_json()
    assert "\n" not in text
    assert Config.from_json(text) == options
    assert isinstance(Config.from_json(text).gpus, tuple)
    assert hash(Config.from_json(text)) == hash(options)


def test_the_variable_of_an_option_is_named_as_airflow_names_it() -> None:
    assert env_var("keep_runs") == "AIRFLOW__AIR_EXECUTOR__KEEP_RUNS"
    assert config.SECTION == "air_executor"


def test_options_of_another_version_are_understood(tmp_path: Path) -> None:
    ours = airflow_env.config(tmp_path, gpus=("0",))
    document = json.loads(ours.to_json())
    del document["keep_runs"]
    others = Config.from_json(json.dumps({**document, "of_a_later_version": 1}))
    assert others == dataclasses.replace(ours, keep_runs=10000)
