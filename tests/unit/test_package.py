"""The package as pip and Airflow see it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

import air_executor
from air_executor import config, jobs, provider

LIGHT = [
    "air_executor",
    "air_executor.cli.main",
    "air_executor.config",
    "air_executor.launcher.client.backend",
    "air_executor.launcher.server.launcher",
    "air_executor.provider",
    "air_executor.runner.main",
    "air_executor.runs.store",
]


@pytest.mark.parametrize("module", LIGHT)
def test_a_module_that_must_be_light_imports_no_airflow(module: str) -> None:
    code = (
        f"import sys, {module}; from air_executor.provider import get_provider_info; get_provider_info()\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('airflow', 'sqlalchemy', 'pydantic')])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=120) == "[]\n"


#: What no fork of a launcher of jobs has a use for; each module costs every run memory, and time at its end.
NOT_FOR_FORKS = "air_executor.jobs.api air_executor.launcher.preload argparse decimal dotenv email filelock rich yaml"


def test_a_launcher_of_jobs_imports_nothing_that_its_runners_have_no_use_for() -> None:
    code = (
        "import sys, air_executor.launcher.__main__, air_executor.jobs.hooks, air_executor.jobs.rehearsal\n"
        f"print([name for name in {NOT_FOR_FORKS.split()} if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=120) == "[]\n"


@pytest.mark.parametrize("name", sorted(jobs.__all__))
def test_what_jobs_promises_is_there(name: str) -> None:
    assert getattr(jobs, name).__module__.startswith("air_executor.jobs.")


def test_what_is_not_in_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        air_executor.Nothing  # noqa: B018
    assert not hasattr(air_executor, "LocalExecutor")


def test_the_provider_is_described_as_airflow_wants_it() -> None:
    spec = importlib.util.find_spec("airflow")
    assert spec and spec.submodule_search_locations
    path = next(iter(Path(folder) / "provider_info.schema.json" for folder in spec.submodule_search_locations))
    info = provider.get_provider_info()
    jsonschema.validate(info, json.loads(path.read_text()))
    assert json.loads(json.dumps(info)) == info


def test_the_provider_names_what_can_be_found() -> None:
    info = provider.get_provider_info()
    assert info["versions"] == [air_executor.__version__]
    assert info["package-name"] == importlib.metadata.metadata("air-executor")["Name"]
    for dotted in info["executors"] + info["cli"]:
        module, _, name = dotted.rpartition(".")
        assert hasattr(importlib.import_module(module), name)


def test_the_provider_has_every_option_with_its_default() -> None:
    options = provider.get_provider_info()["config"]["air_executor"]["options"]
    assert list(options) == [option.name for option in config.OPTIONS]
    for option in config.OPTIONS:
        assert options[option.name]["default"] == option.default
        assert options[option.name]["description"]


def test_the_package_is_registered_with_airflow_and_has_its_command() -> None:
    [point] = [
        point
        for point in importlib.metadata.entry_points(group="apache_airflow_provider")
        if point.value.startswith("air_executor.")
    ]
    assert point.load() is provider.get_provider_info
    [command] = importlib.metadata.entry_points(group="console_scripts", name="air-executor")
    assert command.value == "air_executor.cli.main:main"


def test_the_installed_version_is_the_packages_own() -> None:
    assert importlib.metadata.version("air-executor") == air_executor.__version__


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(air_executor.__file__).parent / "py.typed").exists()
