"""The launcher process itself."""
