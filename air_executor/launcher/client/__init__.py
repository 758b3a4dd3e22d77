"""An executor's side of the launcher."""
