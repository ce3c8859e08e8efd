"""The Ray that a driver hangs on: the raylet of its machine, and the head of the cluster. It knows only their ports.

Where one of them is gone, Ray ends the driver's process without a word, seconds or a minute later and with an exit code
of its own. The driver looks first, so that it can say what happened.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from pipeline.errors import ClusterError

HEAD_PATIENCE_S = 20.0  # it may be started again; Ray itself waits for a minute
MACHINE = "the Ray of this machine"
HEAD = "the head of the Ray cluster"
GONE = "{name} is gone: {why}. Finished parts are kept."
RESUME = "Run the same command again, once Ray runs if it was not started by this command."

Answer = TypeVar("Answer")


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
        self._await(self.raylet, MACHINE, 0)
        self._await(self.head, HEAD, HEAD_PATIENCE_S)

    def _await(self, address: str, name: str, patience_s: float) -> None:
        waited_s = 0.0
        while True:
            try:
                return check_listening(address)
            except OSError as error:
                if waited_s >= patience_s:
                    why = f"nobody answers at {address} any more ({error})"
                    raise ClusterError(GONE.format(name=name, why=why), RESUME) from error
            self.sleep(1)
            waited_s += 1


def ask(question: Callable[[], Answer], patience_s: float = HEAD_PATIENCE_S) -> Answer:
    """What the head answers. It may die while it is asked, and Ray would wait for a minute and then end the driver.

    Raises:
        ClusterError: it does not answer.
    """
    answer: Future[Answer] = Future()

    def wait() -> None:
        try:
            answer.set_result(question())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=wait, daemon=True).start()
    try:
        return answer.result(patience_s)
    except TimeoutError as error:
        why = f"it was asked, and did not answer for {patience_s:g} s"
        raise ClusterError(GONE.format(name=HEAD, why=why), RESUME) from error


def check_owner(words: str) -> None:
    """Raise ClusterError where Ray's `words` on the death of an actor take the living driver for dead: then its raylet
    is, even if it was there a moment ago, and most of what the driver could ask of Ray would end it."""
    if "owner has died" in words:
        raise ClusterError(GONE.format(name=MACHINE, why="the cluster takes this driver's node for dead"), RESUME)


def check_listening(address: str) -> None:
    """Raise OSError if nobody listens at `host:port`; Ray itself would wait for minutes. URLs are not checked."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()
