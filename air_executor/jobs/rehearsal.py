"""The rehearsal of a launcher of jobs: it runs commands that do nothing, as a runner would. See docs/design.md."""

from __future__ import annotations

import dataclasses
import tempfile
import uuid
from pathlib import Path
from types import CodeType

import orjson

from air_executor.config import Config
from air_executor.errors import AirExecutorError
from air_executor.launcher import memory
from air_executor.launcher.practice import TIMES, attempt, everything_restored, noting, silence
from air_executor.runner import main as runner
from air_executor.runs.backend import RunRequest
from air_executor.runs.record import Identity, RunState, queued
from air_executor.runs.store import RunStore


def rehearse_job(config: Config) -> None:
    """Run a few commands as a runner does. Only while this process has no child and no other thread."""

    def commands() -> None:
        with tempfile.TemporaryDirectory(prefix="air-executor-") as folder, everything_restored():
            store = RunStore(Path(folder) / "state")
            store.prepare()
            own_config = dataclasses.replace(config, state_dir=str(store.root))
            used: dict[int, CodeType] = {}
            with silence(Path(folder) / "said"):
                with noting(used):
                    _once(store, own_config)
                memory.gather_code(used.values())
                for _ in range(TIMES):
                    _once(store, own_config)

    attempt(commands, complaint="cannot be rehearsed")


def _once(store: RunStore, config: Config) -> None:
    run_id = str(uuid.uuid4())
    identity = Identity(
        kind="job", workload_id=str(uuid.uuid4()), name="rehearsal", job_name="rehearsal", task_id="true"
    )
    log_file = str(store.root / "logs" / "true.log")
    request = RunRequest(
        id=run_id,
        identity=identity,
        workload={"cwd": str(store.root), "argv": ["true"], "shell": False},
        air={"environment": {"AIR_EXECUTOR_JOB": "rehearsal"}},
        log_file=log_file,
    )
    store.create(queued(run_id, identity, limits={}, log_file=log_file))
    runner.run(RunRequest.from_message(orjson.loads(orjson.dumps(request.to_message()))), store, config)
    record = store.read(run_id)
    if record.state is not RunState.SUCCEEDED:
        raise AirExecutorError(f"the rehearsed command has {record.state.value}: {record.reason}")
