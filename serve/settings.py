"""How a service is set up: the arguments of `rlhf serve` and of `serve run serve.application:build`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.policy_folders import locate_policy
from rlhf.errors import UserError
from rlhf.promotion.catalogue import Catalogue, ServedName, ServedPolicy, describe_policy, read_catalogue
from rlhf.storage.url_path import as_path

Place = Annotated[Path, BeforeValidator(as_path)]
"""A file or folder, local or at a URL."""
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


def _split_list(value: object) -> object:
    """`serve run ... models=a,b` gives one text."""
    return tuple(part for part in value.split(",") if part) if isinstance(value, str) else value


class EngineSettings(BaseModel):
    """How a replica paints."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    reward: Place | None = None
    """Reward folder, or a run folder or YAML file with `rewards:`; answers then hold reward, lower and upper."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; `auto` takes a GPU where there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the UNet's forward pass; `auto` is bf16 on a GPU and fp32 elsewhere."""
    attention: Literal["auto", "sdpa", "xformers"] = "auto"
    """`auto` is PyTorch's SDPA; `xformers` needs CUDA and the extra `gpu`."""
    compile: bool = False
    """Compile the UNet's transformer blocks: slow to start, and again for each new policy, which then has a UNet of
    its own instead of being mixed with others."""
    warmup: bool = False
    """Paint batches of all sizes before the replica says that it is ready."""
    max_batch_images: Count = 8
    """Images per forward pass of the UNet; a request that asks for more is painted by itself."""
    batching: Literal["continuous", "whole"] = "continuous"
    """`continuous`: requests join between denoising steps; `whole`: only when all others are done."""
    max_policies: Count = 8
    """Policies that a replica keeps loaded; the one not used for longest goes first."""


class ServiceSettings(EngineSettings):
    """All of a service."""

    models: Annotated[tuple[str, ...], BeforeValidator(_split_list)] = ()
    """Runs, policy folders, pipeline folders or hub names, each as PLACE or NAME=PLACE. The first is the default,
    after what is in the catalogue; without any, the built-in model is served."""
    catalogue: Place | None = None
    """File of names that `rlhf promote` writes; it is read again every second."""
    replicas: Count = 1
    """Copies of each base model at the start, and without `max_replicas` for ever."""
    max_replicas: Count | None = None
    """Ray Serve starts more copies up to this number where requests pile up."""
    target_ongoing_requests: Annotated[float, Field(gt=0)] = 8.0
    """Requests per copy at which Ray Serve starts one more."""
    num_cpus: Annotated[float, Field(ge=0)] | None = None
    """Ray CPUs of a copy, and its threads of PyTorch; by default 1, or with `rlhf serve` what there is."""
    num_gpus: Annotated[float, Field(ge=0)] | None = None
    """Ray GPUs of a copy; by default 1 where this process sees a GPU and `device` allows it."""
    max_waiting: Count = 64
    """Requests in work or waiting, beyond which more are refused with 429."""
    max_megapixels: Annotated[float, Field(ge=1)] = 1000.0
    """Decoded pixels in work, each sample counted: 8 bytes each and, while an answer is encoded, as much again."""
    ingress_replicas: Count = 1
    """Copies of the HTTP interface; each has limits and counts of its own."""
    request_timeout_s: Seconds = 120.0
    """How long a request may take, from its last byte to its answer."""
    upload_timeout_s: Seconds = 30.0
    """How long the body of a request may take to arrive."""
    api_keys: Path | None = None
    """File of hashed keys, made by `rlhf api-key`; without keys only this machine is answered."""
    store: Place | None = None
    """Folder for `response_format=url`; without one that is refused."""
    public_url: str | None = None
    """What stands before the names of stored images; by default the address that the request came to."""

    @model_validator(mode="after")
    def _grows(self) -> "ServiceSettings":
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas: {self.max_replicas} is less than replicas, {self.replicas}")
        return self

    def engine(self) -> EngineSettings:
        """What a replica is told."""
        return EngineSettings(**{name: getattr(self, name) for name in EngineSettings.model_fields})


def name_models(settings: ServiceSettings) -> Catalogue:
    """What is served from the start: the models that are given, and every base model by its own name.

    Raises UserError where there is no such model, or two have one name.
    """
    given = settings.models or (() if settings.catalogue is not None else ("tiny",))
    named: dict[str, ServedName] = {}
    for text in given:
        name, place = _split(text)
        served = _find(place)
        if named.setdefault(name, served) != served:
            raise UserError(f"serve: two models are called {name}; give them names as NAME={place}")
    promoted = read_catalogue(settings.catalogue).models if settings.catalogue is not None else {}
    for base in dict.fromkeys(served.base for served in (*named.values(), *promoted.values())):
        alone = ServedName(base=base)
        if named.setdefault(base_name(base), alone).base != base:
            raise UserError(f"serve: two models are called {base_name(base)}; give them names as NAME={base}")
    try:
        return Catalogue(models=named)
    except ValidationError as error:
        raise UserError(f"serve: names take letters, digits, dots, dashes and underscores ({error})") from error


def base_name(base: str) -> str:
    """What a base model is called: the last part of its folder or hub name."""
    return base.rstrip("/").rpartition("/")[2]


def _split(text: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    if equals and "/" not in name:
        return name, place
    return base_name(str(Path(text).resolve()) if Path(text).is_dir() else text), text


def _find(place: str) -> ServedName:
    """A place as a base model, and the policy on it."""
    is_folder = "://" in place or Path(place).exists()
    if not is_folder and (place.startswith((".", "/", "~")) or place.count("/") > 1):
        raise UserError(f"{place}: no such folder; give a run, a policy, a pipeline folder or a hub name")
    config, policy = locate_policy(ModelConfig(path=place), as_path(place) if is_folder and place != "tiny" else None)
    base = str(Path(config.path).resolve()) if Path(config.path).is_dir() else config.path
    current = ServedPolicy() if policy is None else describe_policy(policy.resolve())
    return ServedName(base=base, current=current)
