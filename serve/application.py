"""The application: OpenAI's image-edit interface in front of the policy, and how it is started."""

import logging
import os
import socket
import threading
from pathlib import Path
from typing import Annotated, Any, Literal

import ray
import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from ray import serve as ray_serve

from rlhf.config import ModelConfig
from rlhf.errors import UserError
from rlhf.policy import read_manifest, resolve_model
from rlhf.url_path import as_path
from serve.http_api import Api
from serve.inpainter import Inpainter

APPLICATION = "prefpaint"
Place = Annotated[Path, BeforeValidator(as_path)]
"""A folder, local or at a URL."""


class ServeArguments(BaseModel):
    """What `serve run serve.application:build` is told."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: str = "tiny"
    """`tiny`, a pipeline folder, or a hub name."""
    adapter: Place | None = None
    """A policy folder."""
    reward: Place | None = None
    """A reward folder; answers then hold reward, lower and upper."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the policy runs."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the UNet's forward pass."""
    replicas: int = 1
    """Copies of the policy."""
    num_cpus: float = 1.0
    """Ray CPUs of a replica, and the threads that PyTorch takes there."""
    num_gpus: float | None = None
    """Ray GPUs of a replica; by default 1 where this process sees a GPU and `device` allows it."""


def build(args: dict[str, Any]) -> ray_serve.Application:
    """The application for `serve run serve.application:build model=... adapter=...`; see ServeArguments."""
    try:
        arguments = ServeArguments.model_validate(args)
    except ValidationError as error:
        known = ", ".join(ServeArguments.model_fields)
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"serve: {problems} (known arguments: {known})") from error
    model = ModelConfig(path=arguments.model, device=arguments.device, precision=arguments.precision)
    gpus = arguments.num_gpus if arguments.num_gpus is not None else _gpus(model)
    resources = {"num_cpus": arguments.num_cpus, "num_gpus": gpus}
    return _bind(model, arguments.adapter, arguments.reward, arguments.replicas, resources)


def _gpus(model: ModelConfig) -> float:
    return 1.0 if model.device != "cpu" and torch.cuda.is_available() else 0.0


def _bind(
    model: ModelConfig, adapter: Path | None, reward: Path | None, replicas: int, resources: dict[str, float]
) -> ray_serve.Application:
    """Names of folders are made absolute: replicas start elsewhere."""
    if Path(model.path).is_dir():
        model = model.model_copy(update={"path": str(Path(model.path).resolve())})
    folders = [folder.resolve() if folder is not None else None for folder in (adapter, reward)]
    model_id = folders[0].name if folders[0] else Path(model.path).name if Path(model.path).is_dir() else model.path
    deployment: Any = Inpainter
    ingress: Any = Api
    inpainter = deployment.options(num_replicas=replicas, ray_actor_options=resources).bind(model, *folders)
    return ingress.bind(inpainter, model_id)


def start(model: ModelConfig, adapter: Path | None, reward: Path | None, host: str, port: int) -> str:
    """Deploy on the Ray that this process is connected to; returns the address once the policy is loaded.

    Raises UserError where the policy or the reward model does not load.
    """
    cpus = max(1.0, ray.cluster_resources().get("CPU", 1.0) - 1.0)
    application = _bind(model, adapter, reward, 1, {"num_cpus": cpus, "num_gpus": _gpus(model)})
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    ray_serve.start(http_options={"host": host, "port": port})
    try:
        ray_serve.run(application, name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        raise UserError(_why_not_deployed(error)) from error
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _why_not_deployed(error: RuntimeError) -> str:
    """The UserError that a replica raised, out of the traceback that Ray Serve keeps, else all of it."""
    deployments = ray_serve.status().applications[APPLICATION].deployments.values()
    lines = [line for deployment in deployments for line in deployment.message.splitlines()]
    marker = f"{UserError.__module__}.{UserError.__name__}: "
    causes = [line.split(marker, 1)[1] for line in lines if marker in line]
    return causes[-1] if causes else "\n".join([f"serve: {error}", *lines])


def run(model_config: ModelConfig, adapter: Path | None, reward: Path | None, host: str, port: int) -> None:
    """Start Ray on this machine alone, serve until Ctrl-C, and stop what was started.

    Raises UserError where the address is taken or a folder is incomplete.
    """
    _check_before_start(model_config, adapter, reward, host, port)
    starts_ray = not ray.is_initialized()
    if starts_ray:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        address = start(model_config, adapter, reward, host, port)
        print(f"Serving {adapter or model_config.path} at {address} until Ctrl-C. It repaints transparent pixels:")
        print(f"curl -s {address}/v1/images/edits -F image=@photo.png -F mask=@mask.png {_DECODE}", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        print("stopping", flush=True)
    finally:
        if starts_ray:
            ray.shutdown()
        else:
            ray_serve.delete(APPLICATION)


_DECODE = (
    "| python3 -c 'import base64, json, sys; "
    'sys.stdout.buffer.write(base64.b64decode(json.load(sys.stdin)["data"][0]["b64_json"]))\' > out.png'
)


def _check_before_start(model: ModelConfig, adapter: Path | None, reward: Path | None, host: str, port: int) -> None:
    """What can be said at once, before Ray takes its seconds to start."""
    folder = as_path(resolve_model(model.path))
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise UserError(f"{model.path}: no model_index.json, so not a pipeline folder; check the model's path")
    if adapter is not None:
        read_manifest(adapter)
    if reward is not None and not (reward / "reward.json").is_file():
        raise UserError(f"{reward}: no reward.json, so not a complete reward folder; run `rlhf reward` again")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        raise UserError(f"{host}:{port}: cannot be listened on ({error}); choose another --host or --port") from error
