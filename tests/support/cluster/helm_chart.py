"""The objects of the Helm chart: as `helm` renders it, and as it did when the chart was last changed.

`python -m tests.support.cluster.helm_chart` writes them anew; it needs Helm 3 or 4.
"""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import rlhf

CHART = Path(rlhf.__file__).parents[1] / "cluster" / "kubernetes"
RENDERED = Path(__file__).parents[2] / "cluster" / "rendered" / "kubernetes.yaml"
"""All that the chart holds, with its default values."""
EVERYTHING = ("cluster.enabled=true", "job.enabled=true", "service.enabled=true", "monitoring.enabled=true")


def fingerprint() -> str:
    """SHA-256 of the chart's files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in CHART.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(CHART)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def run_helm(*values: str) -> subprocess.CompletedProcess[str]:
    """Renders the chart with values such as `queue=gpus`; skips a test where Helm is not installed."""
    if shutil.which("helm") is None:
        pytest.skip("helm is not installed")
    given = [word for value in values for word in ("--set", value)]
    command = ["helm", "template", "prefpaint", str(CHART), *given]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def render(*values: str) -> list[dict]:
    """The objects that Helm renders."""
    done = run_helm(*values)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def read_rendered() -> list[dict]:
    """The objects as they were rendered last."""
    return list(yaml.safe_load_all(RENDERED.read_text()))


def find_kind(objects: list[dict], kind: str) -> dict:
    """The object of a kind; there is one."""
    (found,) = (each for each in objects if each["kind"] == kind)
    return found


def main() -> None:
    """Writes the rendered objects."""
    writer = "python -m tests.support.cluster.helm_chart"
    head = f"# The chart of cluster/kubernetes as `{writer}` rendered it; the chart's SHA-256 is"
    RENDERED.write_text(
        f"{head}\n# {fingerprint()}\n" + yaml.safe_dump_all(render(*EVERYTHING), sort_keys=False, width=120)
    )


if __name__ == "__main__":
    main()
