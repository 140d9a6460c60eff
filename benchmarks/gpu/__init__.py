"""The first quarter of an hour on a GPU as one command: `python -m benchmarks.gpu --help`."""
