"""The services of a compose file as processes, each in a PID namespace and with a host name of its own, in one network.

No image is used. A path in a container is the same path below a folder of the test; a service's name leads to the
network's own loopback address, where each listens at a port of its own.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.support import hosts, postgres
from tests.support.airflow_env import REPOSITORY
from tests.support.waiting import wait_for

#: Programs of the images, as they are called here.
_PROGRAMS = {
    "airflow": (sys.executable, "-m", "airflow"),
    "air-executor": (sys.executable, "-m", "air_executor.cli"),
    "temporal": (str(Path(sys.executable).with_name("temporal")),),
}

#: What the entrypoints of images do with a command.
_ENTRYPOINTS = {"airflow-air-executor": ("airflow",), "temporalio/temporal": ("temporal",)}

_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")

#: Folders of the containers.
_FOLDERS = ("/var/lib/air-executor", "/var/lib/temporal", "/opt/airflow")


@dataclass
class Compose:
    """A compose file with the environment of its ``.env``."""

    file: Path
    folder: Path
    """For what is on volumes and in containers."""
    environment: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    network: subprocess.Popen[bytes] | None = None
    _network_pid: int = 0
    _data: Path | None = None
    """Of PostgreSQL."""

    @functools.cached_property
    def services(self) -> dict[str, Any]:
        """The services of the profiles that are on."""
        document = yaml.safe_load(self.file.read_text())
        profiles = self.environment.get("COMPOSE_PROFILES", "").split(",")
        services: dict[str, Any] = self._resolve(document["services"])
        return {name: s for name, s in services.items() if not s.get("profiles") or set(s["profiles"]) & set(profiles)}

    def _resolve(self, value: Any) -> Any:
        """Return a part of the document with the values of variables, and this machine's paths."""
        if isinstance(value, dict):
            return {name: self._resolve(each) for name, each in value.items()}
        if isinstance(value, list):
            return [self._resolve(each) for each in value]
        if not isinstance(value, str):
            return value

        def fill(match: re.Match[str]) -> str:
            name, how, default = match.groups()
            found = self.environment.get(name) or (default if how == "-" else None)
            assert found is not None, f"the variable {name} is not set"
            return found

        text = _VARIABLE.sub(fill, value)
        for folder in _FOLDERS:
            text = text.replace(folder, f"{self.folder}{folder}")
        return text

    def order(self) -> list[str]:
        """Return the services, each after those that it depends on."""
        ordered: dict[str, None] = {}

        def add(name: str) -> None:
            for other in self.services[name].get("depends_on", {}):
                add(other)
            ordered.setdefault(name)

        for name in self.services:
            add(name)
        return list(ordered)

    # Processes

    def up(self) -> None:
        """Start all services, each when what it depends on is as it wants it."""
        for folder in (*_FOLDERS, "/opt/airflow/logs"):
            (self.folder / folder[1:]).mkdir(parents=True, exist_ok=True)
        shutil.copytree(REPOSITORY / "examples" / "dags", self.folder / "opt" / "airflow" / "dags")
        self.network, self._network_pid = hosts.new_namespaces("net", "mount", "pid")
        names = " ".join(["localhost", *self.services])
        (self.folder / "hosts").write_text(f"127.0.0.1 {names}\n")
        self.run_inside("ip", "link", "set", "lo", "up")
        self.run_inside("mount", "--bind", str(self.folder / "hosts"), "/etc/hosts")
        for name in self.order():
            for other, wanted in self.services[name].get("depends_on", {}).items():
                self._wait_for(other, wanted["condition"])
            self._start(name)

    def _wait_for(self, name: str, condition: str) -> None:
        if condition == "service_completed_successfully":
            assert self.processes[name].wait(300) == 0, self.log(name)
        elif condition == "service_healthy":
            wait_for(lambda: self.is_healthy(name), f"{name} to be healthy", every_s=0.5)

    def is_healthy(self, name: str) -> bool:
        """Run a service's health check.

        :raises AssertionError: the service has ended.
        """
        assert self.processes[name].poll() is None, f"{name} has ended: {self.log(name)}"
        if (main := self._main(name)) is None:
            return False
        kind, *command = self.services[name]["healthcheck"]["test"]
        argv = ["sh", "-c", *command] if kind == "CMD-SHELL" else self._argv(command)
        done = subprocess.run(
            [*hosts.enter(main.pid), *argv], env=self._env(name), capture_output=True, cwd=REPOSITORY, check=False
        )
        return done.returncode == 0

    def _start(self, name: str) -> None:
        service = self.services[name]
        if service["image"].startswith("postgres:"):
            self._start_postgres(name)
            return
        if name == "volumes":
            # It gives the folders to the images' users. Here they are the test's.
            assert service["entrypoint"] == ["/bin/sh", "-c"] and service["command"][0].startswith("chown ")
            self.processes[name] = subprocess.Popen(["true"])
            return
        command = service["command"]
        if (entrypoint := service.get("entrypoint")) is not None:
            assert entrypoint[:3] == ["/usr/bin/dumb-init", "--single-child", "--"]
            command = [*entrypoint[3:], *command]
        else:
            command = [*_ENTRYPOINTS[service["image"].partition(":")[0]], *command]
        self._popen(name, *self._argv(command))

    def _popen(self, name: str, *argv: str) -> None:
        host = self.services[name].get("hostname", name)
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [
                    *self._inside(),
                    *("unshare", "--uts", "--pid", "--mount-proc", "--fork", "--kill-child=SIGTERM"),
                    *("sh", "-c", 'hostname "$0"; exec "$@"', host, *argv),
                ],
                env=self._env(name),
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _start_postgres(self, name: str) -> None:
        """Start PostgreSQL with the user and the database that its image would make."""
        import psycopg2

        given = self.services[name]["environment"]
        self._data = postgres.new_folder()
        server = postgres.serve(self._data)
        connection = psycopg2.connect(server.get_uri())
        connection.autocommit = True
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute(f"CREATE ROLE {given['POSTGRES_USER']} LOGIN SUPERUSER")
            cursor.execute(f"CREATE DATABASE {given['POSTGRES_DB']} OWNER {given['POSTGRES_USER']}")
        data, user = self._data, server.system_user
        server.stop()
        as_user = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups"] if user else []
        self._popen(
            name,
            *as_user,
            *(str(server.bin_path / "postgres"), "-D", str(data), "-p", "5432"),
            *("-c", "listen_addresses=*", "-c", f"unix_socket_directories={data}"),
        )

    def _argv(self, command: list[str]) -> list[str]:
        return [*_PROGRAMS.get(command[0], (command[0],)), *command[1:]]

    def _env(self, name: str) -> dict[str, str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        home = str(self.folder / "opt" / "airflow")
        images = {"PATH": path, "HOME": home, "PYTHONPATH": str(REPOSITORY)}
        return {**images, "AIRFLOW_HOME": home, **self.services[name].get("environment", {})}

    def _inside(self) -> list[str]:
        return hosts.enter(self._network_pid)

    def _main(self, name: str) -> psutil.Process | None:
        """Return the main process of a service, once it has begun: the child of what has made its namespaces."""
        for process in psutil.Process(self.processes[name].pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.ppid() != self.processes[name].pid and psutil.Process(process.ppid()).name() == "unshare":
                    return process
        return None

    def run_inside(self, *command: str) -> str:
        """Run a command in the network, and return what it prints."""
        done = subprocess.run([*self._inside(), *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def stop(self, name: str) -> int:
        """Stop a service as ``docker compose stop`` does, in the time that it asks for, and return its exit code."""
        main = self._main(name)
        assert main is not None, f"{name} does not run"
        main.send_signal(signal.SIGTERM)
        grace = self.services[name].get("stop_grace_period", "10s")
        return self.processes[name].wait(float(grace.removesuffix("s")))

    def kill(self) -> None:
        """End everything."""
        if self.network is not None:
            os.kill(self._network_pid, signal.SIGKILL)
            self.network.wait()
        for process in self.processes.values():
            process.kill()
            process.wait()
        if self._data is not None:
            shutil.rmtree(self._data)
