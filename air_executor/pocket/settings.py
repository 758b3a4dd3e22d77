"""The settings of a run's own Airflow: its ``airflow.cfg``, and the environment of its processes."""

from __future__ import annotations

import base64
import configparser
import io
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from air_executor.machine.safe_files import replace_file
from air_executor.pocket.folder import RunFolder
from air_executor.pocket.request import DagError, Request

#: The name under which Airflow knows the folder of the DAG. That of its own default, so that workers know it, too.
BUNDLE = "dags-folder"

_EXECUTORS = {"local": "air_executor.AirExecutor", "temporal": "air_executor.TemporalExecutor"}

#: Of a configuration that is passed on, these stay out: a run has its own database, server, scheduler and folders.
_OWN_SECTIONS = frozenset({"database", "dag_processor", "scheduler", "triggerer", "api_auth"})
_OWN_OPTIONS = frozenset(
    {
        ("core", "executor"),
        ("core", "dags_folder"),
        ("core", "load_examples"),
        ("core", "parallelism"),
        ("core", "dags_are_paused_at_creation"),
        ("core", "execution_api_server_url"),
        ("core", "fernet_key"),
        ("core", "default_pool_task_slot_count"),
        ("core", "simple_auth_manager_passwords_file"),
        ("api", "host"),
        ("api", "port"),
        ("api", "base_url"),
        ("api", "workers"),
        ("logging", "base_log_folder"),
        ("logging", "log_filename_template"),
        ("logging", "dag_processor_child_process_log_directory"),
        ("air_executor", "state_dir"),
        ("air_executor", "launcher"),
        ("air_executor", "on_shutdown"),
        ("air_executor", "on_launcher_stop"),
    }
)

_LOG_NAME = (
    "dag_id={{ ti.dag_id }}/run_id={{ ti.run_id }}/task_id={{ ti.task_id }}/"
    "{% if ti.map_index >= 0 %}map_index={{ ti.map_index }}/{% endif %}"
    "attempt={{ try_number|default(ti.try_number) }}.log"
)

_PREFIX = "AIRFLOW__"

#: Variables that say which Airflow is meant, or how it is set up.
_OTHERS = frozenset({"AIRFLOW_HOME", "AIRFLOW_CONFIG"})
_OTHERS_BEGIN = ("AIRFLOW__", "_AIRFLOW", "AIR_EXECUTOR", "PYTEST_")


def write_settings(folder: RunFolder, request: Request, environ: Mapping[str, str] = os.environ) -> None:
    """Write ``airflow.cfg`` of a run. The keys of one that was interrupted stay.

    :raises DagError: a configuration that is to be passed on can't be read.
    """
    path = folder.home / "airflow.cfg"
    former = _from_file(path) if path.exists() else {}
    options: dict[tuple[str, str], str] = {}
    for source in request.config_from:
        options |= _from_environment(environ) if source == "env" else _from_file(Path(source))
    options = {
        (section, name): value
        for (section, name), value in options.items()
        if section not in _OWN_SECTIONS and (section, name) not in _OWN_OPTIONS
    }
    options |= _own(folder, request)
    for key in (("api", "secret_key"), ("api_auth", "jwt_secret"), ("core", "fernet_key")):
        options.setdefault(key, former.get(key) or base64.urlsafe_b64encode(os.urandom(32)).decode())
    parser = configparser.RawConfigParser(strict=False)
    for (section, name), value in sorted(options.items()):
        if not parser.has_section(section):
            parser.add_section(section)
        parser.set(section, name, value.replace("%", "%%"))
    text = io.StringIO()
    parser.write(text)
    replace_file(path, text.getvalue().encode())


def _from_environment(environ: Mapping[str, str]) -> dict[tuple[str, str], str]:
    found = {}
    for variable, value in environ.items():
        section, separator, name = variable.removeprefix(_PREFIX).partition("__")
        if variable.startswith(_PREFIX) and separator:
            found[section.lower(), name.lower()] = value
    return found


def _from_file(path: Path) -> dict[tuple[str, str], str]:
    parser = configparser.ConfigParser(strict=False)
    try:
        with path.open(encoding="utf-8") as file:
            parser.read_file(file)
        return {
            (section, name): parser.get(section, name)
            for section in parser.sections()
            for name in parser.options(section)
            if name not in parser.defaults()
        }
    except (OSError, configparser.Error, UnicodeDecodeError) as error:
        raise DagError(f"{path} can't be read as an airflow.cfg: {error}") from None


def _own(folder: RunFolder, request: Request) -> dict[tuple[str, str], str]:
    bundle = {
        "name": BUNDLE,
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": request.source.bundle},
    }
    # A writer waits for another one's transaction for so long, in seconds; SQLite's default is 5.
    database = f"sqlite:///{folder.database}?timeout=60"
    return {
        ("core", "executor"): _EXECUTORS[request.on],
        ("core", "dags_folder"): request.source.bundle,
        ("core", "load_examples"): "False",
        ("core", "parallelism"): str(request.parallelism),
        ("core", "max_active_tasks_per_dag"): str(request.parallelism),
        ("core", "dags_are_paused_at_creation"): "False",
        # The default asks the network for this machine's name.
        ("core", "hostname_callable"): "socket.gethostname",
        ("database", "sql_alchemy_conn"): database,
        ("database", "load_default_connections"): "False",
        ("dag_processor", "dag_bundle_config_list"): json.dumps([bundle]),
        ("dag_processor", "min_file_process_interval"): "1",
        ("logging", "base_log_folder"): str(folder.logs),
        ("logging", "log_filename_template"): _LOG_NAME,
        ("logging", "dag_processor_child_process_log_directory"): str(folder.logs / "dag_processor"),
        ("scheduler", "use_job_schedule"): "False",
        # There is one run to look at, and somebody waits for it.
        ("scheduler", "scheduler_idle_sleep_time"): "0.2",
        # No other scheduler uses this database: orphans in it are from an interrupted Airflow of this run.
        ("scheduler", "scheduler_health_check_threshold"): "10",
        ("scheduler", "orphaned_tasks_check_interval"): "10",
        ("air_executor", "state_dir"): str(folder.state_dir),
        ("air_executor", "on_shutdown"): "detach",
        ("air_executor", "on_launcher_stop"): "stop",
    }


def environment(folder: RunFolder, request: Request, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment of a run's processes: the user's, without what is for another Airflow.

    :raises DagError: the file of variables can't be read.
    """
    env = _for_any(environ)
    if request.env_file is not None:
        from dotenv import dotenv_values

        try:
            read = dotenv_values(request.env_file, interpolate=True)
        except (OSError, UnicodeDecodeError) as error:
            raise DagError(f"{request.env_file} can't be read: {error}") from None
        env |= _for_any({name: value for name, value in read.items() if value is not None})
    path = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', os.defpath)}"
    return env | {"AIRFLOW_HOME": str(folder.home), "PATH": path}


def _for_any(environ: Mapping[str, str]) -> dict[str, str]:
    """Return variables without those that say which Airflow is meant, or how it is set up."""
    return {
        name: value for name, value in environ.items() if name not in _OTHERS and not name.startswith(_OTHERS_BEGIN)
    }
