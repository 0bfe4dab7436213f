"""Finds mistakes in cluster files that Ray and Kubernetes find late, or never."""

import json
from pathlib import Path
from typing import Any

import yaml

from rlhf.commands.cluster_check.manifests import manifest_problems
from rlhf.commands.cluster_check.nodes import ray_up_offer, room_problems
from rlhf.commands.cluster_check.serve_config import read_services
from rlhf.commands.cluster_check.slurm import script_problems
from rlhf.commands.cluster_check.tasks import is_task, task_problems
from rlhf.commands.cluster_check.unknown_keys import find_unknown
from rlhf.commands.cluster_shell import Checkout, Run, command_problems
from rlhf.config.config_files import load_config, not_yaml
from rlhf.errors import UserError

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
    """Returns the problems of a `ray up` file, Kubernetes manifests, a run file, a Serve config, a task, and so on.

    `crds` is a folder of KubeRay's own definitions (rayclusters.yaml and so on, also .gz). Without it only the
    commands and settings inside custom resources are checked. `run` must have room on clusters whose file starts
    no run itself. Raises UserError if the file is not YAML.
    """
    if path.suffix == ".sbatch":
        return script_problems(path, checkout)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; of a Helm chart check what `helm template NAME {path}` prints")
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
        elif is_task(record):
            problems += task_problems(record, checkout)
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
    problems = find_unknown("provider", record["provider"], PROVIDER_KEYS[kind] | {"type"})
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
    problems += find_unknown(f"{where}.node_config", node["node_config"], NODE_KEYS[kind])
    if kind == "azure":
        problems += find_unknown(
            f"{where}.azure_arm_parameters", node["node_config"].get("azure_arm_parameters", {}), _azure_parameters()
        )
    return problems


def _azure_parameters() -> set[str]:
    import ray.autoscaler

    template = Path(ray.autoscaler.__file__).parent / "_private" / "_azure" / "azure-vm-template.json"
    return {*json.loads(template.read_text())["parameters"], "availability_zone"}
