"""What Kubernetes would say to a manifest: KubeRay's own schemas, and those of pods inside them.

A resource definition's ``openAPIV3Schema`` becomes JSON Schema; Kubernetes' own rule that fields
which nobody knows are refused is added. Rules in CEL (``x-kubernetes-validations``) are not asked.
"""

from __future__ import annotations

import functools
import gzip
from pathlib import Path
from typing import Any, Final

import jsonschema
import yaml

DEFINITIONS: Final = Path(__file__).parent / "kuberay"
VERSION: Final = "v1"
TEXT: Final = {"type": "string"}
NUMBER: Final = {"type": "integer"}
NAMES: Final = {"type": "object", "additionalProperties": TEXT}
OURS: Final = ("default", "format", "nullable", "description")
"""Words of a definition that are not asked of a manifest, or mean something else elsewhere."""


def faults(document: dict[str, Any]) -> list[str]:
    """Return what is wrong with a manifest, each with its place; empty where nothing is."""
    validator = jsonschema.Draft7Validator(schema_of(document["kind"]))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


@functools.cache
def schema_of(kind: str) -> dict[str, Any]:
    """Return the JSON Schema of a kind of resource.

    Raises:
        KeyError: there is none here.
    """
    if kind in ("RayCluster", "RayJob", "RayService"):
        schema = dict(_custom(kind))
        # Kubernetes knows these without the definition's help.
        schema["properties"] = schema["properties"] | {"metadata": METADATA}
        return schema
    return _built_in()[kind]


@functools.cache
def _custom(kind: str) -> dict[str, Any]:
    packed = (DEFINITIONS / f"ray.io_{kind.lower()}s.yaml.gz").read_bytes()
    definition = yaml.load(gzip.decompress(packed), Loader=yaml.CSafeLoader)
    versions = {v["name"]: v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"]}
    schema: dict[str, Any] = _strict(versions[VERSION])
    return schema


def _strict(schema: Any) -> Any:
    """Turn a structural schema of Kubernetes into JSON Schema that refuses unknown fields."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {k: v for k, v in schema.items() if k not in OURS and not k.startswith("x-")}
    made = {key: _strict(value) for key, value in kept.items() if key != "properties"}
    if "properties" in kept:  # whose names are fields: one may be called "format"
        made["properties"] = {name: _strict(one) for name, one in kept["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    if schema.get("nullable"):
        made["type"] = [made["type"], "null"]
    return made


def pod_template() -> dict[str, Any]:
    """Return the schema of a pod's template, as it stands inside a RayCluster."""
    head = _custom("RayCluster")["properties"]["spec"]["properties"]["headGroupSpec"]
    template: dict[str, Any] = dict(head["properties"]["template"])
    template["properties"] = template["properties"] | {"metadata": METADATA}
    return template


def _built_in() -> dict[str, dict[str, Any]]:
    """Return schemas of Kubernetes' own kinds, of what we use of them."""
    policy = _custom("RayCluster")["properties"]["spec"]["properties"]["networkPolicy"]
    ingress = policy["properties"]["head"]["properties"]["ingressRules"]
    selector = ingress["items"]["properties"]["from"]["items"]["properties"]["podSelector"]
    job = _fields(
        ["template"],
        backoffLimit=NUMBER,
        activeDeadlineSeconds=NUMBER,
        ttlSecondsAfterFinished=NUMBER,
        template=pod_template(),
    )
    nightly = _fields(
        ["schedule", "jobTemplate"],
        schedule=TEXT,
        timeZone=TEXT,
        concurrencyPolicy={"enum": ["Allow", "Forbid", "Replace"]},
        startingDeadlineSeconds=NUMBER,
        successfulJobsHistoryLimit=NUMBER,
        failedJobsHistoryLimit=NUMBER,
        suspend={"type": "boolean"},
        jobTemplate=_fields(["spec"], metadata=METADATA, spec=job),
    )
    policies = _fields(
        ["podSelector", "policyTypes"],
        podSelector=selector,
        policyTypes={"type": "array", "items": {"enum": ["Ingress", "Egress"]}},
        ingress=ingress,
    )
    return {
        "Namespace": _resource("v1"),
        "ServiceAccount": _resource("v1"),
        "NetworkPolicy": _resource("networking.k8s.io/v1", policies),
        "CronJob": _resource("batch/v1", nightly),
    }


def _resource(version: str, spec: dict[str, Any] | None = None) -> dict[str, Any]:
    body = {"spec": spec} if spec else {}
    return _fields(
        ["apiVersion", "kind", "metadata", *body],
        apiVersion={"const": version},
        kind=TEXT,
        metadata=METADATA,
        **body,
    )


def _fields(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


METADATA: Final = _fields([], name=TEXT, namespace=TEXT, labels=NAMES, annotations=NAMES)
