"""The runner: one process that executes one workload, writes down what became of it, and ends."""
