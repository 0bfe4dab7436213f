"""Pipelines on disk or the hub: which class a folder holds, which of its files are read, and whether they are whole."""

import inspect
import json
import logging
import warnings
from collections.abc import Mapping, Set
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.families.part_weights import load_part, variants_of
from rlhf.errors import UserError
from rlhf.storage.url_path import UrlPath, local_copy

INDEX = "model_index.json"
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


class Part(StrEnum):
    """What of a pipeline is loaded; the rest takes no memory."""

    NETWORK = "network"
    """The network that predicts."""
    VAE = "vae"
    TEXT = "text_encoder"
    """All text encoders."""
    SAFETY_CHECKER = "safety_checker"


PAINTING = frozenset((Part.NETWORK, Part.VAE))
"""What a process needs that paints from embeddings of texts."""


def _part_of(name: str) -> Part:
    """The part that a component of a pipeline belongs to, by its name in the index."""
    return next((part for part in Part if name.startswith(part)), Part.NETWORK)


def read_index(place: Path, classes: Mapping[str, tuple[str, ...]], parts: tuple[str, ...]) -> dict[str, Any]:
    """The index of the pipeline at a folder, URL or hub name, whose class and parts are known.

    `classes` gives the supported classes of the pipeline (`_class_name`) and of some parts; `parts` the names of all
    parts that it may have. Raises UserError with the class found and the classes supported, also for a single file,
    or if there is no index.
    """
    index = _read_own_index(place, classes["_class_name"])
    for part, supported in classes.items():
        _check_class(place, part, index, supported)
    for part, entry in index.items():
        if part not in parts and isinstance(entry, list) and None not in entry:
            raise UserError(f"{place}: its part {part} ({entry[-1]}) would not be used; check model.path")
    return index


def read_class(place: Path, supported: tuple[str, ...]) -> str:
    """The class that a pipeline (folder, URL or hub name) says it is; raises UserError if it is not `supported`."""
    return str(_read_own_index(place, supported)["_class_name"])


def _read_own_index(place: Path, supported: tuple[str, ...]) -> dict[str, Any]:
    if place.suffix.lower() in SINGLE_FILES and place.is_file():
        _refuse_single_file(place, supported)
    index = read_part_config(place, INDEX)
    _check_class(place, "_class_name", index, supported)
    return index


def _check_class(place: Path, part: str, index: Mapping[str, Any], supported: tuple[str, ...]) -> None:
    found = index.get(part)
    kind = found[-1] if isinstance(found, list) and found else found
    if kind not in supported:
        what = "a pipeline" if part == "_class_name" else f"its {part}"
        raise UserError(
            f"{place}: {what} of class {kind}; supported {'are' if len(supported) > 1 else 'is'} "
            f"{', '.join(supported)}; check model.path"
        )


def read_part_config(place: Path, *parts: str) -> dict[str, Any]:
    """A JSON file of the pipeline at a folder, URL or hub name; raises UserError if it is missing or damaged."""
    try:
        if isinstance(place, UrlPath) or place.is_dir():
            text = place.joinpath(*parts).read_text()
        else:
            from huggingface_hub import hf_hub_download

            text = Path(hf_hub_download(str(place), "/".join(parts))).read_text()
        config = json.loads(text)
        if not isinstance(config, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{place}: no readable {'/'.join(parts)}, so neither a pipeline folder nor a hub name ({reason}); "
            "check model.path"
        ) from error
    return config


def check_channels(place: Path, expected: Mapping[int, str], network: str = "transformer") -> str:
    """What the network of a pipeline reads, by its number of input channels; raises UserError for any other."""
    found = int(read_part_config(place, network, "config.json").get("in_channels", 0))
    if found not in expected:
        known = ", ".join(f"{channels} ({what})" for channels, what in expected.items())
        raise UserError(f"{place}: its {network} reads {found} channels; supported are {known}; check model.path")
    return expected[found]


def _refuse_single_file(file: Path, supported: tuple[str, ...]) -> None:
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    kind = "no sign of an inpainting model"
    if file.suffix.lower() == ".safetensors":
        try:
            with safe_open(file, "pt") as tensors:
                shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: cannot be read ({error}); check model.path") from error
        found = infer_diffusers_model_type({n: torch.empty(shape, device="meta") for n, shape in shapes.items()})
        kind = kind if found == "v1" else found  # What diffusers answers if it finds no sign of another.
    raise UserError(
        f"{file}: a single file ({kind}); supported are folders and hub names of {', '.join(supported)}; "
        f"make one with {supported[0]}.from_single_file(FILE).save_pretrained(FOLDER)"
    )


def fetch(place: Path, variant: str | None) -> Path:
    """The local folder of a pipeline; one named on the hub is downloaded, unless it is in the hub's cache.

    Raises UserError if it cannot be had, or holds no weights of `variant`.
    """
    folder = place
    if not place.is_dir():
        from diffusers import DiffusionPipeline

        try:
            for choice in (variant,) if variant else (None, "fp16"):
                folder = Path(DiffusionPipeline.download(str(place), variant=choice))
                if any(variants_of(part) for part in folder.iterdir()):
                    break
        except (OSError, ValueError) as error:
            raise UserError(
                f"{place}: cannot be downloaded ({str(error).splitlines()[0]}); check model.path"
            ) from error
    found = {name for part in folder.iterdir() for name in variants_of(part)}
    if variant is not None and variant not in found:
        others = ", ".join(sorted(name for name in found if name)) or "none"
        raise UserError(f"{place}: no weights of model.variant `{variant}`; its variants are: {others}")
    return folder


def load_networks(
    folder: Path, index: Mapping[str, Any], names: tuple[str, ...], variant: str | None, parts: Set[Part]
) -> dict[str, Any]:
    """The networks `names` of a pipeline that its index lists, each checked by `load_part`.

    Those that belong to none of `parts` lie on the meta device, where their configuration and shapes can be read; text
    encoders are None.
    """
    networks: dict[str, Any] = {}
    for name in names:
        library, kind = index.get(name) or ("", "")
        if not library:
            continue
        if _part_of(name) is Part.TEXT and Part.TEXT not in parts:
            networks[name] = None
            continue
        is_own = library not in ("diffusers", "transformers")
        cls = getattr(import_module(f"diffusers.pipelines.{library}" if is_own else library), kind)
        if _part_of(name) in parts:
            networks[name] = load_part(cls, folder / name, variant)
        else:
            with torch.device("meta"):
                networks[name] = cls.from_config(read_part_config(folder, name, "config.json"))
    return networks


def load_pipeline(
    kind: str,
    config: ModelConfig,
    place: Path,
    index: Mapping[str, Any],
    names: tuple[str, ...],
    device: torch.device,
    parts: Set[Part],
    **given: Any,
) -> Any:
    """The pipeline of diffusers' class `kind` at a folder, URL or hub name, frozen; `load_networks` loads its `parts`.

    They lie on `device`, but for the network that predicts: it stays in host memory, where its weights are merged and
    rounded before they move. `index` is the pipeline's index, `names` are its networks; `given` are further arguments
    of the class. Without `parts`, no weights are fetched. Raises UserError if it is incomplete or damaged.
    """
    import diffusers

    quieten_diffusers()
    if not parts:
        return _pipeline_of_shapes(getattr(diffusers, kind), place, index, names, given)
    with local_copy(place) as local:
        folder = fetch(local, config.variant)
        networks = load_networks(folder, index, names, config.variant, parts)
        try:
            with warnings.catch_warnings(action="ignore", category=FutureWarning):  # Of schedulers that are not used.
                pipeline = getattr(diffusers, kind).from_pretrained(folder, **networks, **given)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{config.path}: not a complete {kind} ({reason}); check model.path") from error
    pipeline.set_progress_bar_config(disable=True)
    for name, network in pipeline.components.items():
        if isinstance(network, torch.nn.Module):
            network.requires_grad_(False).eval()
            if _part_of(name) in parts - {Part.NETWORK}:
                network.to(device)
            if isinstance(network, diffusers.AutoencoderKL):
                # In the other layout, convolutions on a CPU copy what they read: a third more memory than planned.
                network.to(memory_format=torch.channels_last)
    return pipeline


def quieten_diffusers() -> None:
    """No progress bars for files that open in a moment, and no warning of the option that only we read."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    diffusers_logging.get_logger("diffusers.configuration_utils").addFilter(_is_not_of_solver_order)


def _is_not_of_solver_order(record: logging.LogRecord) -> bool:
    return "{'solver_order'" not in record.getMessage()


def _pipeline_of_shapes(
    cls: Any, place: Path, index: Mapping[str, Any], names: tuple[str, ...], given: Mapping[str, Any]
) -> Any:
    """A pipeline of the class `cls` whose networks lie on the meta device, without text encoders and tokenizers."""
    import diffusers

    signature = inspect.signature(cls).parameters
    parts: dict[str, Any] = {name: None for name, part in signature.items() if part.default in (None, part.empty)}
    parts |= load_networks(place, index, names, None, frozenset())
    scheduler = getattr(diffusers, index["scheduler"][-1])
    parts["scheduler"] = scheduler.from_config(read_part_config(place, "scheduler", "scheduler_config.json"))
    pipeline = cls(**(parts | dict(given)))
    for network in pipeline.components.values():
        if isinstance(network, torch.nn.Module):
            network.requires_grad_(False).eval()
    return pipeline
