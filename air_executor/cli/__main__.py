"""``python -m air_executor.cli``: the ``air-executor`` command."""

from air_executor.cli.main import main

main()
