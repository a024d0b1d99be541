"""The files for AWS and Prometheus, and the README of ``cluster/``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster_files import CLUSTER, MANIFESTS, ROOT, documents, require_understood
from tests.s3 import credentials


def aws() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    return config


def test_ray_would_take_the_file_for_aws() -> None:
    config = prepare_config(aws())
    validate_config(config)
    groups = config["available_node_types"]
    assert config["max_workers"] == sum(group["max_workers"] for group in groups.values())
    assert {name: group["min_workers"] for name, group in groups.items()} == {
        "head": 0,
        "cpu": 0,
        "gpu": 0,
    }


def test_machines_of_aws_are_closed() -> None:
    config = aws()
    [start] = [line for line in config["head_start_ray_commands"] if "--head" in line]
    assert "--dashboard-host=127.0.0.1" in start
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert not config["provider"]["cache_stopped_nodes"]
    for name, group in config["available_node_types"].items():
        machine = group["node_config"]
        assert machine["SecurityGroupIds"]  # or Ray opens ssh to the world
        assert machine["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in machine["BlockDeviceMappings"])
        assert "IamInstanceProfile" in machine
        assert ("InstanceMarketOptions" in machine) == (name != "head")


@pytest.fixture
def ec2(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A simulated EC2, as a server that boto3 and Ray's launcher talk to."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in credentials(f"http://{host}:{port}").items():
        monkeypatch.setenv(name, value)
    yield boto3.client("ec2", region_name="eu-central-1")
    server.stop()


def test_aws_starts_machines_of_every_kind(
    ec2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray's launcher puts a new ssh key
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = ec2.create_security_group(GroupName="bloodcells", Description="Ray", VpcId=vpc)
    config = aws()
    profiles = boto3.client("iam")
    for name in ("bloodcells-head", "bloodcells-worker"):
        profiles.create_instance_profile(InstanceProfileName=name)
    for kind in config["available_node_types"].values():
        kind["node_config"] |= {
            "ImageId": ec2.describe_images()["Images"][0]["ImageId"],
            "SecurityGroupIds": [group["GroupId"]],
        }
    ready = bootstrap_aws(prepare_config(config))
    for name, kind in ready["available_node_types"].items():
        machine = dict(kind["node_config"])
        machine["SubnetId"] = machine.pop("SubnetIds")[0]
        started = ec2.run_instances(MinCount=1, MaxCount=1, **machine)["Instances"][0]
        assert [g["GroupId"] for g in started["SecurityGroups"]] == [group["GroupId"]]
        assert (started.get("InstanceLifecycle") == "spot") == (name != "head")
    rules = ec2.describe_security_groups(GroupIds=[group["GroupId"]])["SecurityGroups"][0]
    assert rules["IpPermissions"] == []  # the launcher opened nothing


def test_prometheus_looks_where_the_pods_are() -> None:
    config = yaml.safe_load((CLUSTER / "prometheus.yaml").read_text())
    [job] = config["scrape_configs"]
    [found] = job["kubernetes_sd_configs"]
    manifests = [document for path in MANIFESTS for document in documents(path)]
    [namespace] = [d["metadata"]["name"] for d in manifests if d["kind"] == "Namespace"]
    assert found["namespaces"]["names"] == [namespace]
    kept = job["relabel_configs"][0]
    assert kept["action"] == "keep"
    assert kept["regex"] == "yes;metrics"  # KubeRay's label of nodes, the name of their port


def readme_lines() -> list[str]:
    text = (CLUSTER / "README.md").read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.M | re.S)
    return [
        *"\n".join(blocks).splitlines(),
        *re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S)),
    ]


@pytest.mark.parametrize("line", [line for line in readme_lines() if "python -m" in line])
def test_commands_of_the_readme_are_understood(line: str) -> None:
    command = line[line.index("python -m") :].strip("'")
    require_understood(command)


def test_files_of_the_readme_are_there() -> None:
    named = [word for line in readme_lines() for word in shlex.split(line.replace("'", ""))]
    paths = [word for word in named if word.startswith("cluster/") and "{" not in word]
    assert len(paths) > 8
    for path in paths:
        assert (ROOT / path).exists(), f"the README names {path}"
    text = (CLUSTER / "README.md").read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (CLUSTER / link).exists(), f"the README links to {link}"
    anchors = {
        re.sub(r"[^a-z -]", "", t.lower()).replace(" ", "-")
        for t in re.findall(r"^## (.+)$", text, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors
