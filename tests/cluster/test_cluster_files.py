"""Every cluster file passes the checks that a broken copy of it fails."""

import copy
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
import yaml
from helm_chart import RENDERED, find_kind, read_rendered
from ray.autoscaler._private.util import prepare_config, validate_config, with_envs
from typer.main import get_command

import rlhf
from rlhf.commands.cli import app
from rlhf.commands.cluster_check.manifests import manifest_problems
from rlhf.commands.cluster_files import file_problems, ray_up_problems
from rlhf.commands.cluster_shell import Checkout
from rlhf.errors import UserError

ROOT = Path(rlhf.__file__).parents[1]
CHECKOUT = Checkout(root=ROOT, rlhf=get_command(app))
CLUSTER = ROOT / "cluster"
RAY_UP = ("aws", "gcp", "azure", "on_premises", "ssh")
KINDS = {"ray_cluster": "RayCluster", "ray_job": "RayJob", "ray_service": "RayService"}
SECRETS = {"prefpaint-ray-token", "prefpaint-redis", "prefpaint-keys"}


def ray_up(name: str) -> dict:
    return yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())


def manifest(name: str) -> dict:
    return find_kind(read_rendered(), KINDS[name])


@pytest.fixture(scope="session")
def crds(test_data: Path) -> Path:
    """KubeRay's own definitions."""
    folder = test_data / "kuberay_crds"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist: it holds KubeRay's rayclusters.yaml.gz, rayjobs and rayservices")
    return folder


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_itself_and_our_checks_take_each_file(name: str) -> None:
    validate_config(prepare_config(ray_up(name)))
    assert file_problems(CLUSTER / f"{name}.yaml", CHECKOUT) == []


@pytest.mark.parametrize("name", RAY_UP[:3])
def test_clouds_have_a_cpu_head_gpus_for_64_and_spot_nodes(name: str) -> None:
    nodes = ray_up(name)["available_node_types"]
    gpus = {role: node["max_workers"] * node["resources"].get("GPU", 0) for role, node in nodes.items()}
    assert gpus == {"head": 0, "learner": 16, "sampler": 48}
    assert nodes["sampler"]["resources"]["scorer"] >= 1, "the scorer shares a sampler's GPU"
    spot = {
        role for role, node in nodes.items() if any(w in str(node).lower() for w in ("spot", "'preemptible': true"))
    }
    assert spot == {"sampler"}


@pytest.mark.parametrize("name", ["on_premises", "ssh"])
def test_the_head_of_ones_own_machines_runs_the_autoscaler_that_starts_workers(name: str, tmp_path: Path) -> None:
    """`ray up` itself asks for autoscaler v2, which knows no machines of one's own; the file's command undoes it."""
    (tmp_path / "ray").write_text('#!/bin/sh\necho "$1 v2=$RAY_enable_autoscaler_v2"\n')
    (tmp_path / "ray").chmod(0o755)
    lines = with_envs(ray_up(name)["head_start_ray_commands"], {"RAY_enable_autoscaler_v2": "1"})
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}
    told = [subprocess.check_output(["bash", "-c", line], env=environment, text=True) for line in lines]
    assert told[-1] == "start v2=0\n"


def set_at(*path: str | int) -> Callable[[dict, object], None]:
    def change(record: dict, value: object) -> None:
        node = record
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = value

    return change


AWS_MISTAKES = [
    (set_at("idle_timeout"), 5, "'idle_timeout' was unexpected"),
    (set_at("max_workers"), "nine", "max_workers: 'nine' is not of type 'integer'"),
    (set_at("head_node_type"), "haed", "head_node_type"),
    (set_at("provider", "type"), "asw", "provider.type: 'asw'; known are aws, gcp"),
    (set_at("provider", "regoin"), "us-west-2", "provider.regoin: unknown key"),
    (set_at("docker", "head_imgae"), "x", "'head_imgae' was unexpected"),
    (set_at("available_node_types", "learner", "min_workers"), 3, "min_workers 3 exceeds max_workers 2"),
    (set_at("available_node_types", "sampler", "max_workers"), 50, "max_workers 50 exceeds the cluster's 8"),
    (set_at("available_node_types", "learner", "max_worker"), 3, "'max_worker' was unexpected"),
    (set_at("available_node_types", "learner", "node_config", "InstaceType"), "x", "InstaceType: unknown key"),
    (set_at("available_node_types", "learner", "resources", "GPU"), 0.5, "0.5 is not of type 'integer'"),
    (set_at("worker_start_ray_commands"), ["ray start --adress=$RAY_HEAD_IP:6379"], "No such option.*--adress"),
    (set_at("provider", "type"), [], r"provider.type: \[\]; known are"),
    (set_at("file_mounts"), {"~/key": 3}, "Ray refuses it"),
    (set_at("available_node_types", "learner", "node_config"), "p4de", "'p4de' is not of type 'object'"),
    (set_at("setup_commands"), ["rlhf alin --out x"], "no command 'alin'"),
]


@pytest.mark.parametrize(("change", "value", "message"), AWS_MISTAKES)
def test_a_mistake_in_a_ray_up_file_is_told(change: Callable, value: object, message: str) -> None:
    record = ray_up("aws")
    change(record, value)
    problems = ray_up_problems(record, CHECKOUT)
    assert any(re.search(message, problem) for problem in problems), problems


def test_mistakes_that_only_azure_and_ones_own_machines_have_are_told() -> None:
    azure = ray_up("azure")
    azure["available_node_types"]["sampler"]["node_config"]["azure_arm_parameters"]["vmSzie"] = "x"
    assert "vmSzie: unknown key" in ray_up_problems(azure, CHECKOUT)[0]
    own = ray_up("on_premises")
    del own["provider"]["head_ip"]
    assert ray_up_problems(own, CHECKOUT)


def test_manifests_fit_kuberays_own_definitions(crds: Path) -> None:
    assert file_problems(RENDERED, CHECKOUT, crds) == []


SCHEMA_MISTAKES = [
    ("ray_cluster", set_at("spec", "enableAutoscaling"), True, "'enableAutoscaling' was unexpected"),
    ("ray_cluster", set_at("spec", "headGroupSpec", "template", "spec", "containers", 0, "imgae"), "x", "'imgae'"),
    ("ray_cluster", set_at("spec", "workerGroupSpecs", 0, "maxReplicas"), "two", "'two' is not of type 'integer'"),
    ("ray_cluster", set_at("spec", "authOptions", "mode"), "tokens", "'tokens' is not one of"),
    ("ray_job", set_at("spec", "backofLimit"), 3, "'backofLimit' was unexpected"),
    ("ray_service", set_at("spec", "serveConfig"), "x", "'serveConfig' was unexpected"),
    ("ray_service", set_at("apiVersion"), "ray.io/v1alpha1", "needs ray.io/v1"),
]


@pytest.mark.parametrize(("name", "change", "value", "message"), SCHEMA_MISTAKES)
def test_a_key_that_kuberay_does_not_know_is_told(
    name: str, change: Callable, value: object, message: str, crds: Path
) -> None:
    record = copy.deepcopy(manifest(name))
    change(record, value)
    assert any(message in problem for problem in manifest_problems(record, CHECKOUT, crds))


JOB = "python -m rlhf align --address auto --prompts p --out o"
CONTENT_MISTAKES = [
    ("ray_job", set_at("spec", "entrypoint"), f"{JOB} --set align.udpates=3", "align.udpates: unknown key; did you"),
    ("ray_job", set_at("spec", "entrypoint"), f"{JOB} --set align.updates=many", "align.updates: .*integer"),
    ("ray_job", set_at("spec", "entrypoint"), f"{JOB} --config /app/cluster/runs/absent.yaml", "does not exist"),
    ("ray_job", set_at("spec", "entrypoint"), f"{JOB} --rewards r", "No such option.*--rewards"),
    ("ray_job", set_at("spec", "runtimeEnvYAML"), "env_var: {A: b}", "runtimeEnvYAML.env_var: unknown key"),
    ("ray_job", set_at("metadata", "lables"), {}, "metadata.lables: unknown key"),
    ("ray_cluster", set_at("spec", "workerGroupSpecs", 0, "minReplicas"), 3, "needs minReplicas 3 <= replicas 0"),
    ("ray_cluster", set_at("spec", "workerGroupSpecs", 0, "replicas"), "none", "<= replicas none <="),
    ("ray_cluster", set_at("spec"), 3, "`metadata` and `spec` must hold keys"),
    ("ray_service", set_at("spec", "serveConfigV2"), "applications: [", "serveConfigV2: not YAML"),
]


@pytest.mark.parametrize(("name", "change", "value", "message"), CONTENT_MISTAKES)
def test_a_mistake_inside_a_manifest_is_told(name: str, change: Callable, value: object, message: str) -> None:
    record = copy.deepcopy(manifest(name))
    change(record, value)
    problems = manifest_problems(record, CHECKOUT, None)
    assert any(re.search(message, problem) for problem in problems), problems


SERVE_MISTAKES = [
    ("models:", "modles:", "modles"),
    ("replicas: 2", "replicas: two", "replicas"),
    ("http_options:", "http_option:", "serveConfigV2.http_option: unknown key"),
    ("request_timeout_s:", "request_timeout:", "serveConfigV2.http_options.request_timeout: unknown key"),
    ("route_prefix:", "route_prefx:", "serveConfigV2.applications.0.route_prefx: unknown key"),
    ("serve.application:build", "serve.aplication:build", "needs serve.application:build"),
]


@pytest.mark.parametrize(("right", "wrong", "message"), SERVE_MISTAKES)
def test_a_misspelt_key_of_serve_or_of_our_builder_is_told(right: str, wrong: str, message: str) -> None:
    record = manifest("ray_service")
    text = record["spec"]["serveConfigV2"]
    assert right in text
    record["spec"]["serveConfigV2"] = text.replace(right, wrong, 1)
    problems = manifest_problems(record, CHECKOUT, None)
    assert any(message in problem for problem in problems), problems


def test_a_serve_config_is_checked_like_the_one_in_a_manifest(tmp_path: Path) -> None:
    text = (CLUSTER / "serve.yaml").read_text()
    assert file_problems(CLUSTER / "serve.yaml", CHECKOUT) == []
    for right, wrong in (("models:", "modles:"), ("route_prefix:", "route_prefx:"), ("replicas: 1", "replicas: no")):
        (tmp_path / "serve.yaml").write_text(text.replace(right, wrong, 1))
        (problem,) = file_problems(tmp_path / "serve.yaml", CHECKOUT)
        assert wrong.split(":")[0] in problem


def pods(record: object) -> list[dict]:
    """Every pod's spec at any depth."""
    if isinstance(record, list):
        return [p for item in record for p in pods(item)]
    if not isinstance(record, dict):
        return []
    found = [record] if "containers" in record else []
    return found + [p for value in record.values() for p in pods(value)]


def test_pods_run_unprivileged_on_a_read_only_root_with_bounds() -> None:
    found = pods(read_rendered())
    assert len(found) == 3 + 4 + 2 + 1, "heads and groups of cluster, job and service, the job's submitter, and Redis"
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"] is True
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"].keys() == {"requests", "limits"}
            assert all("ephemeral-storage" in amounts for amounts in container["resources"].values())
            is_server = container["name"] != "ray-job-submitter"
            assert ({"livenessProbe", "readinessProbe"} <= container.keys()) is is_server


@pytest.mark.parametrize("name", ["ray_cluster", "ray_job", "ray_service"])
def test_clusters_ask_for_a_token_survive_their_head_and_scale(name: str) -> None:
    spec = manifest(name)["spec"]
    cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"] == {"mode": "token", "secretName": "prefpaint-ray-token"}
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == "prefpaint-redis:6379"
    assert cluster["enableInTreeAutoscaling"] is True


def test_secrets_are_named_but_never_held() -> None:
    named = set()
    for path in [*CLUSTER.glob("*.yaml"), RENDERED]:
        for record in yaml.safe_load_all(path.read_text()):
            assert not (isinstance(record, dict) and record.get("kind") == "Secret"), path
            named |= set(secret_names(record))
    assert named == SECRETS
    page = (ROOT / "docs" / "cluster.md").read_text()
    assert all(f"create secret generic {name}" in page for name in SECRETS)


def secret_names(record: object) -> list[str]:
    """Names of the Secrets that a manifest refers to."""
    if isinstance(record, list):
        return [n for item in record for n in secret_names(item)]
    if not isinstance(record, dict):
        return []
    own = [record[k]["name"] for k in ("secretKeyRef", "secretRef") if k in record]
    own += [record["secretName"]] if "secretName" in record else []
    return own + [n for value in record.values() for n in secret_names(value)]


def test_what_is_no_yaml_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"broken\.yaml:1: not a readable YAML file"):
        file_problems(tmp_path / "broken.yaml", CHECKOUT)
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "run.yaml").write_text("align: {udpates: 3}\n")
    with pytest.raises(UserError, match=r"align\.udpates: unknown key; did you mean align\.updates\?"):
        file_problems(tmp_path / "run.yaml", CHECKOUT)
    (tmp_path / "empty.yaml").write_text("")
    assert file_problems(tmp_path / "empty.yaml", CHECKOUT) == ["is empty"]
    assert file_problems(CLUSTER / "runtime_env.yaml", CHECKOUT) == []
    (tmp_path / "job.sbatch").write_text("#!/bin/bash\nrlhf align --promts p\n")
    assert any("--promts" in problem for problem in file_problems(tmp_path / "job.sbatch", CHECKOUT))
    assert file_problems(tmp_path / "list.yaml", CHECKOUT) == ["must hold keys such as `cluster_name:` or `kind:`"]
