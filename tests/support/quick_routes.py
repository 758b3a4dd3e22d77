"""FastAPI's routes, made when somebody asks for them.

Airflow has a route made four times, once for each router that it is included in, and most of the last ones are never
asked for: that is two thirds of an API server's start.
"""

from __future__ import annotations

from typing import Any

from fastapi import routing
from fastapi.routing import APIRoute

#: What of a route takes long to make: the functions, and the attributes that come of them.
_FUNCTIONS = (
    *("create_model_field", "get_dependant", "get_flat_dependant", "get_parameterless_sub_dependant", "get_body_field"),
    *("_should_embed_body_fields", "get_request_handler", "request_response"),
)
_ATTRIBUTES = (
    *("response_field", "response_fields", "stream_item_field", "dependant", "_flat_dependant", "body_field"),
    *("_embed_body_fields", "is_sse_stream", "is_json_stream"),
)

_make = APIRoute.__init__


def make_when_asked() -> None:
    """Make from now on the routes of users' API and of the UI when they are asked for."""
    if not all(hasattr(routing, name) for name in _FUNCTIONS):
        return  # another FastAPI: all is made at once
    # A class of our own would not do: routers make APIRoute, by name.
    APIRoute.__init__ = _begin  # type: ignore[method-assign]
    APIRoute.__getattr__ = _finish  # type: ignore[attr-defined]


def _begin(self: APIRoute, *args: Any, **kwargs: Any) -> None:
    endpoint = kwargs.get("endpoint") or args[1]
    if "core_api" not in endpoint.__module__:
        _make(self, *args, **kwargs)
        return
    module = vars(routing)
    functions = {name: module[name] for name in _FUNCTIONS}
    try:
        module.update(dict.fromkeys(_FUNCTIONS, _Nothing))
        _make(self, *args, **kwargs)
    finally:
        module.update(functions)
    for name in _ATTRIBUTES:
        self.__dict__.pop(name, None)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if "_made_of" in self.__dict__:
            _finish(self, "dependant")
        await self.app(scope, receive, send)

    self.__dict__.update(app=app, _made_of=(args, kwargs))


class _Nothing:
    """What the functions return meanwhile."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.dependencies: list[Any] = []

    def __getattr__(self, _: str) -> None:
        return None


def _finish(self: APIRoute, name: str) -> Any:
    """Make what was left out, for who asks for some of it."""
    if name not in _ATTRIBUTES or "_made_of" not in self.__dict__:
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
    args, kwargs = self.__dict__.pop("_made_of")
    whole = object.__new__(type(self))
    _make(whole, *args, **kwargs)
    self.__dict__.update({each: vars(whole)[each] for each in (*_ATTRIBUTES, "app") if each in vars(whole)})
    return getattr(self, name)
