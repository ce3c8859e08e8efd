"""What a driver does when nobody answers at the ports of its Ray."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from pipeline.errors import ClusterError
from pipeline.lifeline import HEAD_PATIENCE_S, Lifeline, ask, check_listening, check_owner


@pytest.fixture
def there() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def gone() -> Iterator[socket.socket]:
    """A port that is taken, but where nobody listens yet."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        yield server


def address(server: socket.socket) -> str:
    return f"127.0.0.1:{server.getsockname()[1]}"


def never(_seconds: float) -> None:
    raise AssertionError("it waits")


def test_both_are_there(there: str) -> None:
    Lifeline(there, there, never).check()


def test_a_raylet_that_is_gone_does_not_come_back(there: str, gone: socket.socket) -> None:
    with pytest.raises(ClusterError, match=f"Ray of this machine is gone: nobody answers at {address(gone)} any more"):
        Lifeline(address(gone), there, never).check()


def test_a_head_that_is_started_again_in_time_is_waited_for(there: str, gone: socket.socket) -> None:
    naps: list[float] = []
    Lifeline(there, address(gone), nap_until(5, naps, gone.listen)).check()
    assert naps == [1] * 5


def test_a_head_that_stays_away_ends_the_run_and_it_is_safe_to_run_it_again(there: str, gone: socket.socket) -> None:
    naps: list[float] = []
    with pytest.raises(ClusterError, match=r"the head of the Ray cluster is gone.*Run the same command again"):
        Lifeline(there, address(gone), naps.append).check()
    assert sum(naps) == HEAD_PATIENCE_S


def test_a_living_driver_that_is_taken_for_dead_has_lost_its_ray() -> None:
    """The raylet still answered when replicas were reported dead, and the next call ended the driver with 1."""
    check_owner("The actor is dead because all references to the actor were removed.")
    with pytest.raises(ClusterError, match=r"Ray of this machine is gone.*Run the same command again"):
        check_owner(
            "The actor is dead because its owner has died. Owner Id: 01 Worker exit detail: Owner's node has crashed."
        )


def nap_until(count: int, naps: list[float], then: Callable[[], None]) -> Callable[[float], None]:
    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == count:
            then()

    return nap


def test_where_ray_is_named_by_a_url_nobody_is_asked() -> None:
    check_listening("ray://127.0.0.1:1")


def test_a_head_that_dies_while_it_is_asked_ends_the_run_before_ray_ends_the_driver() -> None:
    """Its port still took connections, so the check before was passed; Ray waited for a minute and exited with 1."""
    asked = threading.Event()
    with pytest.raises(ClusterError, match=r"the head of the Ray cluster is gone: it was asked.*Run the same command"):
        ask(asked.wait, patience_s=0.01)
    asked.set()


def test_what_the_head_answers_is_passed_on() -> None:
    assert ask(lambda: [1, 2]) == [1, 2]
    with pytest.raises(KeyError, match="node"):
        ask(lambda: {}["node"])
