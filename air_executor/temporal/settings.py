"""How to reach Temporal, what its task queues are called, and with which keys orders are sealed."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from temporalio.client import Client
from temporalio.envconfig import ClientConfig
from temporalio.service import RPCError

from air_executor import config
from air_executor.errors import ConfigError, ProtocolError
from air_executor.temporal import asking

_DEFAULT_ADDRESS = "localhost:7233"

#: The identities of workers begin so; the host's name follows.
WORKER = "air-executor worker "

#: Beyond the time between two heartbeats to Airflow, in seconds: a runner that has not reached Airflow for so long,
#: while its host's worker does not reach Temporal, ends its task. One whose host has not answered for so long, and
#: whose last heartbeat in Airflow is as old, is lost, and its retry may begin elsewhere. In between there is time for
#: the request that is just being made to time out, and for ``on_kill``.
_FENCE_S, _LOST_S = 20.0, 40.0

#: One order has at most this many bytes: Temporal takes 2 MB, and the order is repeated in other calls.
MAX_ORDER = 1_500_000

#: The token of an order is valid for so much longer than the order may wait, in seconds.
_MARGIN_S = 600.0

_NO_TEMPORAL = (
    ". What answers there is no Temporal, or wants TLS: the address is that of Temporal's gRPC port, 7233 by default, "
    "not that of its UI"
)


@dataclass(frozen=True)
class Settings:
    """Options for Temporal. TLS and API keys come from Temporal's own variables and its configuration file."""

    address: str
    """Host and port of the frontend; empty: Temporal's own configuration decides."""
    namespace: str
    prefix: str
    """The first part of the names of all task queues."""
    keys: tuple[str, ...] = field(repr=False)
    """Secrets from which keys are derived: the first seals, all open."""
    default_queue: str = "default"
    """The queue of Airflow's that has what names none: callbacks, some tests of connections, tasks of jobs."""
    wait_s: float = 86400.0
    """How long an order may wait for a host, in seconds."""
    beat_s: float = 5.0
    """How often runners send heartbeats to Airflow, in seconds."""
    server: str | None = None
    """URL of the execution API, if this machine's configuration names it."""
    ui: str = ""
    """URL of Airflow's UI, for a link."""
    log_folder: str = ""
    """Where this machine's task logs are."""
    common: dict[str, Any] = field(default_factory=dict, repr=False)
    """What Temporal's own variables and configuration file say, in the words of :meth:`Client.connect`."""

    @classmethod
    def load(cls, get: Callable[[str, str], str | None]) -> Settings:
        """Read the options.

        :param get: returns the text of an option by its section and name; ``None``: it is not set.
        :raises ConfigError: one is missing or can't be used; the message names it.
        """
        named = os.environ.get("TEMPORAL_TASK_QUEUE")
        prefix = _parsed("temporal_task_queue", named) if named else _text(get, "temporal_task_queue")
        keys = tuple(key.strip() for key in _text(get, "temporal_key").split(",") if key.strip())
        if not keys and (shared := get("api", "secret_key")):
            keys = (shared,)
        if not keys:
            raise ConfigError(
                "orders for Temporal are sealed with a key that all hosts have: set [api] secret_key or "
                "[air_executor] temporal_key to the same text on each"
            )
        try:
            common = dict(ClientConfig.load_client_connect_config())
        except (RuntimeError, ValueError, OSError) as error:
            raise ConfigError(f"Temporal's configuration cannot be used: {error}") from None
        return cls(
            address=_text(get, "temporal_address"),
            namespace=_text(get, "temporal_namespace"),
            prefix=prefix,
            keys=keys,
            default_queue=(get("operators", "default_queue") or "").strip() or "default",
            wait_s=float(_text(get, "temporal_wait_seconds")),
            beat_s=_beat_s(get("workers", "min_heartbeat_interval")),
            server=get("core", "execution_api_server_url"),
            ui=(get("api", "base_url") or "").rstrip("/"),
            log_folder=get("logging", "base_log_folder") or str(config.airflow_home() / "logs"),
            common=common,
        )

    @property
    def fence_s(self) -> float:
        """After how long without Airflow and Temporal a runner ends its task, in seconds."""
        return self.beat_s + _FENCE_S

    @property
    def lost_s(self) -> float:
        """After how long without a sign of life a run is lost, in seconds."""
        return self.beat_s + _LOST_S

    @property
    def token_s(self) -> float:
        """How long the token of an order is valid, in seconds."""
        return self.wait_s + _MARGIN_S

    def queue(self, name: str | None) -> str:
        """Return Temporal's task queue for one of Airflow's."""
        return f"{self.prefix}.{name or self.default_queue}"

    def host_queue(self, place: str) -> str:
        """Return the task queue of one host's state directory, where its runs are found again."""
        return f"{self.prefix}@{place}"

    async def connect(self, **more: Any) -> Client:
        """Connect to Temporal.

        :param more: further arguments of :meth:`Client.connect`.
        :raises ConfigError: it can't be reached, does not let us in, or has no such namespace; the message says which
            address was tried.
        """
        found = {**self.common, **more}
        found["target_host"] = self.address or found.get("target_host") or _DEFAULT_ADDRESS
        if self.namespace:
            found["namespace"] = self.namespace
        try:
            client = await Client.connect(**found)
            await asking.namespace(client)
            return client
        except (RuntimeError, RPCError, OSError, ValueError) as error:
            how = "with TLS" if found.get("tls") or found.get("api_key") else "without TLS"
            is_strange = "after connection" in str(error) and "transport::Error" in str(error)
            hint = _NO_TEMPORAL if is_strange else ""
            raise ConfigError(f"Temporal at {found['target_host']}, {how}, cannot be used: {error}{hint}") from None

    def seal(self, data: bytes) -> str:
        """Return data so that only who has a key can read it."""
        return self._box().encrypt(data).decode()

    def unseal(self, text: str) -> bytes:
        """Return what was sealed.

        :raises ProtocolError: no key here opens it.
        """
        try:
            return self._box().decrypt(text.encode())
        except InvalidToken:
            raise ProtocolError(
                "the order was sealed with a key that this host does not have: [air_executor] temporal_key, or "
                "[api] secret_key, must be the same on all hosts"
            ) from None

    def _box(self) -> MultiFernet:
        return MultiFernet([Fernet(_derived(key)) for key in self.keys])


def _derived(key: str) -> bytes:
    # The text is a secret of its own already, not a password that people choose: no stretching is needed.
    return base64.urlsafe_b64encode(hashlib.blake2b(key.encode(), digest_size=32, person=b"air-executor").digest())


def _beat_s(text: str | None) -> float:
    try:
        return float(text or 5.0)
    except ValueError:
        raise ConfigError(f"[workers] min_heartbeat_interval = {text!r} cannot be used: it is no number") from None


def _text(get: Callable[[str, str], str | None], name: str) -> str:
    text = get(config.SECTION, name)
    return _parsed(name, config.default(name) if text is None else text)


def _parsed(name: str, text: str) -> str:
    try:
        return str(config.parse_option(name, text.strip()))
    except ValueError as error:
        raise ConfigError(f"[{config.SECTION}] {name} = {text!r} cannot be used: {error}") from None
