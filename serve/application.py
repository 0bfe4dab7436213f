"""Builds and runs the application: OpenAI's image-edit interface in front of base models and policies."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterable
from typing import Any

import ray
import torch
from pydantic import ValidationError
from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from rlhf.config.devices import resolve_device
from rlhf.config.evaluate_config import EvaluateConfig
from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.policy import plan_steps
from rlhf.errors import UserError
from rlhf.promotion.catalogue import read_catalogue
from rlhf.rewards.open_reward import reads_captions
from serve.api.api_keys import VARIABLE, load_api_keys
from serve.api.guard import is_loopback
from serve.api.http_api import Api
from serve.engine.engine import Inpainter
from serve.settings import ServiceSettings, base_name, name_models

APPLICATION = "prefpaint"
HEALTH_CHECK_S = 2.0
"""Seconds between Ray Serve's checks that a replica lives."""
ROOM_CPUS = 4
"""Fewest CPUs of a cluster on which the HTTP interface has two copies by default."""


def build(args: dict[str, Any]) -> ray_serve.Application:
    """Returns the application for `serve run serve.application:build models='[...]' ...`; see ServiceSettings."""
    settings = to_settings(args)
    return _bind(settings, 1.0 if settings.num_cpus is None else settings.num_cpus)


def to_settings(args: dict[str, Any]) -> ServiceSettings:
    """Returns arguments as settings. Raises UserError, naming the argument, if one is unknown or not valid."""
    try:
        return ServiceSettings.model_validate(args)
    except ValidationError as error:
        known = ", ".join(ServiceSettings.model_fields)
        problems = "; ".join(": ".join(filter(None, [".".join(map(str, e["loc"])), e["msg"]])) for e in error.errors())
        raise UserError(f"serve: {problems} (known arguments: {known})") from error


def _bind(settings: ServiceSettings, num_cpus: float) -> ray_serve.Application:
    """Returns one deployment for each base model, and the HTTP interface in front."""
    fixed = name_models(settings)
    bases = dict.fromkeys(served.base for served in fixed.models.values())
    gpus = settings.num_gpus
    if gpus is None:
        gpus = 1.0 if settings.device != "cpu" and torch.cuda.is_available() else 0.0
    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": num_cpus, "num_gpus": gpus},
        "graceful_shutdown_timeout_s": settings.request_timeout_s,
        "health_check_period_s": HEALTH_CHECK_S,
    }
    if settings.max_replicas is None:
        options["num_replicas"] = settings.replicas
    else:
        options["autoscaling_config"] = {
            "min_replicas": settings.replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target_ongoing_requests,
        }
    inpainter: Any = Inpainter
    handles = {
        base: inpainter.options(name=name, **options).bind(base, settings.engine())
        for base, name in deployment_names(bases).items()
    }
    ingress: Any = Api
    # Replicas on other nodes do not inherit this process's environment.
    keys = {VARIABLE: os.environ[VARIABLE]} if VARIABLE in os.environ else {}
    return ingress.options(
        num_replicas=settings.ingress_replicas or 1,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": keys}},
        graceful_shutdown_timeout_s=settings.request_timeout_s,
        health_check_period_s=HEALTH_CHECK_S,
    ).bind(handles, fixed, settings)


def deployment_names(bases: Iterable[str]) -> dict[str, str]:
    """Returns the name of each base model's deployment; those of equal last folders are numbered."""
    names: dict[str, str] = {}
    for base in bases:
        alike = sum(base_name(other) == base_name(base) for other in names)
        names[base] = f"Inpainter-{base_name(base)}" + (f"-{alike + 1}" if alike else "")
    return names


def start(settings: ServiceSettings, host: str, port: int) -> str:
    """Deploys on the connected Ray cluster, and returns the address once the models are loaded.

    Raises UserError if a model or the reward model does not load, or Ray Serve does not start.
    """
    spare = max(1.0, ray.cluster_resources().get("CPU", 1.0) - 1.0)
    cpus = max(1.0, spare // (settings.max_replicas or settings.replicas))
    cpus = cpus if settings.num_cpus is None else settings.num_cpus
    copies = settings.ingress_replicas or (2 if ray.cluster_resources().get("CPU", 1.0) >= ROOM_CPUS else 1)
    application = _bind(settings.model_copy(update={"ingress_replicas": copies}), cpus)
    _check_room(settings, cpus)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        ray_serve.start(http_options={"host": host, "port": port})
        ray_serve.run(application, name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        raise UserError(_why_not_deployed(error)) from error
    except RayError as error:
        raise UserError(
            f"serve: Ray Serve's own processes died at the start ({type(error).__name__}); on a busy machine give them "
            "more time with RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S=60 and RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S=60"
        ) from error
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _check_room(settings: ServiceSettings, cpus: float) -> None:
    """Raises UserError if the cluster has no room for the replicas: starting them would wait for ever."""
    bases = {served.base for served in name_models(settings).models.values()}
    found = ray.cluster_resources()
    for flag, each, kind in (("--num-cpus", cpus, "CPU"), ("--num-gpus", settings.num_gpus or 0.0, "GPU")):
        needed = each * settings.replicas * len(bases)
        if needed > found.get(kind, 0.0):
            raise UserError(
                f"{flag} {each:g}: {settings.replicas} replica(s) of {len(bases)} model(s) need {needed:g} {kind}s, "
                f"but there are {found.get(kind, 0.0):g}; ask for fewer"
            )


def _why_not_deployed(error: RuntimeError) -> str:
    """Returns the message of a replica's UserError from the traceback that Ray Serve keeps, or else all of it."""
    deployments = ray_serve.status().applications[APPLICATION].deployments.values()
    lines = [line for deployment in deployments for line in deployment.message.splitlines()]
    marker = f"{UserError.__module__}.{UserError.__name__}: "
    causes = [line.split(marker, 1)[1] for line in lines if marker in line]
    return causes[-1] if causes else "\n".join([f"serve: {error}", *lines])


def run(settings: ServiceSettings, host: str, port: int) -> None:
    """Serves on the connected Ray cluster until Ctrl-C or SIGTERM, and finishes the requests in work.

    Raises UserError if a model or the reward model does not load.
    """
    stopped = threading.Event()
    address = start(settings, host, port)
    for number in (signal.SIGINT, signal.SIGTERM):  # only now: Ray installs its own handlers when it starts
        signal.signal(number, lambda *_: stopped.set())
    print(f"Serving {', '.join(_names(settings))} at {address} until Ctrl-C; open it in a browser, or:")
    print(f"curl -s {address}/v1/images/edits -F image=@photo.png -F mask=@mask.png {_DECODE}", flush=True)
    stopped.wait()
    print("stopping; requests in work are finished first", flush=True)
    _stop(settings)


def _names(settings: ServiceSettings) -> list[str]:
    """Returns the names that are served; the service logs and retries catalogued names that do not load."""
    promoted = read_catalogue(settings.catalogue).models if settings.catalogue is not None else {}
    return list(promoted | name_models(settings).models)


def _stop(settings: ServiceSettings) -> None:
    """Stops the interface before the replicas, since a request in work may still need them."""
    try:
        interface = ray_serve.get_app_handle(APPLICATION)
        interface.health.remote().result(timeout_s=5)  # A new handle learns of the copies with its first call.
        interface.broadcast("drain").results(timeout_s=settings.request_timeout_s + 5)
        ray_serve.delete(APPLICATION)
    except (TimeoutError, RayError, RayServeException) as error:
        print(f"stopped before all was finished ({type(error).__name__})", flush=True)


_DECODE = (
    "| python3 -c 'import base64, json, sys; "
    'sys.stdout.buffer.write(base64.b64decode(json.load(sys.stdin)["data"][0]["b64_json"]))\' > out.png'
)


def check_before_start(settings: ServiceSettings, host: str, port: int) -> None:
    """Checks what can be known before Ray takes seconds to start.

    Raises UserError if the address is taken, a folder is incomplete, or other machines could ask without a key.
    """
    for served in name_models(settings).models.values():
        plan_steps(ModelConfig(path=served.base), EvaluateConfig().num_inference_steps)
    if settings.reward is not None:
        reads_captions(settings.reward)  # Raises UserError if the place names no reward.
    if resolve_device(settings.device).type != "cuda" and settings.attention == "xformers":
        raise UserError("--attention xformers: needs a CUDA GPU; use auto")
    if load_api_keys(settings.api_keys) is None and not is_loopback(host):
        raise UserError(
            f"--host {host}: others could reach it, but there are no API keys; make one with `rlhf api-key`, "
            "and give --api-keys"
        )
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        raise UserError(f"{host}:{port}: cannot be listened on ({error}); choose another --host or --port") from error
