"""A request to end that a run's Airflow gets."""

from __future__ import annotations

from air_executor.pocket.folder import RunFolder


class Interruption:
    """Whether the run was interrupted, which may be before there is anybody who could stop its tasks."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self.has_come = False

    def hear_early(self, *_: object) -> None:
        """Handle a signal while Airflow is being imported.

        :raises KeyboardInterrupt: nothing has begun that would have to be stopped first.
        """
        if not self._folder.has_begun():
            raise KeyboardInterrupt
        self.has_come = True

    def hear(self, *_: object) -> None:
        """Handle a signal once there are parts to end."""
        self.has_come = True
