"""Programs that do the same work, each in its own environment and its own processes.

A module here is run as `python -m benchmarks.peers.NAME`; `prepare` loads what it needs and gives a function that does
the work once. None imports anything of this project but `serving`, ours excepted: other environments lack the rest.
"""
