"""One module for each engine, run as a process of its own: `python -m benchmarks.workers.NAME OPTIONS`."""
