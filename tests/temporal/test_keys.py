"""The keys with which orders are sealed: they can be replaced while orders wait, and none is ever shown."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from air_executor.errors import ConfigError, ProtocolError
from air_executor.temporal.settings import Settings


def settings(keys: str, shared: str | None = None) -> Settings:
    values = {("air_executor", "temporal_key"): keys, ("api", "secret_key"): shared}
    get: Callable[[str, str], str | None] = lambda section, name: values.get((section, name))  # noqa: E731
    return Settings.load(get)


def test_a_key_is_replaced_while_orders_wait() -> None:
    old, both, new = settings("old"), settings("new, old"), settings("new")
    waiting = old.seal(b"an order")
    assert both.unseal(waiting) == b"an order"
    assert new.unseal(both.seal(b"another")) == b"another"
    for stranger in (new, settings("other")):
        with pytest.raises(ProtocolError, match="temporal_key"):
            stranger.unseal(waiting)


def test_how_often_runners_send_heartbeats_moves_the_fence_and_the_verdict() -> None:
    def with_interval(text: str | None) -> Settings:
        values = {("air_executor", "temporal_key"): "key", ("workers", "min_heartbeat_interval"): text}
        return Settings.load(lambda section, name: values.get((section, name)))

    assert (with_interval(None).fence_s, with_interval(None).lost_s) == (25.0, 45.0)
    assert (with_interval("30").fence_s, with_interval("30").lost_s) == (50.0, 70.0)
    with pytest.raises(ConfigError, match="min_heartbeat_interval = 'often'"):
        with_interval("often")


def test_airflows_key_is_used_if_there_is_no_other() -> None:
    assert settings("", "shared").unseal(settings("shared").seal(b"an order")) == b"an order"
    with pytest.raises(ConfigError, match="secret_key"):
        settings("")


def test_no_key_is_shown_and_nothing_sealed_is_readable() -> None:
    ours = settings("planted-key", "planted-too")
    assert "planted" not in repr(ours)
    assert b"order" not in ours.seal(b"an order").encode()
    assert ours.seal(b"an order") != ours.seal(b"an order")
