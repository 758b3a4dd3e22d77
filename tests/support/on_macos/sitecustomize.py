"""Python imports this when it starts: see ``tests/support/macos.py``."""

from tests.support import macos

macos.pretend()
