"""Answers for the command line, the plugin and metrics: which runs, launchers and jobs there are, in which state."""
