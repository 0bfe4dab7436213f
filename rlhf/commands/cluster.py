"""Checks cluster files before they cost money, and clusters before a run: `rlhf check-cluster` and `rlhf doctor`."""

from pathlib import Path
from typing import Annotated

import typer

from rlhf.errors import UserError


def check_cluster(
    context: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Files for `ray up`, Kubernetes manifests, run files, runtime environments, sbatch scripts."
        ),
    ],
    crds: Annotated[
        Path | None, typer.Option("--crds", help="Folder of KubeRay's own definitions (rayclusters.yaml, ...).")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="Run file of `rlhf align` that must have room; files of jobs name theirs."),
    ] = None,
) -> None:
    """Find mistakes in cluster files: unknown keys, wrong bounds, commands, run files, and runs that have no room."""
    from rlhf.commands.cluster_files import file_problems
    from rlhf.commands.cluster_shell import Checkout, Run
    from rlhf.config.config_files import load_config

    run = None if config is None else Run(name="align", file=str(config), config=load_config(config), options={})
    checkout = Checkout(root=Path.cwd(), rlhf=context.find_root().command)
    problems = []
    for file in files:
        try:
            problems += [f"{file}: {problem}" for problem in file_problems(file, checkout, crds, run)]
        except UserError as error:  # The other files are checked too.
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    print(f"no mistake found in {', '.join(map(str, files))}")
    if config is None:
        print("whether a cluster has room for a run is checked with --config, and where a file starts one itself")
    if crds is None:
        print("keys of RayCluster, RayJob and RayService are checked with --crds only; other kinds by metadata only")


def doctor(
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; default: this machine alone.")] = None,
    storage: Annotated[str | None, typer.Option(help="Folder or URL that all nodes must share.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="Run file; the cluster must have room for its `cluster:`.")
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(min=1, help="Nodes that the cluster must have; waits for them, 10 minutes at most."),
    ] = None,
) -> None:
    """Check a cluster before a run, node by node; exit code 1 if something is wrong, with a remedy for each fault."""
    from rlhf.config.config_files import load_config
    from rlhf.config.run_config import RunConfig
    from rlhf.storage.url_path import as_path

    resolved = None if config is None else load_config(config)
    if storage is not None:
        storage = str(as_path(storage).resolve())
    if resolved is not None:
        from rlhf.alignment.planning.verdict import check_room

        print(check_room(resolved, None, is_here=address is None))
    from actors.doctor.examination import examine, wait_for_nodes
    from actors.doctor.findings import render
    from actors.placement import cpus_of
    from actors.session.ray_session import ray_session

    with ray_session(address, num_cpus=cpus_of((resolved or RunConfig()).cluster)):
        findings = [] if nodes is None else [wait_for_nodes(nodes)]
        findings += examine(None if resolved is None else resolved.cluster, storage)
    print(render(findings))
    wrong = sum(finding.remedy is not None for finding in findings)
    print(f"{wrong} of {len(findings)} checks found something wrong" if wrong else "all is well")
    if wrong:
        raise typer.Exit(1)
