"""Where replicas fit: what one needs, held against the nodes of a cluster.

Plain values in, a number or a message out. It knows no Ray: `cluster` asks Ray for the nodes, and has Ray place the
replicas by the same rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.errors import ConfigError

NODES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is alive: its address, its resources as Ray counts them, and its labels."""

    address: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        kinds = [name.partition(":")[2] for name in self.resources if name.startswith("accelerator_type:")]
        gpus = " ".join([f"{self.resources.get('GPU', 0):g}", *kinds, "GPUs"])
        return f"{self.address} with {self.resources.get('CPU', 0):g} CPUs and {gpus}"


@dataclass(frozen=True, slots=True)
class Need:
    """What one replica takes: one CPU, so that a node's CPUs never starve its GPUs, and these GPUs on such a node."""

    gpus: float
    accelerator_type: str | None = None
    label_selector: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        kind = f"{self.accelerator_type} " if self.accelerator_type else ""
        labels = ", ".join(f"{key}={value}" for key, value in self.label_selector.items())
        return f"1 CPU and {self.gpus:g} {kind}GPUs" + (f" on nodes labelled {labels}" if labels else "")

    def fit(self, node: Node) -> int:
        """Replicas that fit a node; a fraction of a GPU never spans two."""
        if self.unmet(node):
            return 0
        cpus, gpus = int(node.resources.get("CPU", 0)), node.resources.get("GPU", 0)
        if self.gpus == 0:
            return cpus
        return min(cpus, int(gpus // self.gpus) if self.gpus >= 1 else int(gpus) * int(1 / self.gpus))

    def unmet(self, node: Node) -> str:
        """The first thing that a node lacks for one replica, or nothing."""
        for key, rule in self.label_selector.items():
            if not _matches(node.labels.get(key), rule):
                return f"label {key} is {node.labels.get(key, 'not there')}"
        if self.accelerator_type and f"accelerator_type:{self.accelerator_type}" not in node.resources:
            return f"no {self.accelerator_type}"
        if node.resources.get("GPU", 0) < self.gpus:
            return "too few GPUs"
        return "" if node.resources.get("CPU", 0) >= 1 else "no CPU"


def room(need: Need, nodes: Sequence[Node]) -> int:
    """Replicas that the nodes have room for."""
    return sum(need.fit(node) for node in nodes)


def check_room(wanted: int, need: Need, nodes: Sequence[Node]) -> None:
    """Make sure that so many replicas fit: Ray would let the others wait for ever.

    Raises:
        ConfigError: they do not; says what each node lacks.
    """
    have = room(need, nodes)
    if wanted <= have:
        return
    shown = "; ".join(f"{node}: {need.unmet(node) or f'{need.fit(node)} fit'}" for node in nodes[:NODES_SHOWN])
    more = f"; {len(nodes) - NODES_SHOWN} more nodes" if len(nodes) > NODES_SHOWN else ""
    raise ConfigError(
        f"run.replicas asks for {wanted} replicas of {need} each, but the cluster has room for {have} ({shown}{more}).",
        "Lower run.replicas or run.gpus_per_replica, add nodes, or set run.autoscaling where nodes come and go.",
    )


def check_shared(output: str, driver: str, need: Need, nodes: Sequence[Node], do_nodes_come: bool) -> None:
    """Make sure that no replica can be placed on another machine than a local output folder, which nobody has said to
    be shared.

    Args:
        output: path of the folder.
        driver: address of its machine.
        do_nodes_come: whether an autoscaler brings others.

    Raises:
        ConfigError: one can.
    """
    others = sorted({node.address for node in nodes if node.address != driver and not need.unmet(node)})
    more = [f"{len(others) - NODES_SHOWN} more"] if len(others) > NODES_SHOWN else []
    to_come = ["nodes that come under run.autoscaling"] if do_nodes_come else []
    if others or to_come:
        raise ConfigError(
            f"output.path {output} is a folder of the driver's machine, but replicas may be placed elsewhere too: "
            f"{', '.join([*others[:NODES_SHOWN], *more, *to_come])}.",
            "Use a URL such as s3://bucket/out, or say run.shared_output: true if all machines share this folder.",
        )


def _matches(label: str | None, rule: str) -> bool:
    """Whether a label keeps a rule of Ray's: `value`, `!value`, `in(a,b)` or `!in(a,b)`."""
    positive = rule.removeprefix("!")
    values = positive[3:-1].split(",") if positive.startswith("in(") and positive.endswith(")") else [positive]
    return (label in [value.strip() for value in values]) is (positive == rule)
