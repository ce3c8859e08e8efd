"""Metrics as Prometheus scrapes them from a Ray node, against the manifest; and the dashboard that shows them."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import jsonschema
import promql_parser
import pytest
import ray
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import dashboard as grafana
from prometheus_client.parser import text_string_to_metric_families

from pipeline import job
from pipeline.cluster_metrics import DriverMetrics
from pipeline.dispatch import Pulse
from pipeline.shard import Part
from tests.flows import echo, make_job, write_prompts
from tests.local_ray import free_port, local_ray
from tests.test_cluster import dying, on_ray

DASHBOARD: dict[str, Any] = json.loads((Path(__file__).parent.parent / "docs" / "grafana.json").read_text())
QUERIES: list[str] = [
    target["expr"].replace("$session", ".*").replace("$__rate_interval", "1m")
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
]
PROMPTS = ["The quiet fox", "Every bee", None, "", "I skip across the", "Today", "x" * 2000]
PATIENCE_S = 60.0
Samples = dict[str, dict[str, float]]
Seen = TypeVar("Seen")


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


def looked_until(look: Callable[[], Seen], is_right: Callable[[Seen], bool]) -> Seen:
    """The first right look, or the last in a minute; Ray reports at intervals that nothing announces."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_right(seen := look()) and time.monotonic() < deadline:
        threading.Event().wait(0.2)
    return seen


def scraped_until(endpoint: str, expected: dict[str, dict[str, Any]]) -> Samples:
    """The first scrape with these values."""
    samples = looked_until(partial(scrape, endpoint), lambda seen: expected.items() <= seen.items())
    assert {name: samples.get(name) for name in expected} == expected
    return samples


class AtTheEnd:
    """Progress that looks while the last part is handed over and the replicas still live."""

    def __init__(self, look: Callable[[list[Part]], Any]) -> None:
        self.look, self.parts = look, list[Part]()

    def start(self, num_rows: int, num_shards: int, done: object) -> None:
        self.num_shards = num_shards

    def part(self, part: Part) -> None:
        self.parts.append(part)
        if len(self.parts) == self.num_shards:
            self.seen = self.look(self.parts)


def of_replicas(parts: list[Part]) -> dict[str, dict[str, Any]]:
    """What replicas say that did these parts."""
    return {
        "ray_batchgen_replica_rows_total": {"": sum(part.rows for part in parts)},
        "ray_batchgen_replica_tokens_total": {"": sum(part.generated_tokens for part in parts)},
        "ray_batchgen_replica_busy_seconds_total": {"": pytest.approx(sum(part.seconds for part in parts))},
        "ray_batchgen_replica_engine_seconds_total": {"": pytest.approx(sum(part.engine_s for part in parts))},
        "ray_batchgen_replica_passes_total": {"prefill": len(parts), "decode": len(parts)},
        "ray_batchgen_replica_slot_steps_total": {"used": len(parts), "offered": 2 * len(parts)},
        "ray_batchgen_shard_seconds_count": {"": len(parts)},
        "ray_batchgen_step_seconds_count": {"": len(parts)},
    }


def test_what_is_scraped_is_what_the_manifest_says(endpoint: str, tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "prompts.parquet", PROMPTS * 3)
    work = make_job(source, tmp_path / "out")
    progress = AtTheEnd(lambda parts: scraped_until(endpoint, of_replicas(parts)))
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
    assert named_in_dashboard() <= {*died, *progress.seen, *gauges}


def test_gauges_show_the_last_look_and_time_counts_for_the_state_in_which_replicas_were_until_the_next(
    endpoint: str,
) -> None:
    metrics = DriverMetrics()
    for pulse, gauges in (  # zeros are left out of a scrape
        (Pulse(10.0, 2, 0, 0, 9, 0), {"shards": {"waiting": 9}, "replicas": {"starting": 2}}),
        (
            Pulse(13.0, 1, 1, 0, 7, 2),
            {"shards": {"waiting": 7, "leased": 2}, "replicas": {"starting": 1, "working": 1}},
        ),
        (Pulse(14.5, 0, 1, 1, 0, 1), {"shards": {"leased": 1}, "replicas": {"working": 1, "idle": 1}}),
        (Pulse(16.5, 0, 0, 2, 0, 0), {"replicas": {"idle": 2}}),
    ):
        metrics.pulse(pulse)
        scraped_until(endpoint, {f"ray_batchgen_{name}": values for name, values in gauges.items()})
    assert metrics.replica_s == {"starting": 2 * 3.0 + 1.5, "working": 1.5 + 2.0, "idle": 2.0}


# The dashboard


def named_in_dashboard() -> set[str]:
    """Metrics that its queries name."""
    return set(re.findall(r"ray_batchgen_\w+", json.dumps(DASHBOARD)))


def as_grafana_has_it(dashboard: dict[str, Any]) -> Any:
    """Read by Grafana's own models and written again, with their defaults."""
    register_default_plugins()
    return json.loads(json.dumps(grafana.Dashboard.from_json(dashboard), cls=JSONEncoder))


def is_within(value: object, whole: object) -> bool:
    """Whether nothing of the value is missing in the whole, at any depth."""
    match value, whole:
        case dict(), dict():
            return all(key in whole and is_within(each, whole[key]) for key, each in value.items())
        case list(), list():
            return len(value) == len(whole) and all(map(is_within, value, whole))
        case _:
            return value == whole


def test_grafanas_own_models_know_all_of_the_dashboard() -> None:
    assert is_within(DASHBOARD, as_grafana_has_it(DASHBOARD))


def test_grafanas_own_models_do_not_know_a_misspelt_key() -> None:
    dashboard = copy.deepcopy(DASHBOARD)
    custom = dashboard["panels"][3]["fieldConfig"]["defaults"]["custom"]
    custom["fillOpacty"] = custom.pop("fillOpacity")
    assert not is_within(dashboard, as_grafana_has_it(dashboard))


def test_values_in_the_dashboard_are_of_the_types_and_in_the_limits_of_grafana() -> None:
    """Which its models do not check; the schema, of the fields that are used, is ours."""
    jsonschema.validate(DASHBOARD, json.loads((Path(__file__).parent / "grafana.schema.json").read_text()))
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    known = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {"__rate_interval"}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(panels))) <= known


def test_no_two_panels_lie_on_each_other() -> None:
    cells = [
        {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        for at in (panel["gridPos"] for panel in DASHBOARD["panels"])
    ]
    assert all(left.isdisjoint(right) for left, right in combinations(cells, 2))
    assert max(x for each in cells for x, _ in each) < 24


@pytest.mark.parametrize("query", QUERIES)
def test_queries_are_promql_and_take_rates_of_counters_only(query: str) -> None:
    promql_parser.parse(query)
    assert all(name.endswith(("_total", "_bucket")) for name in re.findall(r"rate\((\w+)", query))


@pytest.fixture
def prometheus(endpoint: str, tmp_path: Path) -> Iterator[str]:
    """The API of a Prometheus server that scrapes the endpoint twice a second."""
    if shutil.which("prometheus") is None:
        pytest.skip("no Prometheus server on this machine; Debian has one, `apt-get install prometheus`")
    scraped = [{"job_name": "ray", "static_configs": [{"targets": [endpoint.split("/")[2]]}]}]
    config = {"global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"}, "scrape_configs": scraped}
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    command += [f"--web.listen-address={address}"]
    with (tmp_path / "prometheus.log").open("w") as log, subprocess.Popen(command, stderr=log) as process:
        said = looked_until((tmp_path / "prometheus.log").read_text, lambda lines: "Server is ready" in lines)
        assert "Server is ready" in said
        yield f"http://{address}/api/v1"
        process.kill()


def answer(prometheus: str, path: str, **query: str) -> Any:
    """What Prometheus says; an error where it does not understand the query."""
    with urllib.request.urlopen(f"{prometheus}/{path}?{urlencode(query)}", timeout=PATIENCE_S) as response:
        return json.load(response)["data"]


def test_prometheus_has_data_for_every_query_of_the_dashboard(prometheus: str, tmp_path: Path) -> None:
    """While a run ends in which a replica died."""

    def without_data() -> list[str]:
        return [query for query in QUERIES if not answer(prometheus, "query", query=query)["result"]]

    progress = AtTheEnd(lambda _: looked_until(without_data, lambda queries: not queries))
    work = make_job(write_prompts(tmp_path / "prompts.parquet", PROMPTS * 3), tmp_path / "out")
    job.run(work, on_ray(work, replicas=1), progress, engine_maker=partial(dying, tmp_path / "marker", 1))
    assert progress.seen == []
    [sessions] = [variable for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
    [(metric, label)] = re.findall(r"label_values\((\w+), (\w+)\)", sessions["query"]["query"])
    assert len(answer(prometheus, f"label/{label}/values", **{"match[]": metric})) == 1
