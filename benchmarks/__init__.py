"""Speed and memory, measured: each module is a command that prints what it found and keeps it in `results/`."""
