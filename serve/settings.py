"""The settings of a service: the arguments of `rlhf serve` and of `serve run serve.application:build`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from rlhf.config.run_config import BUILTIN, ModelConfig
from rlhf.diffusion.policy_manifest import locate_policy
from rlhf.errors import UserError
from rlhf.promotion.catalogue import Catalogue, ServedName, ServedPolicy, describe_policy, read_catalogue
from rlhf.storage.url_path import as_path

Place = Annotated[Path, BeforeValidator(as_path)]
"""A file or folder, local or at a URL."""
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


def _split_list(value: object) -> object:
    """Splits the text that `serve run ... models=a,b` gives."""
    return tuple(part for part in value.split(",") if part) if isinstance(value, str) else value


class EngineSettings(BaseModel):
    """The settings of a replica."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    reward: Place | None = None
    """Reward folder, or a run folder or YAML file with `rewards:`; answers then hold reward, lower and upper."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the model; `auto` takes a GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the network's forward pass; `auto` is bf16 on a GPU and fp32 elsewhere."""
    attention: Literal["auto", "sdpa", "xformers"] = "auto"
    """Attention kernels; `auto` is PyTorch's SDPA, `xformers` needs CUDA and the extra `gpu`."""
    compile: bool = False
    """Whether to compile the network's transformer blocks. Starting is slow then, also for each new policy, which gets
    a network of its own and shares no batch with others."""
    warmup: bool = False
    """Whether to paint batches of all sizes before the replica reports that it is ready."""
    max_batch_images: Count = 8
    """Images per forward pass of the network; a request that asks for more is painted alone."""
    batching: Literal["continuous", "whole"] = "continuous"
    """When requests join a batch: between denoising steps (`continuous`), or after all others are done (`whole`)."""
    max_policies: Count = 8
    """Number of policies that a replica keeps loaded; the least recently used is dropped first."""


class ServiceSettings(EngineSettings):
    """The settings of a service, its replicas included."""

    models: Annotated[tuple[str, ...], BeforeValidator(_split_list)] = ()
    """Runs, policy folders, pipeline folders or hub names, each as PLACE or NAME=PLACE. The first is the default
    if the catalogue has no names; without any, the built-in model is served."""
    catalogue: Place | None = None
    """File of names that `rlhf promote` writes; the service rereads it every second."""
    replicas: Count = 1
    """Copies of each base model at the start; constant without `max_replicas`."""
    max_replicas: Count | None = None
    """Most copies of each base model that Ray Serve starts under load."""
    target_ongoing_requests: Annotated[float, Field(gt=0)] = 8.0
    """Requests per copy at which Ray Serve starts one more."""
    num_cpus: Annotated[float, Field(ge=0)] | None = None
    """Ray CPUs and PyTorch threads of a copy; default: 1, or with `rlhf serve` all there are."""
    num_gpus: Annotated[float, Field(ge=0)] | None = None
    """Ray GPUs of a copy; default: 1 if this process sees a GPU and `device` allows it."""
    max_waiting: Count = 64
    """Most requests in work or waiting; more are refused with 429."""
    max_megapixels: Annotated[float, Field(ge=1)] = 256.0
    """Most decoded pixels in work, in millions, each sample counted; a pixel takes 8 bytes, 16 during encoding."""
    ingress_replicas: Count | None = None
    """Copies of the HTTP interface; they share `max_waiting` evenly, and each counts the rest by itself. Default: 1, or
    with `rlhf serve` 2 if the cluster has 4 CPUs or more."""
    request_timeout_s: Seconds = 120.0
    """Longest time from the last byte of a request to its answer, in seconds."""
    upload_timeout_s: Seconds = 30.0
    """Longest time for the body of a request to arrive, in seconds."""
    api_keys: Path | None = None
    """File of hashed keys, made by `rlhf api-key`; without keys the service answers this machine only."""
    store: Place | None = None
    """Folder for `response_format=url`, which is refused without one."""
    public_url: str | None = None
    """Address at the head of URLs of stored images; default: the address that the request came to."""

    @model_validator(mode="after")
    def _grows(self) -> "ServiceSettings":
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas: {self.max_replicas} is less than replicas, {self.replicas}")
        return self

    def engine(self) -> EngineSettings:
        """Returns the settings of a replica."""
        return EngineSettings(**{name: getattr(self, name) for name in EngineSettings.model_fields})


def name_models(settings: ServiceSettings) -> Catalogue:
    """Returns what is served from the start: the given models, and every base model under its own name, if it is free.

    Raises UserError if a model does not exist, or two have the same name.
    """
    given = settings.models or (() if settings.catalogue is not None else BUILTIN[:1])
    named: dict[str, ServedName] = {}
    for text in given:
        name, place = _split(text)
        served = _find(place)
        if named.setdefault(name, served) != served:
            raise UserError(f"serve: two models are called {name}; give them names as NAME={place}")
    promoted = read_catalogue(settings.catalogue).models if settings.catalogue is not None else {}
    for base in dict.fromkeys(served.base for served in (*named.values(), *promoted.values())):
        named.setdefault(base_name(base), ServedName(base=base))
    try:
        return Catalogue(models=named)
    except ValidationError as error:
        raise UserError(f"serve: names take letters, digits, dots, dashes and underscores ({error})") from error


def base_name(base: str) -> str:
    """Returns the name of a base model: the last part of its folder or hub name."""
    return base.rstrip("/").rpartition("/")[2]


def _split(text: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    if equals and "/" not in name:
        return name, place
    return base_name(str(Path(text).resolve()) if Path(text).is_dir() else text), text


def _find(place: str) -> ServedName:
    """Returns the base model at a place, and the policy on it."""
    is_folder = "://" in place or Path(place).exists()
    if not is_folder and (place.startswith((".", "/", "~")) or place.count("/") > 1):
        raise UserError(f"{place}: no such folder; give a run, a policy, a pipeline folder or a hub name")
    config, policy = locate_policy(
        ModelConfig(path=place), as_path(place) if is_folder and place not in BUILTIN else None
    )
    base = str(Path(config.path).resolve()) if Path(config.path).is_dir() else config.path
    current = ServedPolicy() if policy is None else describe_policy(policy.resolve())
    return ServedName(base=base, current=current)
