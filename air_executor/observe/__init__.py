"""What the command line, the plugin and metrics ask: which runs, launchers and jobs there are, and how they stand."""
