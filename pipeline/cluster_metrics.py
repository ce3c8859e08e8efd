"""What a run tells Prometheus, through Ray's metrics endpoint. Names get the prefix `ray_`, counters the end `_total`.

The driver counts parts as they are published, so its numbers are those of the manifest. Replicas say how their time and
work are spread; what one did since its last report, up to ten seconds before its end, is lost with it.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

from pipeline.dispatch import Pulse
from pipeline.records import RowError
from pipeline.shard import Part

SHARD_SECONDS = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000]
STEP_SECONDS = [1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1, 3]
TOKEN_SECONDS = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3]


def add(counter: Counter, value: float, **tags: str) -> None:
    """Count on; Ray refuses to count nothing."""
    if value > 0:
        counter.inc(value, tags)


class DriverMetrics:
    """Numbers of the whole run; a `dispatch.Listener`.

    Attributes:
        replica_s: seconds that replicas were `starting`, `working` and `idle`, all together.
    """

    def __init__(self) -> None:
        self.replica_s = {"starting": 0.0, "working": 0.0, "idle": 0.0}
        self._last: Pulse | None = None
        self._rows = Counter("batchgen_rows", "Rows in published parts.", ("status",))
        self._errors = Counter("batchgen_errors", "Error rows in published parts.", ("error_type",))
        self._tokens = Counter("batchgen_tokens", "Tokens in published parts.", ("kind",))
        self._parts = Counter("batchgen_parts", "Published parts.")
        self._deaths = Counter("batchgen_replica_deaths", "Replicas that died or were ended.", ("cause",))
        self._replica_s = Counter("batchgen_replica_state_seconds", "Time of all replicas, by state.", ("state",))
        self._replicas = Gauge("batchgen_replicas", "Replicas, by state.", ("state",))
        self._queue = Gauge("batchgen_shards", "Shards and trials not done, by state.", ("state",))

    def part(self, part: Part) -> None:
        """A part is published."""
        add(self._parts, 1)
        add(self._rows, part.ok, status="ok")
        add(self._rows, part.rows - part.ok, status="error")
        for sums in part.sums.values():
            add(self._tokens, sums["prompt_tokens"], kind="prompt")
            add(self._tokens, sums["generated_tokens"], kind="generated")
            for error_type, count in sums["errors"].items():
                add(self._errors, count, error_type=error_type)

    def pulse(self, pulse: Pulse) -> None:
        """How things stand now, and stood since the last pulse."""
        self._queue.set(pulse.waiting, {"state": "waiting"})
        self._queue.set(pulse.leased, {"state": "leased"})
        for state in self.replica_s:
            self._replicas.set(getattr(pulse, state), {"state": state})
            if self._last:
                seconds = getattr(self._last, state) * (pulse.now - self._last.now)
                self.replica_s[state] += seconds
                add(self._replica_s, seconds, state=state)
        self._last = pulse

    def death(self, cause: RowError) -> None:
        """A replica died, or was ended."""
        add(self._deaths, 1, cause=cause.type)


class ReplicaMetrics:
    """Numbers of one replica, told apart by Ray's label `WorkerId`."""

    def __init__(self) -> None:
        self._rows = Counter("batchgen_replica_rows", "Rows of shards that the replica did.")
        self._tokens = Counter("batchgen_replica_tokens", "Tokens that the replica generated.")
        self._busy_s = Counter("batchgen_replica_busy_seconds", "Time that the replica spent on shards.")
        self._engine_s = Counter("batchgen_replica_engine_seconds", "The part of it spent in the engine.")
        self._passes = Counter("batchgen_replica_passes", "Passes of the model in the decode loop.", ("kind",))
        self._slot_steps = Counter(
            "batchgen_replica_slot_steps", "Rows in decode steps, and rows that there was room for.", ("kind",)
        )
        self._shard_s = Histogram("batchgen_shard_seconds", "Time of a shard.", SHARD_SECONDS)
        self._step_s = Histogram("batchgen_step_seconds", "Engine time by passes, per shard.", STEP_SECONDS)
        self._token_s = Histogram(
            "batchgen_token_seconds", "Engine time by tokens generated, per shard.", TOKEN_SECONDS
        )

    def part(self, part: Part) -> None:
        """The replica has done a shard."""
        add(self._rows, part.rows)
        add(self._tokens, part.generated_tokens)
        add(self._busy_s, part.seconds)
        add(self._engine_s, part.engine_s)
        add(self._passes, part.usage.num_prefills, kind="prefill")
        add(self._passes, part.usage.num_decode_steps, kind="decode")
        add(self._slot_steps, part.usage.used_slot_steps, kind="used")
        add(self._slot_steps, part.usage.offered_slot_steps, kind="offered")
        self._shard_s.observe(part.seconds)
        if part.usage.num_passes:
            self._step_s.observe(part.engine_s / part.usage.num_passes)
        if part.generated_tokens:
            self._token_s.observe(part.engine_s / part.generated_tokens)
