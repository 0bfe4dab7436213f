"""Cluster files before they cost money."""

from pathlib import Path
from typing import Annotated

import typer

from rlhf.errors import UserError


def check_cluster(
    files: Annotated[list[Path], typer.Argument(help="Files for `ray up`, Kubernetes manifests, run files.")],
    crds: Annotated[
        Path | None, typer.Option("--crds", help="Folder of KubeRay's own definitions (rayclusters.yaml, ...).")
    ] = None,
) -> None:
    """Find mistakes in cluster files: unknown keys, bounds, commands, run files and their keys."""
    from rlhf.commands.cluster_files import file_problems

    problems = [f"{file}: {problem}" for file in files for problem in file_problems(file, Path.cwd(), crds)]
    if problems:
        raise UserError("\n".join(problems))
    print(f"no mistake found in {', '.join(map(str, files))}")
