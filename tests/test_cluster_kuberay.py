"""The manifests for Kubernetes: what the API would refuse, and what would not fit together."""

from __future__ import annotations

import copy
import mmap
import os
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import ray
import yaml
from ray.serve.schema import ServeDeploySchema

from serve.settings import ServeSettings
from serve.starting import environment
from tests.cluster_files import (
    MANIFESTS,
    ROOT,
    all_containers,
    all_pods,
    documents,
    everything,
    pods,
    require_understood,
)
from tests.kube_schema import faults

RESOURCES: Final = [document for path in MANIFESTS for document in documents(path)]
NAMED: Final = {
    (document["kind"], document["metadata"]["name"]): document for document in RESOURCES
}
RAY_CLUSTERS: Final = {
    "raycluster": NAMED["RayCluster", "bloodcells"]["spec"],
    "rayservice": NAMED["RayService", "bloodcells"]["spec"]["rayClusterConfig"],
    "rayjob-score": NAMED["RayJob", "score"]["spec"]["rayClusterSpec"],
    "rayjob-train": NAMED["RayJob", "train"]["spec"]["rayClusterSpec"],
}
RAY: Final = Path(ray.__file__).parent
S3_SECRET: Final = "bloodcells-s3"
SECRETS: Final = {"bloodcells-ray-token", "bloodcells-endpoint", S3_SECRET}
"""Those that cluster/README.md says how to make."""

RAY_PORTS: Final = {"gcs-server": 6379, "dashboard": 8265, "metrics": 8080, "serve": 8000}
AGENT_PORT: Final = 52365
METRICS_OF_HEADS: Final = {44217, 44227}
"""Of the autoscaler and the dashboard (``AUTOSCALER_METRIC_PORT``, ``DASHBOARD_METRIC_PORT``)."""


@pytest.mark.parametrize(
    "document", RESOURCES, ids=lambda d: f"{d['kind']}-{d['metadata']['name']}"
)
def test_kubernetes_would_take_it(document: dict[str, Any]) -> None:
    assert faults(document) == []


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayCluster", ("spec", "rayVersions"), "2.60.0"),
        ("RayCluster", ("spec", "authOptions", "mode"), "tokens"),
        ("RayCluster", ("spec", "workerGroupSpecs", 0, "maxReplicas"), "many"),
        ("RayCluster", ("spec", "headGroupSpec", "template", "spec", "containers", 0, "imag"), ""),
        ("RayCluster", ("spec", "headGroupSpec", "template", "spec", "containers", 0, "env"), [{}]),
        ("RayCluster", ("metadata", "label"), {}),
        ("RayJob", ("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        ("RayService", ("spec", "serveConfig"), ""),
        ("CronJob", ("spec", "jobTemplate", "spec", "template", "spec", "restart"), "Never"),
        ("NetworkPolicy", ("spec", "podSelector", "matchLabel"), {}),
    ],
)
def test_the_schema_finds_what_is_wrong(kind: str, path: tuple[Any, ...], value: object) -> None:
    spoiled = copy.deepcopy(next(d for d in RESOURCES if d["kind"] == kind))
    place: Any = spoiled
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert faults(spoiled)


@pytest.mark.parametrize("name", RAY_CLUSTERS)
def test_versions_are_those_that_were_tested(name: str) -> None:
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned is not None
    assert RAY_CLUSTERS[name]["rayVersion"] == pinned[1]


@pytest.mark.parametrize("name", RAY_CLUSTERS)
def test_a_token_is_asked_of_everybody(name: str) -> None:
    spec = RAY_CLUSTERS[name]
    assert spec["authOptions"] == {"mode": "token", "secretName": "bloodcells-ray-token"}
    head = spec["headGroupSpec"]
    assert head["serviceType"] == "ClusterIP"
    assert not head.get("enableIngress", False)


@pytest.mark.parametrize("name", RAY_CLUSTERS)
def test_groups_follow_the_work(name: str) -> None:
    spec = RAY_CLUSTERS[name]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] < group["maxReplicas"]
        assert group.get("replicas", 0) == group["minReplicas"]
        container = group["template"]["spec"]["containers"][0]
        has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        assert container["image"].endswith("-gpu" if has_gpu else "-cpu")
        assert has_gpu == (group["groupName"] == "gpu")
        if has_gpu:  # no reader where a GPU is paid for
            assert group["rayStartParams"]["num-cpus"] in ("0", "1")
        # Autoscaler v2 starts pods anew itself.
        assert "restartPolicy" not in group["template"]["spec"]


@pytest.mark.parametrize("pod", all_pods())
def test_pods_may_do_little(pod: dict[str, Any]) -> None:
    spec = pod["spec"]
    person = spec["securityContext"]
    assert person["runAsNonRoot"] is True
    assert person["runAsUser"] == 1000  # of the Containerfile
    assert person["seccompProfile"] == {"type": "RuntimeDefault"}
    is_head = spec["containers"][0]["name"] == "ray-head"  # its autoscaler asks the API for pods
    assert is_head or spec["automountServiceAccountToken"] is False
    assert spec.get("serviceAccountName", "bloodcells") == "bloodcells"
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()


def test_autoscalers_may_do_as_little() -> None:
    for spec in RAY_CLUSTERS.values():
        options = spec["autoscalerOptions"]
        assert options["securityContext"]["allowPrivilegeEscalation"] is False
        assert "memory" in options["resources"]["limits"]
    labels = NAMED["Namespace", "bloodcells"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_every_node_of_ray_is_asked_whether_it_is_well() -> None:
    nodes = [c for c in all_containers() if c["name"] in ("ray-head", "ray-worker")]
    assert len(nodes) == 2 + 3 * 3
    for container in nodes:
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports.items() <= RAY_PORTS.items()
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = container[probe]["httpGet"]
            serves = probe == "readinessProbe" and "serve" in ports
            if serves and container["name"] == "ray-worker":
                assert asked == {"path": "/-/healthz", "port": ports["serve"]}
            else:
                assert asked == {"path": "/api/healthz", "port": AGENT_PORT}


@pytest.mark.parametrize("name", ["raycluster", "rayjob-score", "rayjob-train"])
def test_a_job_has_time_to_stop_before_its_head_goes(name: str) -> None:
    spec = RAY_CLUSTERS[name]["headGroupSpec"]["template"]["spec"]
    head = spec["containers"][0]
    settings = {item["name"]: item["value"] for item in head["env"]}
    command = head["lifecycle"]["preStop"]["exec"]["command"]
    waits = int(command[command.index("--seconds") + 1])
    assert int(settings["RAY_JOB_STOP_WAIT_TIME_S"]) < waits < spec["terminationGracePeriodSeconds"]


def test_what_lies_on_disk_goes_with_the_pod() -> None:
    for pod in all_pods():
        for container in pod["spec"]["containers"]:
            if not container["name"].startswith("ray-") or "volumeMounts" not in container:
                continue
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert mounts["ray-logs"] == "/tmp/ray"
            volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
            assert volumes.keys() == mounts.keys()
            assert "sizeLimit" in volumes["ray-logs"]["emptyDir"]


def test_secrets_are_named_and_never_told() -> None:
    assert not [document for document in RESOURCES if document["kind"] == "Secret"]
    named = set(everything(RESOURCES, "secretName"))
    for key in ("secretKeyRef", "secretRef"):
        named |= {reference["name"] for reference in everything(RESOURCES, key)}
    assert named == SECRETS
    readme = (ROOT / "cluster" / "README.md").read_text()
    for secret in SECRETS:
        assert secret in readme
    for reference in everything(RESOURCES, "secretRef"):
        assert reference == {"name": S3_SECRET, "optional": True}
    for reference in everything(RESOURCES, "secretKeyRef"):  # the key that KubeRay looks for, too
        assert reference == {"name": "bloodcells-ray-token", "key": "auth_token"}


def test_every_variable_is_one_that_somebody_reads() -> None:
    named = {item["name"] for variables in everything(RESOURCES, "env") for item in variables}
    rooms = ("_private", "_common", "autoscaler", "dashboard", "serve")
    sources = [path.read_text() for room in rooms for path in (RAY / room).rglob("*.py")]
    read = {name for source in sources for name in re.findall(r"\bRAY_\w+", source)}
    for name in named - read:  # Ray's core puts RAY_ before the names of its own settings
        assert _is_in_core(name.removeprefix("RAY_")), f"nobody reads {name}"


def _is_in_core(name: str) -> bool:
    [core] = RAY.glob("_raylet.so")
    with core.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
        return content.find(name.encode()) >= 0


def test_jobs_are_understood() -> None:
    for name in ("score", "train"):
        require_understood(NAMED["RayJob", name]["spec"]["entrypoint"])
    commands = [command["command"] for command in everything(RESOURCES, "exec")]
    assert commands
    for words in commands:
        require_understood(" ".join(words))


def test_the_nightly_command_is_understood(tmp_path: Path) -> None:
    """A real shell expands it; what Python would be called with is looked at."""
    python = tmp_path / "python"
    python.write_text('#!/usr/bin/env bash\nprintf "%q " python "$@"\n')
    python.chmod(0o755)
    [container] = pods(NAMED["CronJob", "nightly"])[0]["spec"]["containers"]
    called = subprocess.run(
        container["command"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    require_understood(called.stdout)
    assert re.search(r"--id nightly-\d{4}-\d\d-\d\d ", called.stdout)
    assert re.search(r"--out s3://lab/runs/\d{4}-\d\d-\d\d --since latest", called.stdout)
    service = f"{NAMED['RayCluster', 'bloodcells']['metadata']['name']}-head-svc"
    assert f"--address http://{service}:{RAY_PORTS['dashboard']} " in called.stdout
    settings = {item["name"]: item for item in container["env"]}
    assert settings["RAY_AUTH_MODE"]["value"] == "token"
    assert "RAY_AUTH_TOKEN" in settings


def test_the_endpoint_is_the_one_of_serve() -> None:
    service = NAMED["RayService", "bloodcells"]["spec"]
    ours = yaml.safe_load(service["serveConfigV2"])
    theirs = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    ServeDeploySchema.model_validate(ours)
    arguments = ours["applications"][0].pop("args")
    known = theirs["applications"][0].pop("args")
    assert ours == theirs
    assert arguments.keys() == known.keys()
    settings = ServeSettings(**arguments)
    assert settings.root.startswith("s3://")  # the same for every node
    for group in service["rayClusterConfig"]["workerGroupSpecs"]:
        container = group["template"]["spec"]["containers"][0]
        assert {item["name"]: item["value"] for item in container["env"]} == environment()
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
        [item] = volumes["tokens"]["secret"]["items"]
        assert settings.tokens_file == f"{mounts['tokens']}/{item['path']}"
    assert ours["http_options"]["port"] == RAY_PORTS["serve"]


def test_nobody_comes_in_but_by_the_doors() -> None:
    policies = {n: d["spec"] for (kind, n), d in NAMED.items() if kind == "NetworkPolicy"}
    assert policies["closed"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    doors = {
        name: {port["port"] for rule in spec["ingress"] for port in rule.get("ports", ())}
        for name, spec in policies.items()
        if name != "closed"
    }
    assert doors == {
        "ray-nodes": set(),  # every port
        "dashboard": {RAY_PORTS["dashboard"]},
        "metrics": {RAY_PORTS["metrics"], *METRICS_OF_HEADS},
        "endpoint": {RAY_PORTS["serve"]},
    }
    for spec in policies.values():
        for rule in spec.get("ingress", ()):
            assert rule["from"]
            assert not [peer for peer in rule["from"] if "ipBlock" in peer]
    submitters = policies["dashboard"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    for pod in all_pods():
        may_submit = submitters.items() <= pod.get("metadata", {}).get("labels", {}).items()
        is_node = pod["spec"]["containers"][0]["name"] in ("ray-head", "ray-worker")
        assert may_submit != is_node


def test_all_of_it_lives_in_one_namespace() -> None:
    for document in RESOURCES:
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == "bloodcells"
    for kind, name in NAMED:
        limit = 47 if kind in ("RayJob", "RayService") else 53  # KubeRay adds endings to it
        assert re.fullmatch(r"[a-z][a-z0-9-]*", name)
        assert len(name) <= limit
