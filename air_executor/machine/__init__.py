"""What an operating system offers: processes and their trees, memory, files, watching."""
