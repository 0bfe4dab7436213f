"""Serves policies and makes API keys: `rlhf serve` and `rlhf api-key`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Run folders, policy folders, pipeline folders or hub names, as PLACE or NAME=PLACE."),
    ] = None,
    catalogue: Annotated[
        str | None, typer.Option(help="File of names that `rlhf promote` writes; reread often.")
    ] = None,
    reward: Annotated[
        str | None, typer.Option(help="Reward folder, run or YAML file; default: the first run's.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to bind; others than this machine's need keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to bind.")] = 8000,
    api_keys: Annotated[Path | None, typer.Option(help="File of hashed keys, made by `rlhf api-key`.")] = None,
    store: Annotated[str | None, typer.Option(help="Folder or URL for answers as URLs (response_format=url).")] = None,
    public_url: Annotated[str | None, typer.Option(help="Address at the head of these URLs.")] = None,
    replicas: Annotated[int, typer.Option(help="Copies of each base model.")] = 1,
    max_replicas: Annotated[int | None, typer.Option(help="Start more copies up to this number under load.")] = None,
    num_cpus: Annotated[float | None, typer.Option(help="CPUs and threads of a copy.")] = None,
    num_gpus: Annotated[float | None, typer.Option(help="GPUs of a copy; default: 1 where there is one.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    attention: Annotated[str, typer.Option(help="auto, sdpa or xformers.")] = "auto",
    compile: Annotated[bool, typer.Option("--compile", help="Compile the network.")] = False,
    warmup: Annotated[bool, typer.Option("--warmup", help="Paint batches of all sizes before being ready.")] = False,
    batching: Annotated[str, typer.Option(help="continuous or whole.")] = "continuous",
    max_batch_images: Annotated[int, typer.Option(help="Images per forward pass.")] = 8,
    max_policies: Annotated[int, typer.Option(help="Policies that a copy keeps loaded.")] = 8,
    max_waiting: Annotated[int, typer.Option(help="Requests in work, beyond which more get 429.")] = 64,
    request_timeout_s: Annotated[float, typer.Option(help="Seconds for a request, once it has arrived.")] = 120.0,
    upload_timeout_s: Annotated[float, typer.Option(help="Seconds for a request to arrive.")] = 30.0,
) -> None:
    """Serve models over HTTP with Ray Serve: a page at /, and POST /v1/images/edits."""
    given = dict(locals())
    given |= {"models": models or (), "reward": own_reward(models or ()) if reward is None else reward}
    _serve(**given)


def _serve(host: str, port: int, **given: Any) -> None:
    from actors.session.ray_session import ray_session
    from serve.application import check_before_start, run, to_settings

    settings = to_settings(given)
    check_before_start(settings, host, port)
    with ray_session():
        run(settings, host, port)


def own_reward(models: Sequence[str]) -> Path | None:
    """Returns the reward folder of the first run that has one."""
    folders = [as_run(place) / "reward" for place in models]
    return next((folder for folder in folders if (folder / "reward.json").is_file()), None)


def as_run(model: str) -> Path:
    """Returns the folder in PLACE or NAME=PLACE."""
    from rlhf.storage.url_path import as_path

    name, equals, place = model.partition("=")
    return as_path(place if equals and "/" not in name else model)


def api_key(
    name: Annotated[str, typer.Argument(help="Owner of the key, as logs show it.")],
    per_minute: Annotated[int, typer.Option(min=1, help="Requests per minute that the key allows.")] = 60,
) -> None:
    """Make a random API key: the key goes to stderr, the line for the service's key file to stdout."""
    from serve.api.api_keys import new_key

    key, line = new_key(name, per_minute)
    typer.echo(f"The key of {name}, shown only now and stored nowhere:\n{key}", err=True)
    typer.echo("Its line for the file of --api-keys (append with >>), or for PREFPAINT_API_KEYS:", err=True)
    print(line)
