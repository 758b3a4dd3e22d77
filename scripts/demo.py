"""The part of scripts/demo that needs Python: starts Airflow, runs an example, says where to look."""

from __future__ import annotations

import argparse
import base64
import configparser
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from air_executor.launcher.address import all_addresses
from air_executor.launcher.client.control import status
from air_executor.runs.store import RunStore

REPOSITORY = Path(__file__).resolve().parent.parent
HOME = REPOSITORY / ".demo"
DAG = "example_dag"
USER = "admin"
PASSWORDS = HOME / "simple_auth_manager_passwords.json.generated"

#: How long Airflow may take to start and to end, and the example to run, in seconds.
START_S, END_S, RUN_S = 180.0, 30.0, 120.0


def free_port(*wanted: int) -> int:
    """Return a free port: the first of those that are wanted, or any."""
    for port in (*wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise SystemExit("no free port")


def configure(port: int, executor: str = "air_executor.AirExecutor", temporal_address: str = "") -> None:
    """Write the demo's settings into its ``airflow.cfg``, where every command finds them that has its AIRFLOW_HOME."""
    path = HOME / "airflow.cfg"
    parser = configparser.RawConfigParser(strict=False)
    parser.read(path, encoding="utf-8")
    for section, options in {
        "core": {
            "executor": executor,
            "dags_folder": str(REPOSITORY / "examples" / "dags"),
            "load_examples": "False",
            # Somebody who triggers a DAG wants it to run.
            "dags_are_paused_at_creation": "False",
        },
        # The demo ends its launcher, and what the launcher still runs.
        "air_executor": {"on_launcher_stop": "stop", "temporal_address": temporal_address},
        "api": {"port": str(port), "base_url": f"http://localhost:{port}"},
    }.items():
        for name, value in options.items():
            _set(parser, section, name, value.replace("%", "%%"))
    # Those that Airflow makes up for a file of its own; all its processes need the same.
    for section, name in (("core", "fernet_key"), ("api", "secret_key"), ("api_auth", "jwt_secret")):
        if not parser.get(section, name, fallback=""):
            _set(parser, section, name, base64.urlsafe_b64encode(os.urandom(32)).decode())
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        parser.write(file)


def _set(parser: configparser.RawConfigParser, section: str, name: str, value: str) -> None:
    if not parser.has_section(section):
        parser.add_section(section)
    parser.set(section, name, value)


def environment() -> dict[str, str]:
    """Return the environment for the demo's Airflow; what the user has set for another one stays out."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "AIR_EXECUTOR"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return env | {"PATH": path, "AIRFLOW_HOME": str(HOME)}


class Api:
    """Airflow's REST API, logged in."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.token = ""

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Return the answer to a call."""
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def log_in(self) -> str:
        """Log in as the user that `airflow standalone` made, and return the password."""
        password: str = json.loads(PASSWORDS.read_text())[USER]
        self.token = self.call("POST", "/auth/token", {"username": USER, "password": password})["access_token"]
        return password


class Parts:
    """The processes of the demo, in one process group; what they print is in files of their names."""

    def __init__(self) -> None:
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.env = environment()

    def start(self, name: str, *command: str, **env: str) -> None:
        """Start a process."""
        group = next((process.pid for process in self.processes.values()), 0)
        with (HOME / f"{name}.log").open("wb") as output:
            self.processes[name] = subprocess.Popen(
                command, env=self.env | env, stdout=output, stderr=output, process_group=group
            )

    def start_airflow(self, *arguments: str) -> None:
        """Start a command of Airflow."""
        self.start(arguments[0], sys.executable, "-m", "airflow", *arguments)

    def check(self) -> None:
        """End the demo if one of them has ended."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise SystemExit(f"{name} ended with {process.returncode}; see {HOME / name}.log")

    def end(self) -> None:
        """End them with all that they have started, and the launchers."""
        pids = [process.pid for process in self.processes.values()]
        if not pids:
            return
        for signum in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + END_S
            try:
                os.killpg(pids[0], signum)
                while time.monotonic() < deadline:
                    for process in self.processes.values():
                        process.poll()
                    os.killpg(pids[0], 0)
                    time.sleep(0.1)
            except ProcessLookupError:
                break
        for pid in launcher_pids():
            with contextlib.suppress(psutil.NoSuchProcess):
                launcher = psutil.Process(pid)
                launcher.terminate()
                launcher.wait(END_S)


def launcher_pids() -> list[int]:
    """Return the process ids of the demo's launchers, which outlive the scheduler for some seconds."""
    stores = [RunStore(path) for path in (HOME / ".air-executor", *HOME.glob("host-*"))]
    addresses = [address for store in stores for address in all_addresses(store)]
    return [answer["pid"] for address in addresses if (answer := status(address)) is not None]


def start_temporal(parts: Parts) -> tuple[str, str]:
    """Start a development server of Temporal, and return its address and that of its UI."""
    port, ui_port = free_port(), free_port()
    server = ("server", "start-dev", "--ip", "127.0.0.1", "--port", str(port), "--ui-port", str(ui_port))
    database = ("--db-filename", str(HOME / "temporal.db"), "--log-level", "warn")
    parts.start("temporal", str(Path(sys.executable).parent / "temporal"), *server, *database)
    return f"127.0.0.1:{port}", f"http://127.0.0.1:{ui_port}"


def start_hosts(parts: Parts) -> None:
    """Start Airflow's parts, as `airflow standalone` knows local executors only, and two workers beside them."""
    subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"], env=parts.env, check=True, stdout=subprocess.DEVNULL
    )
    for component in ("api-server", "scheduler", "dag-processor", "triggerer"):
        parts.start_airflow(component)
    for name in ("one", "two"):
        command = ("worker", "--name", name, "--slots", "4", "--no-logs")
        state_dir = {"AIRFLOW__AIR_EXECUTOR__STATE_DIR": str(HOME / f"host-{name}")}
        parts.start(f"worker-{name}", sys.executable, "-m", "air_executor.cli", *command, **state_dir)


def attempt(action: Any, deadline_s: float, parts: Parts) -> Any:
    """Return what ``action`` returns, as soon as it is something; end the demo when that takes too long."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        parts.check()
        try:
            if value := action():
                return value
        except (OSError, urllib.error.URLError, KeyError, json.JSONDecodeError):
            pass  # not there yet
        time.sleep(0.5)
    raise SystemExit(f"gave up after {deadline_s:.0f} s; see {HOME}/*.log")


def main() -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(description="Airflow with AirExecutor, and an example run to its end.")
    parser.add_argument("--once", action="store_true", help="end when the example has ended")
    parser.add_argument("--temporal", action="store_true", help="TemporalExecutor, a Temporal server and two workers")
    args = parser.parse_args()
    HOME.mkdir(exist_ok=True)
    port, parts, hints = free_port(8080), Parts(), []  # Airflow's usual one, if it is free
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if args.temporal:
            address, ui = start_temporal(parts)
            configure(port, "air_executor.TemporalExecutor", address)
            print(f"starting Temporal, Airflow and two workers (their output: {HOME}/*.log)", flush=True)
            start_hosts(parts)
            hints = [f"Temporal's UI: {ui}"]
        else:
            configure(port)
            print(f"starting airflow standalone with AirExecutor (its output: {HOME}/standalone.log)", flush=True)
            parts.start_airflow("standalone")
        return show(parts, Api(f"http://localhost:{port}"), once=args.once, hints=hints)
    except KeyboardInterrupt:
        return 0
    finally:
        parts.end()


def show(parts: Parts, api: Api, *, once: bool, hints: list[str]) -> int:
    """Run the example, say what became of it and where to look, and return the exit code."""
    password = attempt(api.log_in, START_S, parts)
    attempt(lambda: api.call("PATCH", f"/api/v2/dags/{DAG}", {"is_paused": False}), START_S, parts)
    run = api.call("POST", f"/api/v2/dags/{DAG}/dagRuns", {"logical_date": None})
    path = f"/api/v2/dags/{DAG}/dagRuns/{run['dag_run_id']}"

    def ended() -> str | None:
        state: str = api.call("GET", path)["state"]
        return state if state in ("success", "failed") else None

    outcome = attempt(ended, RUN_S, parts)
    print(f"\n{DAG}: {outcome}")
    for ti in api.call("GET", f"{path}/taskInstances")["task_instances"]:
        print(f"  {ti['task_id']}: {ti['state']}")
    if not once:
        print(f"\nAirflow's UI: {api.url}   user: {USER}   password: {password}")
        for hint in hints:
            print(hint)
        command = f"AIRFLOW_HOME={HOME} {Path(sys.executable).parent / 'air-executor'}"
        print(f"What runs:    {command} status --watch\nAll right?    {command} doctor")
        print("\nCtrl-C ends it.", flush=True)
        next(iter(parts.processes.values())).wait()
    return 0 if outcome == "success" else 1


if __name__ == "__main__":
    sys.exit(main())
