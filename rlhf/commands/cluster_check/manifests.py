"""Finds mistakes in Kubernetes manifests, KubeRay's above all."""

import functools
import gzip
from pathlib import Path
from typing import Any

import yaml

from rlhf.commands.cluster_check.nodes import kuberay_offer, room_problems, service_problems
from rlhf.commands.cluster_check.serve_config import read_services
from rlhf.commands.cluster_check.unknown_keys import find_unknown
from rlhf.commands.cluster_shell import Checkout, Run, command_problems, find_runs
from rlhf.errors import UserError
from serve.settings import ServiceSettings

RAY_KINDS = ("RayCluster", "RayJob", "RayService")
METADATA = {"name", "namespace", "labels", "annotations", "finalizers"}
GRACE_S = 30
"""Kubernetes' own grace period."""


def manifest_problems(
    record: dict[str, Any], checkout: Checkout, crds: Path | None, run: Run | None = None
) -> list[str]:
    """Returns the problems of a Kubernetes object; Ray's kinds are also checked by schema and content."""
    kind = str(record["kind"])
    metadata, spec = record.get("metadata"), record.get("spec", {})
    if not isinstance(metadata, dict) or not isinstance(spec, dict):
        return [f"{kind}: `metadata` and `spec` must hold keys"]
    name = f"{kind} {metadata.get('name')}"
    problems = find_unknown("metadata", metadata, METADATA)
    if kind in RAY_KINDS and crds is not None:
        problems += _schema_problems(record, crds / f"{kind.lower()}s.yaml")
    # Content of the wrong type cannot be checked further.
    if kind in RAY_KINDS and not problems:
        problems = _content_problems(kind, spec, checkout, run)
    return [f"{name}: {p}" for p in problems]


def _content_problems(kind: str, spec: dict[str, Any], checkout: Checkout, run: Run | None) -> list[str]:
    problems: list[str] = []
    services: list[ServiceSettings] = []
    runs = [] if run is None else [run]
    if kind == "RayJob":
        entrypoint = str(spec.get("entrypoint", ""))
        problems += command_problems(entrypoint, checkout)
        problems += _runtime_env_problems(str(spec.get("runtimeEnvYAML", "")))
        runs = [] if problems else find_runs(entrypoint, checkout)
        if spec.get("backoffLimit") and any(r.name == "align" and not r.options["resume"] for r in runs):
            problems.append("entrypoint: a retry (backoffLimit) finds its folder used and stops; add --resume")
    if kind == "RayService":
        problems, services = read_services(str(spec.get("serveConfigV2", "")))
        runs = []
    cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    if not isinstance(cluster, dict) or "workerGroupSpecs" not in cluster:
        return problems
    problems += _group_problems(cluster["workerGroupSpecs"])
    if problems:
        return problems
    try:
        offer = kuberay_offer(cluster)
    except ValueError as error:
        return [f"workerGroupSpecs: Ray cannot read its resources ({error})"]
    problems += [p for s in services for p in [*service_problems(offer, s), *_grace_problems(cluster, s)]]
    return problems + [p for each in runs for p in room_problems(offer, each)]


def _grace_problems(cluster: dict[str, Any], service: ServiceSettings) -> list[str]:
    """Returns the worker groups whose pods are killed before their requests have ended."""
    graces = {
        group["groupName"]: group["template"]["spec"].get("terminationGracePeriodSeconds", GRACE_S)
        for group in cluster["workerGroupSpecs"]
    }
    return [
        f"{name}: terminationGracePeriodSeconds {grace} ends requests of {service.request_timeout_s:g} s "
        "(request_timeout_s); make it longer"
        for name, grace in graces.items()
        if grace <= service.request_timeout_s
    ]


def _group_problems(groups: Any) -> list[str]:
    problems = []
    for group in [g for g in groups if isinstance(g, dict)] if isinstance(groups, list) else []:
        low, now, high = counts = [group.get(key, 0) for key in ("minReplicas", "replicas", "maxReplicas")]
        if not all(isinstance(count, int) for count in counts) or counts != sorted(counts):
            problems.append(
                f"{group.get('groupName')}: needs minReplicas {low} <= replicas {now} <= maxReplicas {high}"
            )
    return problems


def _schema_problems(record: dict[str, Any], crd: Path) -> list[str]:
    """Returns the problems by the definition's schema of version v1, closed to unknown keys."""
    import jsonschema

    version = str(record.get("apiVersion")).removeprefix("ray.io/")
    if version != "v1":
        return [f"apiVersion: {record.get('apiVersion')}; needs ray.io/v1"]
    errors = jsonschema.Draft202012Validator(_closed_schema(crd)).iter_errors(record)
    return [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in errors]


@functools.cache
def _closed_schema(crd: Path) -> dict[str, Any]:
    """Reads the schema of version v1 from a definition; unknown keys are errors in it."""
    packed = crd.with_name(f"{crd.name}.gz")
    try:
        text = gzip.decompress(packed.read_bytes()) if packed.is_file() else crd.read_bytes()
    except OSError as error:
        raise UserError(f"--crds: {crd} is not readable ({error})") from error
    # The C parser: these files hold tens of thousands of lines.
    definition = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    versions = {v["name"]: v for v in definition["spec"]["versions"]}
    schema: dict[str, Any] = versions["v1"]["schema"]["openAPIV3Schema"]
    _close(schema)
    return schema


def _close(schema: Any) -> None:
    """Makes unknown keys errors; Kubernetes drops them silently."""
    if isinstance(schema, list):
        for item in schema:
            _close(item)
    if not isinstance(schema, dict):
        return
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        schema["additionalProperties"] = False
    for value in schema.values():
        _close(value)


def _runtime_env_problems(text: str) -> list[str]:
    from ray.runtime_env import RuntimeEnv

    try:
        record = yaml.safe_load(text) or {}
        problems = find_unknown("runtimeEnvYAML", record, RuntimeEnv.known_fields)
        RuntimeEnv(**record)
    except (yaml.YAMLError, TypeError, ValueError, AttributeError) as error:
        return [f"runtimeEnvYAML: {error}"]
    return problems
