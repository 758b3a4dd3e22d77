"""An order as the launcher sees it: the bytes that came, and the few fields that the launcher needs itself.

The executor encodes a run's request once; the runner decodes it. The launcher between them only checks that it is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from air_executor import jsontext
from air_executor.errors import LimitsError, ProtocolError
from air_executor.runs import limits
from air_executor.runs.backend import RunRequest
from air_executor.runs.record import Identity, check_id


def _required(kind: Any) -> tuple[str, ...]:
    return tuple(one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING)


_OF_REQUEST, _OF_IDENTITY = _required(RunRequest), _required(Identity)


@dataclass(frozen=True)
class Order:
    """A request for a runner. It holds a token, so it is neither written nor shown."""

    id: str
    """UUID of the run."""
    workload_id: str
    environment: Mapping[bytes, bytes] = field(repr=False)
    """The variables that the task sets for itself. Python and libc read some of them when a process begins, so such a
    task gets a fresh process. Empty for a job: its command is executed with its own environment anyway."""
    message: bytes = field(repr=False)
    """The whole ``start`` message as it came: JSON, without the length before it."""

    @classmethod
    def from_message(cls, message: Mapping[str, Any], body: bytes) -> Order:
        """Read an order from a ``start`` message.

        :param message: what ``body`` says.
        :raises ProtocolError: a runner could not read the request in it.
        """
        try:
            request = message["request"]
            identity = request["identity"]
            for document, names in ((request, _OF_REQUEST), (identity, _OF_IDENTITY)):
                if missing := [name for name in names if name not in document]:
                    raise ValueError(f"it has no {', '.join(missing)}")
            check_id(request["id"])
            check_id(identity["workload_id"])
            return cls(request["id"], identity["workload_id"], _environment(request), body)
        except Exception as error:
            raise ProtocolError(f"not a run request: {type(error).__name__}: {error}") from None

    def request_json(self) -> bytes:
        """Return the request alone, as a runner reads it that is started by exec: it may be of another version."""
        return jsontext.dumps(jsontext.loads(self.message)["request"])


def _environment(request: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Return the variables of a task. Those that cannot be used are refused by its runner, with the reason."""
    asked = request.get("air")
    if request["identity"]["kind"] == "job" or not isinstance(asked, dict) or not asked.get("environment"):
        return {}
    try:
        variables = limits.parse(asked).environment
    except LimitsError:
        return {}
    return {name.encode(errors="replace"): value.encode(errors="replace") for name, value in variables.items()}
