"""What the command line, the plugin and others ask about runs."""
