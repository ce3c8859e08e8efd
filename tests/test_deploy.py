"""The files that start clusters, held to the schemas of what reads them and to what batchgen needs; nothing starts."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from pipeline import __version__
from pipeline.jobfile import load_job

ROOT = Path(__file__).parent.parent
LAUNCHER = ["cluster.yaml", "deploy/gcp.yaml", "deploy/on-premise.yaml"]
SCHEMA = yaml.safe_load((ROOT / "tests/rayjob_schema.yaml").read_text())
KUBERNETES = "1.37"
PINS = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


def launcher(name: str) -> dict[str, Any]:
    """A file as Ray's launcher sees it, defaults filled in."""
    prepared: dict[str, Any] = prepare_config(yaml.safe_load((ROOT / name).read_text()))
    return prepared


def kubernetes() -> dict[str, dict[str, Any]]:
    """The documents of the manifest by their kind."""
    return {document["kind"]: document for document in yaml.safe_load_all((ROOT / "deploy/rayjob.yaml").read_text())}


@pytest.fixture
def ray_job() -> dict[str, Any]:
    return copy.deepcopy(kubernetes()["RayJob"])


@pytest.mark.parametrize("name", LAUNCHER)
def test_rays_launcher_takes_the_file(name: str) -> None:
    validate_config(launcher(name))


def test_rays_launcher_refuses_a_misspelt_key() -> None:
    with pytest.raises(jsonschema.ValidationError, match="max_wrokers"):
        validate_config(launcher("cluster.yaml") | {"max_wrokers": 3})


@pytest.mark.parametrize("name", LAUNCHER)
def test_every_node_asks_for_the_token_and_has_it(name: str) -> None:
    config = launcher(name)
    assert "--env=RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


@pytest.mark.parametrize("name", LAUNCHER)
def test_the_dashboard_stays_on_the_heads_loopback(name: str) -> None:
    [_, start] = launcher(name)["head_start_ray_commands"]
    assert start.startswith("ray start --head ")
    assert re.findall(r"--dashboard-host=(\S+)", start) == ["127.0.0.1"]


@pytest.mark.parametrize("name", LAUNCHER)
def test_containers_have_shared_memory_and_open_files(name: str) -> None:
    options = launcher(name)["docker"]["run_options"]
    assert {"--shm-size=4g", "--ulimit=nofile=65536:65536"} <= set(options)


@pytest.mark.parametrize("name", ["cluster.yaml", "deploy/gcp.yaml"])
def test_the_head_takes_no_work_and_gpu_nodes_come_on_spot_before_on_demand(name: str) -> None:
    config = launcher(name)
    types = config["available_node_types"]
    assert config["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0}
    rows = [
        (name, kind["min_workers"], kind["max_workers"], kind["priority"], kind["resources"], kind["labels"])
        for name, kind in types.items()
        if name != "head"
    ]
    one_gpu = {"CPU": 4, "GPU": 1}
    assert rows == [
        ("gpu-spot", 0, 16, 1, one_gpu, {"ray.io/market-type": "spot"}),
        ("gpu-on-demand", 0, 4, 0, one_gpu, {"ray.io/market-type": "on-demand"}),
    ]


def test_on_aws_only_spot_nodes_are_spot_and_no_node_has_keys_or_an_open_metadata_service() -> None:
    nodes = {name: kind["node_config"] for name, kind in launcher("cluster.yaml")["available_node_types"].items()}
    assert [name for name, node in nodes.items() if "InstanceMarketOptions" in node] == ["gpu-spot"]
    profiles = {name: node["IamInstanceProfile"]["Name"] for name, node in nodes.items()}
    assert profiles == {"head": "batchgen-head", "gpu-spot": "batchgen-worker", "gpu-on-demand": "batchgen-worker"}
    assert {node["MetadataOptions"]["HttpTokens"] for node in nodes.values()} == {"required"}


def test_on_google_only_spot_nodes_are_preemptible() -> None:
    nodes = {name: kind["node_config"] for name, kind in launcher("deploy/gcp.yaml")["available_node_types"].items()}
    assert nodes["gpu-spot"]["scheduling"] == [{"preemptible": True}]
    assert nodes["gpu-on-demand"]["scheduling"] == [{"onHostMaintenance": "TERMINATE"}]


def test_kuberay_takes_the_job(ray_job: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(ray_job)


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ((), "backofLimit", 3),
        (("rayClusterSpec", "authOptions"), "mode", "tokens"),
        (("rayClusterSpec", "headGroupSpec", "rayStartParams"), "num-cpus", 0),
        (("rayClusterSpec", "workerGroupSpecs", 0), "maxReplicas", "16"),
    ],
)
def test_the_schema_refuses_what_kuberay_would(
    ray_job: dict[str, Any], path: tuple[Any, ...], key: str, value: object
) -> None:
    inner = ray_job["spec"]
    for step in path:
        inner = inner[step]
    inner[key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(ray_job)


def groups(ray_job: dict[str, Any]) -> list[dict[str, Any]]:
    """The head and the workers, each of one kind of pod."""
    cluster = ray_job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pod(group: dict[str, Any]) -> dict[str, Any]:
    """What KubeRay makes of a group, as Kubernetes sees it."""
    return {"apiVersion": "v1", "kind": "Pod", **group["template"]}


def test_kubernetes_takes_the_other_documents_and_every_pod(ray_job: dict[str, Any]) -> None:
    documents = [document for kind, document in kubernetes().items() if kind != "RayJob"]
    assert [document["kind"] for document in documents] == ["ConfigMap", "NetworkPolicy"]
    for document in documents + [pod(group) for group in groups(ray_job)]:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("nodeSelectors", {}),
        ("terminationGracePeriodSeconds", "60"),
        ("tolerations", [{"efect": "NoSchedule"}]),
        ("containers", [{"image": "batchgen"}]),
    ],
)
def test_kubernetes_refuses_a_misspelt_key_a_wrong_type_and_a_missing_name(
    ray_job: dict[str, Any], key: str, value: object
) -> None:
    wrong = pod(groups(ray_job)[1])
    wrong["spec"][key] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_gpu_pods_tolerate_what_keeps_others_off_their_nodes_in_words_that_kubernetes_knows(
    ray_job: dict[str, Any],
) -> None:
    found = [
        {(each["key"], each["operator"], each["effect"]) for each in pod(group)["spec"].get("tolerations", [])}
        for group in groups(ray_job)
    ]
    gpu, spot = ((key, "Exists", "NoSchedule") for key in ("nvidia.com/gpu", "cloud.google.com/gke-spot"))
    assert found == [set(), {gpu, spot}, {gpu}]


def test_the_ray_job_keeps_the_rules_of_kuberays_operator(ray_job: dict[str, Any]) -> None:
    spec, cluster = ray_job["spec"], ray_job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}  # which needs rayVersion, 2.52 or later
    assert cluster["rayVersion"] == PINS["ray"]
    assert spec["shutdownAfterJobFinishes"]  # or ttlSecondsAfterFinished is refused
    assert len(ray_job["metadata"]["name"]) <= 47
    assert spec["backoffLimit"] == 3


def test_the_ray_jobs_head_takes_no_work_and_its_pods_have_time_to_finish_a_shard(
    ray_job: dict[str, Any], tmp_path: Path
) -> None:
    cluster = ray_job["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (tmp_path / "job.yaml").write_text(kubernetes()["ConfigMap"]["data"]["job.yaml"])
    job = load_job(tmp_path / "job.yaml")
    pods = [pod(group)["spec"] for group in groups(ray_job)]
    assert all(each["terminationGracePeriodSeconds"] > job.run.grace_s for each in pods)
    assert job.run.replicas == cluster["workerGroupSpecs"][0]["maxReplicas"]


def test_the_network_policy_is_about_the_pods_of_the_cluster(ray_job: dict[str, Any]) -> None:
    policy = kubernetes()["NetworkPolicy"]["spec"]
    labels = policy["podSelector"]["matchLabels"]
    assert all(pod(group)["metadata"]["labels"].items() >= labels.items() for group in groups(ray_job))
    assert [rule.get("ports") for rule in policy["ingress"]] == [None, [{"protocol": "TCP", "port": 8265}]]


def test_all_files_name_the_image_of_this_version_and_it_is_made_on_the_ray_that_is_tested() -> None:
    images = {launcher(name)["docker"]["image"] for name in LAUNCHER}
    images |= set(re.findall(r"image: (?:&image )?([\w./-]+:[\w.-]+)", (ROOT / "deploy/rayjob.yaml").read_text()))
    dockerfile = (ROOT / "Dockerfile").read_text()
    [built] = set(re.findall(r"docker build -t (\S+?)(?:-cpu)? ", dockerfile))
    assert images == {built} == {f"your-team/batchgen:{__version__}"}
    assert set(re.findall(r"BASE=([\d.]+)-py311", dockerfile)) == {PINS["ray"]}


def test_what_the_dockerfile_copies_is_sent_to_the_builder() -> None:
    sent = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copied = re.findall(r"^COPY --chown=ray:users (.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert sent == " ".join(copied).split()
    assert all((ROOT / name).exists() for name in sent)
