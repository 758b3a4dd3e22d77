"""The only file that knows one Airflow version from another, and what of Airflow is not its public interface.

Airflow 3.1 has tasks only. 3.2 brings executor callbacks and the package ``workloads``. 3.3 brings connection
tests, typed workload keys and ``supervise_task``. ``tests/unit/test_compat.py`` fails when something that is used
here has gone or changed.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import orjson
from airflow import __version__ as _version
from airflow.executors import workloads as _workloads
from pydantic import ValidationError

from air_executor.errors import AirExecutorError, ProtocolError
from air_executor.runs.record import Identity

if TYPE_CHECKING:
    from airflow.executors.workloads import ExecutorWorkload as Workload
    from airflow.sdk.api.client import ServerResponseError

AIRFLOW_VERSION: tuple[int, int] = tuple(int(part) for part in _version.split(".")[:2])  # type: ignore[assignment]

#: Names of the workload classes by kind, for those that this Airflow has.
_CLASSES: dict[str, Any] = {
    kind: getattr(_workloads, name)
    for kind, name in (
        ("task", "ExecuteTask"),
        ("callback", "ExecuteCallback"),
        ("connection_test", "TestConnection"),
    )
    if hasattr(_workloads, name)
}

#: How long a question after a server's health may take, in seconds.
_HEALTH_S = 5.0

#: Answers of the execution API to "may this start?" that mean "not any more".
_REFUSALS = frozenset({404, 409, 410})


# Workloads


def kind_of(workload: Workload) -> str:
    """Return the kind of a workload.

    :raises ProtocolError: it is of none that this AirExecutor knows.
    """
    for kind, cls in _CLASSES.items():
        if isinstance(workload, cls):
            return kind
    raise ProtocolError(f"AirExecutor does not know what to do with a workload of type {type(workload).__name__}")


def key_of(workload: Any) -> Any:
    """Return the key under which Airflow's scheduler knows a workload."""
    if hasattr(workload, "ti"):
        return workload.ti.key
    if hasattr(workload, "key"):
        return workload.key
    return workload.callback.key  # Airflow 3.2


def callback_key(callback_id: str) -> Any:
    """Return the key under which Airflow's scheduler knows an executor callback."""
    if AIRFLOW_VERSION < (3, 3):
        return callback_id
    return importlib.import_module("airflow.models.callback").CallbackKey(id=callback_id)


def states_of(kind: str) -> Any:
    """Return the enumeration of the states that Airflow has for workloads of a kind."""
    if kind == "task":
        return importlib.import_module("airflow.utils.state").TaskInstanceState
    if kind == "callback":
        return importlib.import_module("airflow.utils.state").CallbackState
    return importlib.import_module("airflow.models.connection_test").ConnectionTestState


def identity_of_instance(ti: Any, *, team: str | None) -> Identity:
    """Return what is written down about a task instance, Airflow's own or a workload's."""
    return Identity(
        kind="task",
        workload_id=str(ti.id),
        name=f"{ti.dag_id}.{ti.task_id}",
        dag_id=ti.dag_id,
        task_id=ti.task_id,
        dag_run_id=ti.run_id,
        map_index=ti.map_index,
        try_number=ti.try_number,
        team=team,
        queue=ti.queue,
    )


def identity_of(workload: Any, *, team: str | None) -> Identity:
    """Return what is written down about a workload."""
    kind = kind_of(workload)
    if kind == "task":
        return identity_of_instance(workload.ti, team=team)
    if kind == "callback":
        path = str(workload.callback.data.get("path", "callback"))
        # .../<dag id>/<run id>/<callback id>, the only place where the ids are told
        parts = Path(workload.log_path or "").parts[1:3]
        dag_id, dag_run_id = parts if len(parts) == 2 else (None, None)
        return Identity(
            kind=kind,
            workload_id=str(workload.callback.id),
            name=path.rsplit(".", 1)[-1],
            dag_id=dag_id,
            dag_run_id=dag_run_id,
            team=team,
        )
    return Identity(
        kind=kind,
        workload_id=str(workload.connection_test_id),
        name=f"connection test {workload.connection_id}",
        team=team,
        queue=workload.queue,
    )


def pre_assigned_id(workload: Any) -> str | None:
    """Return the ``external_executor_id`` that the scheduler has put in the database already (from Airflow 3.2)."""
    ti = getattr(workload, "ti", None)
    return getattr(ti, "external_executor_id", None)


def executor_config(workload: Any) -> dict[str, Any]:
    """Return the ``executor_config`` of a task; it is left out of a workload's own JSON."""
    return getattr(getattr(workload, "ti", None), "executor_config", None) or {}


def dump_workload(workload: Any) -> dict[str, Any]:
    """Return a workload as plain data, token included."""
    document: dict[str, Any] = workload.model_dump(mode="json")
    return document


def parse_workload(kind: str, document: dict[str, Any]) -> Any:
    """Return the workload that :func:`dump_workload` wrote.

    :raises ProtocolError: it is not one.
    """
    cls = _CLASSES.get(kind)
    if cls is None:
        raise ProtocolError(f"this Airflow knows no workloads of kind {kind!r}")
    try:
        return cls.model_validate(document)
    except ValidationError as error:
        # The input holds the token.
        problems = error.errors(include_input=False, include_url=False, include_context=False)
        raise ProtocolError(f"not a workload of kind {kind!r}: {problems}") from None


def workload_of(ti: Any, generator: Any, sentry_integration: str) -> Any:
    """Return the workload of a task instance, as the scheduler makes it when it queues one."""
    more = {"sentry_integration": sentry_integration} if AIRFLOW_VERSION >= (3, 2) else {}
    return _CLASSES["task"].make(ti, generator=generator, **more)


def priority_of(workload: Any) -> int:
    """Return how much more urgent than others a task is."""
    return int(workload.ti.priority_weight)


def with_new_token(workload: Any, generator: Any) -> Any:
    """Return the workload of a task with a token that is as good as a new one's. Its own may expire while it waits."""
    if hasattr(workload, "generate_token"):  # from Airflow 3.2 on
        token = workload.generate_token(str(workload.ti.id), generator)
    else:
        token = generator.generate({"sub": str(workload.ti.id)})
    return workload.model_copy(update={"token": token})


def log_file_of(workload: Any) -> str | None:
    """Return the absolute path of a workload's log, or ``None`` when it has none."""
    from airflow.configuration import conf

    relative = getattr(workload, "log_path", None)
    return os.path.join(conf.get("logging", "base_log_folder"), relative) if relative else None


def team_getter(team_conf: Any) -> Callable[[str, str], str | None]:
    """Return a lookup of options, by section and name, in a team's configuration and then in everybody's.

    Without a team both are the same. Airflow itself knows only the team's, so that a team would need a copy of every
    option that is not left at its default.
    """
    from airflow.configuration import conf

    def get(section: str, name: str) -> str | None:
        value = team_conf.get(section, name, fallback=None)
        return value if value is not None else conf.get(section, name, fallback=None)

    return get


def execution_api_url(get: Callable[[str, str], str | None]) -> str:
    """Return where the execution API is, by Airflow's rules, with the options that ``get`` looks up."""
    base = get("api", "base_url") or "/"
    if base.startswith("/"):
        base = f"http://localhost:8080{base}"
    return get("core", "execution_api_server_url") or f"{base.rstrip('/')}/execution/"


# Dags


def skip(reason: str) -> Exception:
    """Return what a task raises that is to be skipped."""
    name = "airflow.exceptions" if AIRFLOW_VERSION < (3, 2) else "airflow.sdk.exceptions"
    error: Exception = importlib.import_module(name).AirflowSkipException(reason)
    return error


# The scheduler


class _Clock:
    """The module ``time``, but for the way in which it sleeps."""

    def __init__(self, sleep: Callable[[float], None]) -> None:
        self.sleep = sleep

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def use_idle_wait(wait: Callable[[float], None]) -> None:
    """Let the scheduler of this process, if it has one, call ``wait`` where it would sleep for want of work.

    The scheduler's loop offers no way to end that sleep early. It is the only one in its module.
    """
    module = sys.modules.get("airflow.jobs.scheduler_job_runner")
    if module is not None:
        module.time = _Clock(wait)  # type: ignore[attr-defined]


def use_vouching(vouch: Callable[[Callable[[], list[Any]]], list[Any]]) -> None:
    """Let the scheduler of this process, if it has one, ask ``vouch`` before it fails tasks for want of heartbeats.

    It looks them up after a pause of the machine before anybody could write a heartbeat. No executor is asked before.

    :param vouch: is given the look-up, and returns the instances that shall fail.
    """
    module = sys.modules.get("airflow.jobs.scheduler_job_runner")
    if module is None:
        return
    runner: Any = module.SchedulerJobRunner
    find = runner._find_task_instances_without_heartbeats
    find = getattr(find, "stock", find)

    def find_what_nobody_vouches_for(self: Any, *, session: Any) -> list[Any]:
        return vouch(lambda: list(find(self, session=session)))

    find_what_nobody_vouches_for.stock = find  # type: ignore[attr-defined]
    runner._find_task_instances_without_heartbeats = find_what_nobody_vouches_for


# Supervision, in a runner


def use_supervisor(cls: Any) -> None:
    """Let Airflow supervise task processes through ``cls``, a subclass of its own supervisor.

    Airflow looks the class up by this name at every task, in all supported versions, and offers no other way.
    """
    from airflow.sdk.execution_time import supervisor

    supervisor.ActivitySubprocess = cls  # type: ignore[misc]


def use_output_reader() -> None:
    """Let Airflow's supervisors read what tasks print, and their log messages, by :mod:`air_executor.airflow.output`.

    Where Airflow has another reader, that one stays.
    """
    from airflow.sdk.execution_time import supervisor

    from air_executor.airflow import output

    printed = getattr(supervisor, "forward_to_log", None)
    if printed is not None and hasattr(supervisor, "make_buffered_socket_reader"):
        supervisor.make_buffered_socket_reader = output.make_reader(lambda gen: gen.gi_code is printed.__code__)  # type: ignore[attr-defined]


class _Signals:
    """The module ``signal``, but for SIGSEGV, which keeps its handler."""

    @staticmethod
    def signal(signum: int, handler: Any) -> Any:
        return signal.getsignal(signum) if signum == signal.SIGSEGV else signal.signal(signum, handler)

    def __getattr__(self, name: str) -> Any:
        return getattr(signal, name)


def let_faults_kill() -> None:
    """Let a segmentation fault end a process that has read a dag file, also when Airflow has read it.

    Before it reads one, Airflow sets a handler in Python, for good. That returns to the instruction that has failed,
    which fails again: the process would neither go on nor end.
    """
    name = "airflow.models.dagbag" if AIRFLOW_VERSION < (3, 2) else "airflow.dag_processing.importers.python_importer"
    importlib.import_module(name).signal = _Signals()  # type: ignore[attr-defined]


def quieten_imports() -> None:
    """Let a package that Airflow imports in a task say as little in the task's log as from Airflow 3.3 on.

    Under LocalExecutor the scheduler has imported it before.
    """
    if AIRFLOW_VERSION < (3, 3):
        logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)


def keep_loggers_unbound() -> None:
    """Let structlog's loggers look at each use where messages go, here and in forks, until a task sets logging up.

    A logger of a module would otherwise keep for ever what it found at its first use: what a task writes to it would go
    to the launcher's output, as text for a console.
    """
    import structlog

    structlog.configure(cache_logger_on_first_use=False)


def forget_secrets() -> None:
    """Let this process mask no secrets. Airflow's supervisor does so before it forks a task process."""
    from airflow.sdk._shared.secrets_masker import reset_secrets_masker

    reset_secrets_masker()


@contextlib.contextmanager
def _secrets_kept() -> Iterator[None]:
    """Let this process mask the same secrets as before in the end."""
    from airflow.sdk._shared.secrets_masker import secrets_masker

    masker = secrets_masker._secrets_masker()
    patterns, replacer = masker.patterns, masker.replacer
    masker.patterns = set(patterns)
    try:
        yield
    finally:
        masker.patterns, masker.replacer = patterns, replacer


#: How structlog is configured in task processes, once that is known.
_task_logs: dict[str, Any] = {}


@contextlib.contextmanager
def loggers_of_tasks() -> Iterator[None]:
    """Let loggers that modules bind as they are imported write to the log of the task that uses them later."""
    import structlog

    before = structlog.get_config()
    structlog.configure(**_task_logs)
    try:
        yield
    finally:
        structlog.configure(**before)


def share_log_setup() -> None:
    """Set logging up as every task process does, once, for those that this process forks to take over.

    Setting it up touches each logger that there is. What logs that go elsewhere as well need is asked for in each task.
    """
    import structlog
    from airflow.sdk import log
    from airflow.sdk.execution_time import supervisor

    root, before = logging.getLogger(), structlog.get_config()
    handlers, hook, remote = root.handlers[:], sys.excepthook, log.load_remote_log_handler
    # The number that the channel has in every task process, which dup2 gives it.
    channel = os.open(os.devnull, os.O_WRONLY)
    log.load_remote_log_handler = lambda: None
    try:
        supervisor._configure_logs_over_json_channel(channel)
    finally:
        log.load_remote_log_handler = remote
    shared, shared_handlers, shared_hook = structlog.get_config(), root.handlers[:], sys.excepthook
    structlog.configure(**before)
    _task_logs.update(shared, cache_logger_on_first_use=False)
    root.handlers[:], sys.excepthook = handlers, hook
    *processors, writer = shared["processors"]
    formatter: Any = shared_handlers[0].formatter
    foreign_pre_chain = formatter.foreign_pre_chain

    def configure(log_fd: int) -> None:
        os.dup2(log_fd, channel, inheritable=False)
        remote_processors = getattr(log.load_remote_log_handler(), "processors", ())
        structlog.configure(**{**shared, "processors": [*processors, *remote_processors, writer]})
        formatter.foreign_pre_chain = [*foreign_pre_chain, *remote_processors]
        root.handlers[:], sys.excepthook = shared_handlers, shared_hook

    supervisor._configure_logs_over_json_channel = configure


def forbids_rehearsals() -> str | None:
    """Return the option that makes a rehearsal of runs impossible; ``None``: there is none.

    Tasks of another user are executed by ``sudo``, which may ask, log, or refuse.
    """
    from airflow.configuration import conf

    return "[core] default_impersonation" if conf.get("core", "default_impersonation", fallback=None) else None


@contextlib.contextmanager
def rehearsing(bundle: Path) -> Iterator[None]:
    """Let tasks of this process and its forks be for practice.

    They find any bundle at ``bundle``, and no listener, plugin or secrets backend hears of them.
    """
    from airflow.dag_processing.bundles.local import LocalDagBundle
    from airflow.sdk.execution_time import supervisor, task_runner

    plugins_name = "airflow.plugins_manager" if AIRFLOW_VERSION < (3, 2) else "airflow.sdk.plugins_manager"
    plugins = importlib.import_module(plugins_name)

    def silent(*_: Any, **__: Any) -> None:
        pass

    class Nobody:
        def __getattr__(self, _: str) -> Any:
            return silent

    class Bundles:
        def get_bundle(self, name: str, version: str | None = None) -> Any:
            return LocalDagBundle(name=name, version=version, path=str(bundle))

    listeners = type("Listeners", (), {"hook": Nobody()})()
    replaced = [
        (task_runner, "DagBundlesManager", Bundles),
        (task_runner, "get_listener_manager", lambda: listeners),
        (supervisor, "ensure_secrets_backend_loaded", list),
        (plugins, "integrate_macros_plugins", silent),
    ]
    before = [getattr(module, name) for module, name, _ in replaced]
    try:
        for module, name, value in replaced:
            setattr(module, name, value)
        with _secrets_kept():
            yield
    finally:
        for (module, name, _), value in zip(replaced, before, strict=True):
            setattr(module, name, value)


def answers_to_task(startup: dict[str, Any], context: dict[str, Any]) -> bytes:
    """Return all that a supervisor would send to a task process that asks for nothing unusual.

    :param startup: the task instance as ``ti``, with ``dag_rel_path`` and ``bundle_info``.
    :param context: what the execution API has answered to the start.
    """
    from airflow.sdk.execution_time import comms

    now = datetime.now(tz=timezone.utc)
    details = comms.StartupDetails.model_validate(
        {**startup, "ti_context": context, "start_date": now, "sentry_integration": ""}
    )
    frames = [comms._ResponseFrame(id=0, body=details.model_dump())]
    frames += [comms._ResponseFrame(id=number) for number in range(8)]
    return b"".join(frame.as_bytes() for frame in frames)


def be_task() -> None:
    """Execute a task in this process, whose supervisor is at the other end of descriptor 0.

    :raises AirExecutorError: the process would have ended with an error.
    """
    from airflow.sdk.execution_time import task_runner

    try:
        task_runner.main()
    except SystemExit as error:
        raise AirExecutorError(f"a task process would have ended with {error.code}") from error
    finally:
        # Whether there is one tells Airflow in which kind of process it is.
        channel = vars(task_runner).pop("SUPERVISOR_COMMS", None)
        if channel is not None and channel.socket is not None:
            channel.socket.detach()  # lest it closes whatever has its number by then


def run_task(workload: Any, server: str | None) -> int:
    """Supervise a task to its end and return its process's exit code.

    :raises Exception: Airflow could not be told of the start or the end.
    """
    from airflow.sdk.execution_time import supervisor

    supervise = getattr(supervisor, "supervise_task", None) or supervisor.supervise
    more = {}
    if AIRFLOW_VERSION >= (3, 2):
        more["sentry_integration"] = workload.sentry_integration
    return int(
        supervise(
            ti=workload.ti,
            dag_rel_path=workload.dag_rel_path,
            bundle_info=workload.bundle_info,
            token=workload.token,
            server=server,
            log_path=workload.log_path,
            **more,
        )
    )


def run_other(workload: Any, server: str | None) -> None:
    """Execute a callback or a connection test to its end.

    :raises Exception: it failed.
    """
    if AIRFLOW_VERSION >= (3, 3):
        from airflow.executors.base_executor import BaseExecutor

        BaseExecutor.run_workload(workload, server=server)
        return
    import structlog

    callbacks = importlib.import_module("airflow.executors.workloads.callback")
    success, message = callbacks.execute_callback_workload(
        workload.callback, structlog.get_logger("air_executor.callback")
    )
    if not success:
        raise RuntimeError(message or "the callback failed")


#: The method that makes requests as Airflow has it.
_request: Any = None


def use_retries(
    try_again: Callable[[Any, BaseException], bool],
    give_up: Callable[[Any, BaseException, float], bool],
    sleep: Callable[[float], None],
    wait_s: Callable[[int, float], float],
) -> None:
    """Replace the rules by which Airflow's client repeats requests, in this process.

    :param try_again: of the client and the error.
    :param give_up: of the client, the error and the monotonic time of the first attempt.
    :param sleep: of a number of seconds.
    :param wait_s: how long, of the number of attempts and the monotonic time of the first.
    """
    import tenacity
    from airflow.sdk.api.client import Client, ServerResponseError

    def error_of(state: tenacity.RetryCallState) -> BaseException | None:
        return state.outcome.exception() if state.outcome is not None else None

    def retry(state: tenacity.RetryCallState) -> bool:
        error = error_of(state)
        return error is not None and try_again(state.args[0], error)

    def stop(state: tenacity.RetryCallState) -> bool:
        error = error_of(state)
        return error is not None and give_up(state.args[0], error, state.start_time)

    global _request
    request = _request = _request or Client.request
    retrying = request.retry  # type: ignore[attr-defined]
    retrying.retry, retrying.stop, retrying.sleep = retry, stop, sleep
    retrying.wait = lambda state: wait_s(state.attempt_number, state.start_time)

    def request_once_done(self: Client, *args: Any, **kwargs: Any) -> httpx.Response:
        try:
            answer: httpx.Response = request(self, *args, **kwargs)
            return answer
        except ServerResponseError as error:
            attempts = request.statistics.get("attempt_number", 1)  # type: ignore[attr-defined]
            if not _is_done_already(error, attempts):
                raise
            return httpx.Response(httpx.codes.NO_CONTENT, request=error.request)

    Client.request = request_once_done  # type: ignore[method-assign,assignment]


def _is_done_already(error: ServerResponseError, attempts: int) -> bool:
    """Tell whether a request to set a task's state was refused because it has been set.

    When the answer to an earlier attempt was lost, the server says "conflict" to the next one: it did what it was
    asked, and what followed from it may have changed the state again.
    """
    if error.response.status_code != httpx.codes.CONFLICT or not error.request.url.path.endswith("/state"):
        return False
    try:
        wanted = orjson.loads(error.request.content)["state"]
        found = _detail_of(error)["previous_state"]
    except (KeyError, TypeError, ValueError):
        return False
    return attempts > 1 or wanted == found


def stock_attempts() -> int:
    """Return how often Airflow itself makes a request."""
    from airflow.configuration import conf

    return int(conf.getint("workers", "execution_api_retries"))


def is_passing(error: BaseException) -> bool:
    """Tell whether the same request may succeed later: no answer, or an error of the server's own."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500 or _is_collision(error)
    return isinstance(error, httpx.RequestError)


def _is_collision(error: httpx.HTTPStatusError) -> bool:
    """Tell whether the server was about to write what was there already, by the time it did.

    So ends a request that sets an XCom while the server still works on its former attempt, whose answer did not come in
    time: each deletes what it finds, and one of them comes second.
    """
    from airflow.sdk.api.client import ServerResponseError

    if error.response.status_code != httpx.codes.CONFLICT or not isinstance(error, ServerResponseError):
        return False
    return bool(_detail_of(error).get("reason") == "Unique constraint violation")


def is_internal_error(error: BaseException) -> bool:
    """Tell whether the server said that it failed at this request, not that it is away."""
    if not isinstance(error, httpx.HTTPStatusError):
        return False
    return error.response.status_code in (500, 501) or _is_collision(error)


def is_well(client: Any, error: BaseException) -> bool:
    """Ask the API server once whether it is well, after an ``error`` that it gave; its database too, if that failed."""
    from airflow.sdk.api.client import ServerResponseError

    url = str(client.base_url).rstrip("/")
    try:
        if httpx.get(f"{url}/health", timeout=_HEALTH_S).status_code != httpx.codes.OK:
            return False
        if not isinstance(error, ServerResponseError) or _detail_of(error).get("reason") != "Database error":
            return True
        report = httpx.get(f"{url.removesuffix('/execution')}/api/v2/monitor/health", timeout=_HEALTH_S).json()
        return bool(report["metadatabase"]["status"] == "healthy")
    except (httpx.HTTPError, KeyError, TypeError, ValueError):
        return False


def is_refused_token(error: BaseException) -> bool:
    """Tell whether the server did not take our token."""
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code in (401, 403)


def _claims(client: Any) -> dict[str, Any]:
    """Return what the client's token says, unverified."""
    try:
        body = client.auth.token.split(".")[1]
        claims = orjson.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (AttributeError, IndexError, ValueError):
        return {}
    return claims if isinstance(claims, dict) else {}


def is_token_old(client: Any) -> bool:
    """Tell whether the token is due to be renewed: the server does that with an answer in its last fifth."""
    claims = _claims(client)
    try:
        left_s, life_s = claims["exp"] - time.time(), claims["exp"] - claims["iat"]
    except (KeyError, TypeError):
        return False
    return bool(left_s <= max(life_s * 0.15, 25))


def replace_bad_token(client: Any) -> bool:
    """Give the client a new token, if its own has run out while the server was away, or the clock was set back.

    Nobody can renew it then but who can sign one. A runner on the scheduler's machine has the scheduler's
    configuration, and so its key; where it does not, the server's answer stands.

    :return: whether it has a new one.
    """
    from airflow.sdk.api.client import BearerAuth

    claims = _claims(client)
    if not claims.get("sub") or claims.get("iat", 0) <= time.time() < claims.get("exp", 0):
        return False
    try:
        from airflow.api_fastapi.auth.tokens import JWTGenerator, get_signing_args
        from airflow.configuration import conf

        generator = JWTGenerator(
            valid_for=conf.getint("execution_api", "jwt_expiration_time"),
            audience=conf.get_mandatory_list_value("execution_api", "jwt_audience")[0],
            issuer=conf.get("api_auth", "jwt_issuer", fallback=None),
            **get_signing_args(make_secret_key_if_needed=False),
        )
        scope = {"scope": "execution"} if "scope" in claims else {}
        client.auth = BearerAuth(generator.generate({"sub": claims["sub"], **scope}))
    except Exception as error:
        print(f"the token is not valid now, and no new one can be made here: {error}", flush=True)
        return False
    return True


def refusal(error: Exception) -> str | None:
    """Return why Airflow refused the start of a task, or ``None`` when ``error`` is of another kind."""
    from airflow.sdk.api.client import ServerResponseError

    if not isinstance(error, ServerResponseError) or error.response.status_code not in _REFUSALS:
        return None
    detail = _detail_of(error)
    # Airflow gives a reason; a server that is not the execution API at all answers 404 too.
    return f"{error.response.status_code} {detail}" if "reason" in detail else None


def _detail_of(error: ServerResponseError) -> dict[str, Any]:
    """Return what the execution API says about an error, as far as it says it in fields."""
    detail: Any = error.detail
    if isinstance(detail, dict) and isinstance(detail.get("detail"), dict):
        detail = detail["detail"]
    return detail if isinstance(detail, dict) else {}


def is_telling_airflow(supervisor: Any) -> bool:
    """Tell whether the task has ended its work, and the call that tells Airflow so is being made (from Airflow 3.2)."""
    return getattr(supervisor, "_pending_terminal_state_msg", None) is not None


def has_more_to_tell(supervisor: Any) -> bool:
    """Tell whether that call is to be made again, since it failed, for a task whose process has ended.

    Not when the process was killed while it waited for the answer to "to be tried again": Airflow's task process runs
    callbacks after that.
    """
    pending = getattr(supervisor, "_pending_terminal_state_msg", None)
    return pending is not None and not (type(pending).__name__ == "RetryTask" and supervisor._exit_code < 0)


def has_told_airflow(supervisor: Any) -> bool:
    """Tell whether the API server knows what the task has told of itself, once its supervisor has finished waiting."""
    return not is_telling_airflow(supervisor) and supervisor._terminal_state is not None


#: What a task tells of itself, by the names of the messages that do not say it in a field.
_STATES_TOLD = {"DeferTask": "deferred", "RescheduleTask": "up_for_reschedule", "AwaitInputTask": "awaiting_input"}


def leave_alerts_to_scheduler() -> None:
    """In a task process: run no callbacks, mails and listeners of a state that Airflow will not hear of.

    A task that has lost the channel to its supervisor can tell nobody how it ended. It dies with an error, and what
    becomes of that, with all callbacks, the scheduler says.
    """
    from airflow.sdk.execution_time import task_runner

    finalize = task_runner.finalize

    def finalize_if_told(*args: Any, **kwargs: Any) -> None:
        try:
            task_runner.SUPERVISOR_COMMS.socket.getpeername()  # type: ignore[union-attr]
        except (AttributeError, OSError):
            return
        finalize(*args, **kwargs)

    task_runner.finalize = finalize_if_told


def is_in_overtime(supervisor: Any) -> bool:
    """Tell whether a task process lives, or lived, so long after its task has ended that Airflow kills it."""
    from airflow.sdk.execution_time.supervisor import TASK_OVERTIME_THRESHOLD

    ended_s = supervisor._task_end_time_monotonic
    return ended_s is not None and time.monotonic() - ended_s > TASK_OVERTIME_THRESHOLD


def told_by_task(supervisor: Any) -> str | None:
    """Return the state that the task, or a server that ended it, has told the supervisor; ``None``: none."""
    state = supervisor._terminal_state
    if state is None and has_more_to_tell(supervisor):
        message = supervisor._pending_terminal_state_msg
        state = _STATES_TOLD.get(type(message).__name__) or message.state
    return None if state is None else str(getattr(state, "value", state))
