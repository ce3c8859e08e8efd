"""The Ray that a driver hangs on: the raylet of its machine, and the head of the cluster. It knows only their ports.

Where one of them is gone, Ray ends the driver's process without a word, seconds or a minute later and with an exit code
of its own. The driver looks first, so that it can say what happened.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errors import ClusterError

HEAD_PATIENCE_S = 20.0  # it may be started again; Ray itself waits for a minute


@dataclass(frozen=True, slots=True)
class Lifeline:
    """Where both listen, as `host:port`."""

    raylet: str
    head: str
    sleep: Callable[[float], None] = time.sleep

    def check(self) -> None:
        """Make sure that both are there; waits for the head, for a while.

        Raises:
            ClusterError: one of them is not.
        """
        self._await(self.raylet, "the Ray of this machine", 0)
        self._await(self.head, "the head of the Ray cluster", HEAD_PATIENCE_S)

    def _await(self, address: str, name: str, patience_s: float) -> None:
        waited_s = 0.0
        while True:
            try:
                return check_listening(address)
            except OSError as error:
                if waited_s >= patience_s:
                    raise ClusterError(
                        f"{name} is gone: nobody answers at {address} any more ({error}). Finished parts are kept; it "
                        "is safe to run the same command again, once Ray runs if it was not started by this command."
                    ) from error
            self.sleep(1)
            waited_s += 1


def check_listening(address: str) -> None:
    """Raise OSError if nobody listens at `host:port`; Ray itself would wait for minutes. URLs are not checked."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()
