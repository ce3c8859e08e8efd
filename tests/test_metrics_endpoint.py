"""Metrics as Prometheus scrapes them from a Ray node, against the manifest; and the dashboard that shows them."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from pipeline import job
from pipeline.cluster_metrics import DriverMetrics
from pipeline.dispatch import Pulse
from pipeline.shard import Part
from tests.flows import echo, make_job, write_prompts
from tests.local_ray import local_ray
from tests.test_cluster import dying, on_ray

DASHBOARD = Path(__file__).parent.parent / "docs" / "grafana.json"
PROMPTS = ["The quiet fox", "Every bee", None, "", "I skip across the", "Today", "x" * 2000]
PATIENCE_S = 60.0
Samples = dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The metrics endpoint of a local Ray that reports twice a second."""
    with local_ray(num_cpus=2, metrics_report_interval_ms=500):
        node = ray.nodes()[0]
        yield f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


def scrape(endpoint: str) -> Samples:
    """Our metrics: name -> value of the label that is ours, "" without one -> sum over processes."""
    with urllib.request.urlopen(endpoint, timeout=PATIENCE_S) as response:
        families = text_string_to_metric_families(response.read().decode())
    found: Samples = {}
    for sample in (sample for family in families for sample in family.samples):
        if sample.name.startswith("ray_batchgen_") and sample.value:
            ours = [
                sample.labels[name]
                for name in ("status", "kind", "state", "cause", "error_type")
                if name in sample.labels
            ]
            values = found.setdefault(sample.name, {})
            values[ours[0] if ours else ""] = values.get(ours[0] if ours else "", 0.0) + sample.value
    return found


def scraped_until(endpoint: str, expected: dict[str, dict[str, Any]]) -> Samples:
    """The first scrape with these values; Ray reports at intervals that nothing announces."""
    deadline = time.monotonic() + PATIENCE_S
    while not expected.items() <= (samples := scrape(endpoint)).items():
        if time.monotonic() > deadline:
            assert {name: samples.get(name) for name in expected} == expected
        threading.Event().wait(0.2)
    return samples


class AtTheEnd:
    """Progress that looks at the replicas' metrics while the last part is handed over and they still live."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint, self.parts, self.samples = endpoint, list[Part](), Samples()

    def start(self, num_rows: int, num_shards: int, done: object) -> None:
        self.num_shards = num_shards

    def part(self, part: Part) -> None:
        self.parts.append(part)
        if len(self.parts) == self.num_shards:
            self.samples = scraped_until(self.endpoint, self.expected())

    def expected(self) -> dict[str, dict[str, Any]]:
        """What replicas say that did these parts."""
        return {
            "ray_batchgen_replica_rows_total": {"": sum(part.rows for part in self.parts)},
            "ray_batchgen_replica_tokens_total": {"": sum(part.generated_tokens for part in self.parts)},
            "ray_batchgen_replica_busy_seconds_total": {"": pytest.approx(sum(part.seconds for part in self.parts))},
            "ray_batchgen_replica_engine_seconds_total": {"": pytest.approx(sum(part.engine_s for part in self.parts))},
            "ray_batchgen_replica_passes_total": {"prefill": self.num_shards, "decode": self.num_shards},
            "ray_batchgen_replica_slot_steps_total": {"used": self.num_shards, "offered": 2 * self.num_shards},
            "ray_batchgen_shard_seconds_count": {"": self.num_shards},
            "ray_batchgen_step_seconds_count": {"": self.num_shards},
        }


def test_what_is_scraped_is_what_the_manifest_says(endpoint: str, tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "prompts.parquet", PROMPTS * 3)
    work = make_job(source, tmp_path / "out")
    progress = AtTheEnd(endpoint)
    manifest = job.run(work, on_ray(work, replicas=2), progress, engine_maker=echo).manifest
    totals, strategies = manifest["totals"], manifest["strategies"].values()
    errors = {error: sum(sums["errors"][error] for sums in strategies) for error in ("prompt_null", "prompt_too_long")}
    expected = {
        "ray_batchgen_parts_total": {"": 7},
        "ray_batchgen_rows_total": {"ok": totals["ok"], "error": totals["errors"]},
        "ray_batchgen_errors_total": errors,
        "ray_batchgen_tokens_total": {
            "prompt": sum(sums["prompt_tokens"] for sums in strategies),
            "generated": totals["generated_tokens"],
        },
    }
    found = scraped_until(endpoint, expected)
    assert found["ray_batchgen_replica_state_seconds_total"]["working"] > 0
    assert 0 < sum(part.engine_s for part in progress.parts) < sum(part.seconds for part in progress.parts)

    again = make_job(source, tmp_path / "again")
    job.run(again, on_ray(again, replicas=1), engine_maker=partial(dying, tmp_path / "marker", 1))
    twice = {name: {label: 2 * value for label, value in values.items()} for name, values in expected.items()}
    died = scraped_until(endpoint, twice | {"ray_batchgen_replica_deaths_total": {"killed_replica": 1}})
    gauges = {"ray_batchgen_shards", "ray_batchgen_replicas"}  # zeros are left out of a scrape
    assert named_in_dashboard() <= {*died, *progress.samples, *gauges}


@pytest.mark.usefixtures("endpoint")
def test_time_counts_for_the_state_in_which_replicas_were_until_the_next_look() -> None:
    metrics = DriverMetrics()
    for pulse in (
        Pulse(10.0, 2, 0, 0, 9, 0),
        Pulse(13.0, 1, 1, 0, 7, 2),
        Pulse(14.5, 0, 1, 1, 0, 1),
        Pulse(16.5, 0, 0, 2, 0, 0),
    ):
        metrics.pulse(pulse)
    assert metrics.replica_s == {"starting": 2 * 3.0 + 1.5, "working": 1.5 + 2.0, "idle": 2.0}


# The dashboard


def named_in_dashboard() -> set[str]:
    """Metrics that its queries name."""
    return set(re.findall(r"ray_batchgen_\w+", DASHBOARD.read_text()))


def test_the_dashboard_is_what_grafana_takes() -> None:
    """Its schema is no file that can be had offline: this one has what its model asks of the fields that are used."""
    dashboard = json.loads(DASHBOARD.read_text())
    jsonschema.validate(dashboard, json.loads((Path(__file__).parent / "grafana.schema.json").read_text()))
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    known = {variable["name"] for variable in dashboard["templating"]["list"]} | {"__rate_interval"}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(panels))) <= known


def test_no_two_panels_lie_on_each_other() -> None:
    cells = [
        {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        for at in (panel["gridPos"] for panel in json.loads(DASHBOARD.read_text())["panels"])
    ]
    assert all(left.isdisjoint(right) for left, right in combinations(cells, 2))
    assert max(x for each in cells for x, _ in each) < 24


@pytest.mark.parametrize(
    "query", [t["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for t in panel["targets"]]
)
def test_queries_have_balanced_brackets_and_rates_of_counters_only(query: str) -> None:
    pairs = {")": "(", "]": "[", "}": "{"}
    opened: list[str] = []
    for character in re.sub(r'"[^"]*"', "", query):
        if character in "([{":
            opened.append(character)
        elif character in pairs:
            assert opened.pop() == pairs[character]
    assert opened == []
    assert all(name.endswith(("_total", "_bucket")) for name in re.findall(r"rate\((\w+)", query))
