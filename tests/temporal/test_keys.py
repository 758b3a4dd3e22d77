"""Options for Temporal. Keys with which orders are sealed can be replaced while orders wait; none is ever shown."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from air_executor.cli.worker import _queues
from air_executor.errors import AirExecutorError, ConfigError, ProtocolError
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


@pytest.mark.parametrize(("text", "queue"), [("main", "main"), (None, "default"), (" ", "default")])
def test_what_names_no_queue_has_airflows_default_one_and_workers_serve_that(text: str | None, queue: str) -> None:
    values = {("air_executor", "temporal_key"): "key", ("operators", "default_queue"): text}
    found = Settings.load(lambda section, name: values.get((section, name)))
    assert found.queue(None) == f"airflow-tasks.{queue}" and found.queue("gpu") == "airflow-tasks.gpu"
    assert (_queues(None, found), _queues("a, b", found)) == ([queue], ["a", "b"])
    with pytest.raises(AirExecutorError, match="names no queue"):
        _queues(",", found)


def test_airflows_key_is_used_if_there_is_no_other() -> None:
    assert settings("", "shared").unseal(settings("shared").seal(b"an order")) == b"an order"
    with pytest.raises(ConfigError, match="secret_key"):
        settings("")


def test_no_key_is_shown_and_nothing_sealed_is_readable() -> None:
    ours = settings("planted-key", "planted-too")
    assert "planted" not in repr(ours)
    assert b"order" not in ours.seal(b"an order").encode()
    assert ours.seal(b"an order") != ours.seal(b"an order")
