"""One set of values gives the cluster, the job and the service, as KubeRay, Kueue and Kubernetes ask for them."""

from pathlib import Path

import pytest
import yaml
from helm_chart import CHART, EVERYTHING, RENDERED, find_kind, fingerprint, read_rendered, render, run_helm
from typer.main import get_command

import rlhf
from rlhf.commands.cli import app
from rlhf.commands.cluster_check.manifests import manifest_problems
from rlhf.commands.cluster_files import file_problems
from rlhf.commands.cluster_shell import Checkout
from rlhf.errors import UserError

CHECKOUT = Checkout(root=Path(rlhf.__file__).parents[1], rlhf=get_command(app))


def cluster_spec(record: dict) -> dict:
    spec = record["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def pod_specs(record: dict) -> list[dict]:
    """The pods of a cluster's head and worker groups."""
    spec = cluster_spec(record)
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def test_the_rendered_objects_are_those_of_the_chart() -> None:
    stale = "the chart has changed: python -m tests.support.cluster.helm_chart renders it anew"
    assert fingerprint() in RENDERED.read_text().splitlines()[1], stale


def test_helm_renders_what_was_rendered() -> None:
    assert render(*EVERYTHING) == read_rendered()


def test_each_part_is_rendered_where_it_is_asked_for_alone() -> None:
    always = {"NetworkPolicy", "PersistentVolumeClaim", "Service", "StatefulSet"}
    for part, kinds in {
        "cluster": {"RayCluster"},
        "job": {"RayJob"},
        "service": {"RayService", "PodDisruptionBudget"},
        "monitoring": {"PodMonitor"},
    }.items():
        assert {each["kind"] for each in render(f"{part}.enabled=true")} == always | kinds
    assert {each["kind"] for each in render()} == always


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("job.enable=true", "additional properties 'enable' not allowed"),
        ("job.enabled=yes", "got string, want boolean"),
        ("groups.learner.gpus=many", "got string, want integer"),
        ("groups.learner.roles={lerner}", "must be one of"),
        ("head.memory=32", "want string"),
        ("job.config=runs/x.yaml", "does not match pattern"),
    ],
)
def test_a_wrong_value_is_refused(value: str, told: str) -> None:
    done = run_helm("job.enabled=true", value)
    assert done.returncode != 0
    assert told in done.stderr


def test_a_queued_job_waits_whole_for_kueue_and_asks_for_all_its_pods() -> None:
    objects = render("job.enabled=true", "cluster.enabled=true", "queue=gpus")
    for kind in ("RayCluster", "RayJob"):
        record = find_kind(objects, kind)
        assert manifest_problems(record, CHECKOUT, None) == []
        assert record["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "gpus"}
        assert record["spec"]["suspend"] is True
        spec = cluster_spec(record)
        assert spec["enableInTreeAutoscaling"] is False
        assert [(g["replicas"], g["minReplicas"], g["maxReplicas"]) for g in spec["workerGroupSpecs"]] == [
            (2, 2, 2),
            (6, 6, 6),
        ]
    assert "suspend" not in find_kind(render("job.enabled=true"), "RayJob")["spec"]


def test_images_passwords_and_priority_reach_every_pod() -> None:
    values = ("image.gpu=r/x:gpu", "image.cpu=r/x:cpu", "image.pullSecrets={reg}", "priorityClassName=high")
    objects = render(*EVERYTHING, *values)
    submitter = find_kind(objects, "RayJob")["spec"]["submitterPodTemplate"]["spec"]
    redis = find_kind(objects, "StatefulSet")["spec"]["template"]["spec"]
    pods = [p for kind in ("RayCluster", "RayJob", "RayService") for p in pod_specs(find_kind(objects, kind))]
    for pod in [*pods, submitter, redis]:
        assert pod["imagePullSecrets"] == [{"name": "reg"}]
        assert pod["priorityClassName"] == "high"
    assert [pod["containers"][0]["image"] for pod in pods[:3]] == ["r/x:cpu", "r/x:gpu", "r/x:gpu"]
    assert "REPLACE" not in str(pods)


def test_values_of_nodes_and_service_arrive_where_ray_reads_them() -> None:
    values = ("groups.learner.gpus=4", "groups.learner.max=4", "service.replicas.max=6", "service.requestSeconds=45")
    objects = render(*EVERYTHING, *values, "service.models={a=/shared/p}", "service.catalogue=/shared/names.json")
    learner = cluster_spec(find_kind(objects, "RayJob"))["workerGroupSpecs"][0]
    assert learner["resources"] == {"learner": "4"}
    assert learner["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "4"
    service = find_kind(objects, "RayService")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    args = config["applications"][0]["args"]
    assert (args["models"], args["catalogue"]) == (["a=/shared/p"], "/shared/names.json")
    assert (args["max_replicas"], cluster_spec(service)["workerGroupSpecs"][0]["maxReplicas"]) == (6, 6)
    assert args["request_timeout_s"] == config["http_options"]["request_timeout_s"] == 45
    assert pod_specs(service)[1]["terminationGracePeriodSeconds"] == 75
    assert manifest_problems(service, CHECKOUT, None) == []


def test_a_server_that_must_go_ends_its_requests_and_one_stays() -> None:
    objects = read_rendered()
    service = find_kind(objects, "RayService")
    assert service["spec"]["upgradeStrategy"] == {"type": "NewCluster"}
    server = pod_specs(service)[1]
    waits_s = server["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert 120 <= waits_s < server["terminationGracePeriodSeconds"]
    assert waits_s < service["spec"]["rayClusterDeletionDelaySeconds"]
    budget = find_kind(objects, "PodDisruptionBudget")["spec"]
    assert budget["minAvailable"] == 1
    label = {"app.kubernetes.io/part-of": "prefpaint", "ray.io/group": "server"}
    assert budget["selector"]["matchLabels"] == label
    for spread in server["topologySpreadConstraints"]:
        assert spread["labelSelector"]["matchLabels"] == label
    assert cluster_spec(service)["workerGroupSpecs"][0]["groupName"] == "server"


def test_training_is_neither_restarted_by_a_change_nor_moved_while_it_runs() -> None:
    cluster = find_kind(read_rendered(), "RayCluster")
    assert cluster["spec"]["upgradeStrategy"] == {"type": "None"}
    for group in cluster["spec"]["workerGroupSpecs"]:
        assert group["template"]["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] == "true"


def test_monitoring_reaches_the_ports_that_it_scrapes_and_an_ingress_the_server() -> None:
    objects = read_rendered()
    policy = next(o for o in objects if o["kind"] == "NetworkPolicy" and o["metadata"]["name"] == "prefpaint-serve")
    allowed = {
        (source["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"], port["port"])
        for rule in policy["spec"]["ingress"]
        for source in rule["from"]
        if "namespaceSelector" in source
        for port in rule["ports"]
    }
    assert allowed == {("ingress-nginx", 8000), ("monitoring", 8000), ("monitoring", 8080)}
    ports = {
        p["name"]: p["containerPort"] for p in pod_specs(find_kind(objects, "RayService"))[1]["containers"][0]["ports"]
    }
    scraped = [e["port"] for o in objects if o["kind"] == "PodMonitor" for e in o["spec"]["podMetricsEndpoints"]]
    assert [ports[name] for name in scraped] == [8080, 8000]


def test_kubernetes_own_kinds_fit_kubernetes_own_definitions() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for record in read_rendered():
        if record["apiVersion"] in ("v1", "apps/v1", "policy/v1", "networking.k8s.io/v1"):
            validate.validate(record, "1.34", strict=True)


def test_the_chart_itself_is_told_from_what_it_renders() -> None:
    with pytest.raises(UserError, match="is a folder; of a Helm chart check what `helm template NAME"):
        file_problems(CHART, CHECKOUT)
