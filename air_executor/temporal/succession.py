"""Who takes what comes when a workflow takes nothing new: its history is long enough, or it is being cancelled."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import FailureError, WorkflowAlreadyStartedError

#: How long to wait before a successor that did not take a signal is tried or replaced, each time twice as long.
_FIRST_PAUSE, _LAST_PAUSE = timedelta(seconds=1), timedelta(minutes=5)

_Handle = workflow.ChildWorkflowHandle[Any, Any] | workflow.ExternalWorkflowHandle[Any]


def memo(header: dict[str, Any]) -> dict[str, str]:
    """Return what people see of a workflow's header in Temporal."""
    return {name: value for name, value in header.items() if isinstance(value, str)}


class Succession:
    """Passes signals on to the next workflow of a DAG run, in their order. Part of a workflow's code."""

    def __init__(self, name: str, header: dict[str, Any], begin: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        """Have no successor yet.

        :param name: the workflow's type.
        :param begin: begins something in the workflow.
        """
        self._name, self._header, self._begin = name, header, begin
        self._successor: _Handle | None = None
        self._outbox: list[tuple[str, list[Any]]] = []

    @property
    def has_begun(self) -> bool:
        """Whether something was passed on, so that what belongs to it has to follow."""
        return self._successor is not None or self.is_sending

    @property
    def is_sending(self) -> bool:
        """Whether the successor does not have everything yet."""
        return bool(self._outbox)

    @property
    def next_id(self) -> str | None:
        """The id of the successor, if there is one."""
        return None if self._successor is None else self._successor.id

    def pass_on(self, signal: str, arguments: list[Any]) -> None:
        """Send a signal to the successor, which is started for the first one."""
        self._outbox.append((signal, arguments))
        if len(self._outbox) == 1:
            self._begin(self._send_all())

    async def _send_all(self) -> None:
        pause = _FIRST_PAUSE
        while self._outbox:
            signal, arguments = self._outbox[0]
            if self._successor is None:
                self._successor = await self._start()
            try:
                await self._successor.signal(signal, args=arguments)
                pause = _FIRST_PAUSE
            except FailureError:  # it is closed: it was cancelled in Temporal, or had nothing to do for a day
                self._successor = None
                if signal in ("order", "follow"):
                    await workflow.sleep(pause)
                    pause = min(2 * pause, _LAST_PAUSE)
                    continue
            del self._outbox[0]

    async def _start(self) -> _Handle:
        number = self._header.get("number", 1) + 1
        root = self._header.get("root") or workflow.info().workflow_id
        successor_id = f"{root}~{number}"
        try:
            successor = await workflow.start_child_workflow(
                self._name,
                {**self._header, "number": number, "root": root},
                id=successor_id,
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
                memo=memo(self._header),
                search_attributes=workflow.info().typed_search_attributes,
            )
            # How it ends is nothing to this workflow; unasked, it would be logged as an error.
            successor.add_done_callback(lambda done: done.cancelled() or done.exception())
            return successor
        except WorkflowAlreadyStartedError:  # by an earlier execution of this workflow, and it still has live runs
            return workflow.get_external_workflow_handle(successor_id)
