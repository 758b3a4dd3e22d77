"""The launcher: a warm process that imports once and gives birth to one runner per workload."""
