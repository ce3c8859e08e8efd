"""Room for replicas on nodes, as tables."""

from __future__ import annotations

import pytest

from pipeline.errors import ConfigError
from pipeline.placement import Need, Node, check_room, check_shared, room

HEAD = Node("10.0.0.1", {"memory": 8e9})
L4 = Node("10.0.0.2", {"CPU": 4, "GPU": 1, "accelerator_type:L4": 1}, {"ray.io/market-type": "spot"})
A100 = Node("10.0.0.3", {"CPU": 6, "GPU": 8, "accelerator_type:A100": 1}, {"ray.io/market-type": "on-demand"})
NODES = [HEAD, L4, A100]
MARKET = "ray.io/market-type"


@pytest.mark.parametrize(
    ("need", "fit"),
    [
        (Need(0), [0, 4, 6]),
        (Need(1), [0, 1, 6]),  # the CPUs are the limit
        (Need(0.5), [0, 2, 6]),
        (Need(0.3), [0, 3, 6]),  # three thirds and a rest that spans no two GPUs
        (Need(2), [0, 0, 4]),
        (Need(1, "A100"), [0, 0, 6]),
        (Need(1, "H100"), [0, 0, 0]),
        (Need(0, "L4"), [0, 4, 0]),
        (Need(1, None, {MARKET: "spot"}), [0, 1, 0]),
        (Need(0, None, {MARKET: "!spot"}), [0, 0, 6]),
        (Need(0, None, {MARKET: "in(spot, on-demand)"}), [0, 4, 6]),
        (Need(0, None, {MARKET: "!in(spot,on-demand)"}), [0, 0, 0]),
        (Need(1, "L4", {MARKET: "on-demand"}), [0, 0, 0]),
    ],
)
def test_so_many_replicas_fit_each_node(need: Need, fit: list[int]) -> None:
    assert [need.fit(node) for node in NODES] == fit
    assert room(need, NODES) == sum(fit)


def test_a_refusal_says_what_each_node_lacks_and_what_to_do() -> None:
    check_room(1, Need(1, "L4"), NODES)
    with pytest.raises(ConfigError) as refused:
        check_room(2, Need(1, "L4", {MARKET: "!on-demand"}), NODES)
    assert str(refused.value) == (
        "run.replicas asks for 2 replicas of 1 CPU and 1 L4 GPUs on nodes labelled ray.io/market-type=!on-demand each, "
        "but the cluster has room for 1 (10.0.0.1 with 0 CPUs and 0 GPUs: no L4; 10.0.0.2 with 4 CPUs and 1 L4 GPUs: "
        "1 fit; 10.0.0.3 with 6 CPUs and 8 A100 GPUs: label ray.io/market-type is on-demand). "
        "Lower run.replicas or run.gpus_per_replica, add nodes, or set run.autoscaling where nodes come and go."
    )


def test_a_refusal_by_a_large_cluster_stays_short() -> None:
    with pytest.raises(ConfigError, match=r"too few GPUs; 92 more nodes\)"):
        check_room(1, Need(2), [L4] * 100)


def test_a_local_output_is_taken_where_replicas_can_only_be_on_its_machine() -> None:
    check_shared("/out", "10.0.0.2", Need(1, "L4"), NODES, do_nodes_come=False)
    check_shared("/out", "10.0.0.2", Need(0), [L4, L4], do_nodes_come=False)  # two nodes on one machine


@pytest.mark.parametrize(
    ("driver", "nodes", "do_nodes_come", "elsewhere"),
    [
        ("10.0.0.1", NODES, False, "10.0.0.2, 10.0.0.3"),  # the head takes no work, but the driver is there
        ("10.0.0.2", NODES, False, "10.0.0.3"),
        ("10.0.0.2", [L4], True, "nodes that come under run.autoscaling"),
        ("ray://head:10001", [L4], True, "10.0.0.2, nodes that come under run.autoscaling"),
        (
            "10.0.0.2",
            [Node(f"10.0.1.{number}", L4.resources) for number in range(10, 30)],
            False,
            "10.0.1.10, 10.0.1.11, 10.0.1.12, 10.0.1.13, 10.0.1.14, 10.0.1.15, 10.0.1.16, 10.0.1.17, 12 more",
        ),
    ],
)
def test_a_local_output_that_replicas_may_not_share_is_refused(
    driver: str, nodes: list[Node], do_nodes_come: bool, elsewhere: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        check_shared("/out", driver, Need(1), nodes, do_nodes_come)
    assert str(refused.value) == (
        "output.path /out is a folder of the driver's machine, but replicas may be placed elsewhere too: "
        f"{elsewhere}. Use a URL such as s3://bucket/out, or say run.shared_output: true if all machines share this "
        "folder."
    )
