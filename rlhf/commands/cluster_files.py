"""Finds mistakes in cluster files that Ray and Kubernetes find late, or never."""

import functools
import gzip
import json
from pathlib import Path
from typing import Any

import yaml

from rlhf.commands.cluster_nodes import kuberay_offer, ray_up_offer, room_problems, service_problems
from rlhf.commands.cluster_shell import Checkout, Run, command_problems, find_runs
from rlhf.commands.slurm_script import script_problems
from rlhf.config.config_files import load_config, not_yaml
from rlhf.errors import UserError
from serve.settings import ServiceSettings

RAY_KINDS = ("RayCluster", "RayJob", "RayService")
METADATA = {"name", "namespace", "labels", "annotations", "finalizers"}
# Ray passes these keys on unchecked. Azure's machine parameters come from Ray's own template.
PROVIDER_KEYS = {
    "aws": {"region", "availability_zone", "cache_stopped_nodes", "use_internal_ips", "security_group", "key_pair"},
    "gcp": {"region", "availability_zone", "project_id", "cache_stopped_nodes", "use_internal_ips", "gcp_credentials"},
    "azure": {
        *("location", "resource_group", "subscription_id", "availability_zone", "cache_stopped_nodes", "tags"),
        *("subnet_mask", "unique_id", "use_internal_ips", "use_external_head_ip", "msi_name", "msi_resource_group"),
    },
    "local": {"head_ip", "worker_ips", "external_head_ip", "coordinator_address"},
}
NODE_KEYS = {
    "aws": {
        *("InstanceType", "ImageId", "BlockDeviceMappings", "InstanceMarketOptions", "IamInstanceProfile", "KeyName"),
        *("SubnetId", "SubnetIds", "SecurityGroupIds", "NetworkInterfaces", "Placement", "TagSpecifications"),
        *("EbsOptimized", "MetadataOptions", "CapacityReservationSpecification", "LaunchTemplate", "UserData"),
    },
    "gcp": {
        *("machineType", "disks", "scheduling", "guestAccelerators", "metadata", "networkInterfaces", "labels"),
        *("serviceAccounts", "tags", "reservationAffinity", "shieldedInstanceConfig", "minCpuPlatform"),
    },
    "azure": {"azure_arm_parameters", "tags"},
}


def file_problems(path: Path, checkout: Checkout, crds: Path | None = None, run: Run | None = None) -> list[str]:
    """Returns the problems of a `ray up` file, Kubernetes manifests, a run file, a Serve config, and so on.

    `crds` is a folder of KubeRay's own definitions (rayclusters.yaml and so on, also .gz). Without it only the
    commands and settings inside custom resources are checked. `run` must have room on clusters whose file starts
    no run itself. Raises UserError if the file is not YAML.
    """
    if path.suffix == ".sbatch":
        return script_problems(path, checkout)
    try:
        records = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except yaml.MarkedYAMLError as error:
        raise not_yaml(path, error) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not a readable YAML file ({error})") from error
    from ray.runtime_env import RuntimeEnv

    problems: list[str] = [] if records else ["is empty"]
    for record in records:
        if not isinstance(record, dict):
            problems.append("must hold keys such as `cluster_name:` or `kind:`")
        elif "kind" in record:
            problems += manifest_problems(record, checkout, crds, run)
        elif "cluster_name" in record or "provider" in record:
            problems += ray_up_problems(record, checkout, run)
        elif "applications" in record:
            problems += read_services(yaml.safe_dump(record), "Serve config")[0]
        elif record.keys() <= RuntimeEnv.known_fields:
            continue
        else:
            load_config(path)
    return problems


def ray_up_problems(record: dict[str, Any], checkout: Checkout, run: Run | None = None) -> list[str]:
    """Returns the problems of a `ray up` file: Ray's own validation, what it overlooks, and no room for `run`."""
    import click
    from ray.autoscaler._private.util import prepare_config, validate_config

    provider = record.get("provider")
    kind = provider.get("type") if isinstance(provider, dict) else None
    if not isinstance(kind, str) or kind not in PROVIDER_KEYS:
        return [f"provider.type: {kind!r}; known are {', '.join(PROVIDER_KEYS)}"]
    # The schema comes first: prepare_config fails on the same mistakes without explaining them.
    problems = _ray_schema_problems(record)
    if problems:
        return problems
    nodes = record.get("available_node_types") or {}
    try:
        config = prepare_config(record)
        validate_config(config)
    except (ValueError, TypeError, KeyError, click.ClickException) as error:
        return [f"Ray refuses it: {error}"]
    problems = _unknown("provider", record["provider"], PROVIDER_KEYS[kind] | {"type"})
    for name, node in nodes.items():
        problems += _node_problems(name, node, kind, config)
    for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        problems += [p for line in record.get(key, []) for p in command_problems(line, checkout)]
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        problems += [p for line in config[key] for p in command_problems(line, checkout)]
    if kind == "local" and not any("RAY_enable_autoscaler_v2=0" in line for line in config["head_start_ray_commands"]):
        problems.append(
            "head_start_ray_commands: no worker would join, as Ray's autoscaler v2 knows no machines of one's own; "
            "write RAY_enable_autoscaler_v2=0 before `ray start --head`"
        )
    # Commands that cannot be parsed say nothing of the resources.
    return problems or ([] if run is None else room_problems(ray_up_offer(config), run))


def _ray_schema_problems(record: dict[str, Any]) -> list[str]:
    import jsonschema
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    # Ray accepts this key for on-premises machines, though its schema lacks it.
    schema["properties"]["min_workers"] = {"type": "integer", "minimum": 0}
    errors = jsonschema.Draft7Validator(schema).iter_errors(record)
    return [f"{'.'.join(map(str, e.absolute_path)) or 'file'}: {e.message}" for e in errors]


def _node_problems(name: str, node: dict[str, Any], kind: str, config: dict[str, Any]) -> list[str]:
    where = f"available_node_types.{name}"
    low, high = node.get("min_workers", 0), node.get("max_workers", config["max_workers"])
    problems = []
    if low > high:
        problems.append(f"{where}: min_workers {low} exceeds max_workers {high}")
    if name != config["head_node_type"] and high > config["max_workers"]:
        problems.append(f"{where}: max_workers {high} exceeds the cluster's {config['max_workers']}")
    problems += _unknown(f"{where}.node_config", node["node_config"], NODE_KEYS[kind])
    if kind == "azure":
        problems += _unknown(
            f"{where}.azure_arm_parameters", node["node_config"].get("azure_arm_parameters", {}), _azure_parameters()
        )
    return problems


def _azure_parameters() -> set[str]:
    import ray.autoscaler

    template = Path(ray.autoscaler.__file__).parent / "_private" / "_azure" / "azure-vm-template.json"
    return {*json.loads(template.read_text())["parameters"], "availability_zone"}


def _unknown(where: str, record: Any, known: set[str]) -> list[str]:
    if not isinstance(record, dict):
        return [f"{where}: must hold keys"]
    return [
        f"{where}.{key}: unknown key; known are {', '.join(sorted(known))}" for key in sorted(record.keys() - known)
    ]


def manifest_problems(
    record: dict[str, Any], checkout: Checkout, crds: Path | None, run: Run | None = None
) -> list[str]:
    """Returns the problems of a Kubernetes object; Ray's kinds are also checked by schema and content."""
    kind = str(record["kind"])
    metadata, spec = record.get("metadata"), record.get("spec", {})
    if not isinstance(metadata, dict) or not isinstance(spec, dict):
        return [f"{kind}: `metadata` and `spec` must hold keys"]
    name = f"{kind} {metadata.get('name')}"
    problems = _unknown("metadata", metadata, METADATA)
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
    problems += [p for service in services for p in service_problems(offer, service)]
    return problems + [p for each in runs for p in room_problems(offer, each)]


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
        problems = _unknown("runtimeEnvYAML", record, RuntimeEnv.known_fields)
        RuntimeEnv(**record)
    except (yaml.YAMLError, TypeError, ValueError, AttributeError) as error:
        return [f"runtimeEnvYAML: {error}"]
    return problems


def read_services(text: str, where: str = "serveConfigV2") -> tuple[list[str], list[ServiceSettings]]:
    """Returns the problems of a Serve config, and the settings of its applications.

    Problems are unknown keys, which Ray Serve tolerates, and wrong arguments of our builder.
    """
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    services: list[ServiceSettings] = []
    try:
        record = yaml.safe_load(text) or {}
        ServeDeploySchema.model_validate(record)
        problems = _unknown_fields(where, record, ServeDeploySchema)
        for application in record["applications"]:
            if application["import_path"] != "serve.application:build":
                problems.append(f"import_path: {application['import_path']}; needs serve.application:build")
            services.append(ServiceSettings.model_validate(application.get("args", {})))
    except ValidationError as error:
        return [f"{where}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()], []
    except yaml.YAMLError as error:
        return [f"{where}: not YAML ({error})"], []
    return problems, services


def _unknown_fields(where: str, record: Any, model: Any) -> list[str]:
    """Returns keys that a pydantic model does not name, at any depth; dictionaries of free content are not checked."""
    from typing import get_args

    if isinstance(record, list):
        return [p for i, item in enumerate(record) for p in _unknown_fields(f"{where}.{i}", item, model)]
    if not isinstance(record, dict) or not hasattr(model, "model_fields"):
        return []
    problems = _unknown(where, record, set(model.model_fields))
    for key, field in model.model_fields.items():
        inner = [field.annotation, *get_args(field.annotation)]
        inner = [i for i in inner if hasattr(i, "model_fields")]
        if key in record and inner:
            problems += _unknown_fields(f"{where}.{key}", record[key], inner[0])
    return problems
