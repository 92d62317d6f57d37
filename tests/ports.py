"""Ports for processes that are to meet, each given out once."""

import itertools
import os
import socket

# Below those that the kernel hands out by itself, and others for each worker of pytest-xdist: a
# free port that was merely found is anybody's until the run that it is for has come up.
_WORKER = int("".join(filter(str.isdigit, os.environ.get("PYTEST_XDIST_WORKER", ""))) or 9)
_next = itertools.count(20_000 + 1000 * (_WORKER % 10) + os.getpid() % 10 * 100)


def free_port() -> int:
    """A port of this machine that nobody listens on, and that this process gives to nobody else."""
    for port in _next:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("unreachable")
