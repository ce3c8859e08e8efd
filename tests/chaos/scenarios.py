"""What is killed when: values made from a seed, which know nothing of processes.

A scenario is a number of starts of one job, each with its kills, after which the job is started without any until it is
done. Families of scenarios get a share of the runs; those that go through the steps of the commit protocol take them in
a random order and start again when all had their turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle, islice
from random import Random

from pipeline.faults import STEPS

NUM_PARTS = 6
PARTS = tuple(f"data/part-{index:05d}.parquet" for index in range(NUM_PARTS))
DOCUMENTS = ("_plan.json", "_vocab.parquet", "README.md", "_manifest.json", "_SUCCESS")
FIRST_LEASE = "_tmp/driver-00001.json"
FILES = (FIRST_LEASE, PARTS[0], PARTS[3], PARTS[-1], *DOCUMENTS)
CORE_FILES = (PARTS[0], *DOCUMENTS)
OBJECT_STORES = ("s3", "gs", "az")
OBJECT_STEPS = (STEPS[0], STEPS[-1])
LATEST = 0.85  # of the time of an undisturbed run; later kills would often find nobody


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill -9.

    Attributes:
        victim: `driver`, `rival` (a second driver), `replica`, `raylet` (of a node with replicas), `cluster` (all that
            the driver started, but not itself) or `everything` (itself too).
        moment: `KEY:STEP`, when the victim comes to that step of publishing that file for the `number`-th time;
            `engine`, in the `number`-th batch of the replica; `part`, when the driver hears of the `number`-th part;
            `time`, after that share of the time that an undisturbed run takes.
        number: see there.
    """

    victim: str
    moment: str
    number: float = 1

    @property
    def fault(self) -> str:
        """As BATCHGEN_FAULT says it; empty if this is no step."""
        return f"{self.moment}:{self.number:g}" if ":" in self.moment else ""


@dataclass(frozen=True, slots=True)
class Start:
    """One start of the job: how many replicas it asks for, and what is killed meanwhile."""

    kills: tuple[Kill, ...] = ()
    replicas: int = 2
    has_rival: bool = False


@dataclass(frozen=True, slots=True)
class Scenario:
    """Starts of one job.

    Attributes:
        starts: those with kills.
        family: of scenarios.
        ground: where shards are done: `here` in the driver, on `nodes` of a running Ray cluster, or on the driver's
            `own` Ray.
        store: of the output, `disk`, or the scheme of an object store.
        number: among all of a session.
    """

    starts: tuple[Start, ...]
    family: str = ""
    ground: str = "here"
    store: str = "disk"
    number: int = 0


def scenarios(seed: int, runs: int) -> list[Scenario]:
    """About so many scenarios, at least one of each family; the same ones for the same seed."""
    chosen = [
        replace(scenario, family=family)
        for family, (share, make) in FAMILIES.items()
        for scenario in islice(make(Random(f"{seed} {family}")), max(1, round(share * runs)))
    ]
    return [replace(scenario, number=number) for number, scenario in enumerate(chosen)]


def _cycle(random: Random, values: list[str]) -> Iterator[str]:
    while True:
        yield from random.sample(values, len(values))


def _steps(files: tuple[str, ...], steps: tuple[str, ...]) -> list[str]:
    return [f"{key}:{step}" for key in files for step in steps]


def driver_at_every_step(random: Random) -> Iterator[Scenario]:
    for moment in _cycle(random, _steps(FILES, STEPS)):
        yield Scenario((Start((Kill("driver", moment),)),))


def driver_at_any_event(random: Random) -> Iterator[Scenario]:
    """The n-th file of all, whatever it is, comes to a step."""
    while True:
        kill = Kill("driver", f"*:{random.choice(STEPS)}", random.randint(1, NUM_PARTS + len(DOCUMENTS)))
        yield Scenario((Start((kill,)),))


def driver_at_any_time(random: Random) -> Iterator[Scenario]:
    while True:
        yield Scenario((Start((Kill("driver", "time", random.uniform(0, LATEST)),)),))


def driver_again_and_again(random: Random) -> Iterator[Scenario]:
    """Killed in the first start, in the second, and sometimes in the third."""
    while True:
        moments = [f"*:{step}" for step in random.choices(STEPS, k=random.choice((2, 2, 3)))]
        yield Scenario(tuple(Start((Kill("driver", moment, random.randint(1, 4)),)) for moment in moments))


def objects_at_every_step(random: Random) -> Iterator[Scenario]:
    """In object stores, each in turn, and after every second step at any moment."""
    stores = cycle(OBJECT_STORES)
    for count, moment in enumerate(_cycle(random, _steps(CORE_FILES, OBJECT_STEPS))):
        yield Scenario((Start((Kill("driver", moment),)),), store=next(stores))
        if count % 2:
            yield Scenario((Start((Kill("driver", "time", random.uniform(0, LATEST)),)),), store=next(stores))


def driver_with_a_rival(random: Random) -> Iterator[Scenario]:
    """A driver on another machine watches the lease while the first one is killed, or is killed while it watches."""
    while True:
        first = Kill("driver", f"{random.choice(PARTS)}:{random.choice(STEPS)}")
        second = Kill("rival", "time", random.uniform(0, LATEST))
        kills = random.choice(((first,), (first, second), (second,)))
        yield Scenario((Start(kills, has_rival=True),))


def replica_at_every_step(random: Random) -> Iterator[Scenario]:
    for moment in _cycle(random, _steps(("data/*",), STEPS)):
        yield Scenario((Start((Kill("replica", moment),)),), ground="nodes")


def replica_at_any_moment(random: Random) -> Iterator[Scenario]:
    """One replica, or two of them."""
    while True:
        kills = random.choice(
            (
                (_in_a_batch(random),),
                (_in_a_batch(random), _in_a_batch(random)),
                (Kill("replica", "time", random.uniform(0.4, LATEST)),),
            )
        )
        yield Scenario((Start(kills, random.randint(1, 3)),), ground="nodes")


def driver_on_ray(random: Random) -> Iterator[Scenario]:
    """With another number of replicas when it is started again, and sometimes a dead replica before."""
    while True:
        kill = random.choice(
            (
                Kill("driver", "time", random.uniform(0, LATEST)),
                Kill("driver", "part", random.randint(1, NUM_PARTS)),
                Kill("driver", f"{random.choice(DOCUMENTS)}:{random.choice(STEPS)}"),
            )
        )
        first = Start((kill,), random.randint(1, 3))
        second = Start((_in_a_batch(random),), random.choice([n for n in (1, 2, 3) if n != first.replicas]))
        yield Scenario((first, second), ground="nodes")


def raylet(random: Random) -> Iterator[Scenario]:
    """A node is lost, and another one added."""
    while True:
        in_time, in_order = ("time", random.uniform(0.4, LATEST)), ("part", random.randint(1, 3))
        kill = Kill("raylet", *random.choice((in_time, in_order)))
        kills = random.choice(((kill,), (kill,), (kill, _in_a_batch(random))))
        yield Scenario((Start(kills, 3),), ground="nodes")


def cluster(random: Random) -> Iterator[Scenario]:
    """All of a local Ray at once, with the driver that started it or without."""
    for victim in _cycle(random, ["cluster", "everything"]):
        in_time, in_order = ("time", random.uniform(0.1, LATEST)), ("part", random.randint(1, 4))
        kill = Kill(victim, *random.choice((in_time, in_order)))
        yield Scenario((Start((kill,), random.randint(1, 2)),), ground="own")


def _in_a_batch(random: Random) -> Kill:
    return Kill("replica", "engine", random.randint(1, 2))


FAMILIES: dict[str, tuple[float, Callable[[Random], Iterator[Scenario]]]] = {
    "driver at every step": (0.25, driver_at_every_step),
    "driver at any event": (0.08, driver_at_any_event),
    "driver at any time": (0.11, driver_at_any_time),
    "driver again and again": (0.11, driver_again_and_again),
    "driver, object store": (0.12, objects_at_every_step),
    "driver with a rival": (0.06, driver_with_a_rival),
    "replica at every step": (0.05, replica_at_every_step),
    "replica at any moment": (0.08, replica_at_any_moment),
    "driver on Ray": (0.05, driver_on_ray),
    "raylet": (0.05, raylet),
    "cluster": (0.04, cluster),
}
