"""Pipelines on disk or the hub: which class a folder holds, which of its files are read, and whether they are whole."""

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Set
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rlhf.config.run_config import ModelConfig
from rlhf.errors import UserError
from rlhf.storage.url_path import UrlPath, local_copy

INDEX = "model_index.json"
WEIGHTS = re.compile(r"(?:(?:diffusion_)?pytorch_)?model(?:\.(\w+))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)")
"""Names of files of weights; the group is the variant, such as `fp16`."""
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
OLD_BUFFER = "position_ids"
"""Tensor that older transformers saved with text encoders, and that holds nothing learned."""


class Part(StrEnum):
    """What of a pipeline is loaded; the rest takes no memory."""

    NETWORK = "network"
    """The network that predicts."""
    VAE = "vae"
    TEXT = "text_encoder"
    """All text encoders."""
    SAFETY_CHECKER = "safety_checker"


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
                if any(_variants(part) for part in folder.iterdir()):
                    break
        except (OSError, ValueError) as error:
            raise UserError(
                f"{place}: cannot be downloaded ({str(error).splitlines()[0]}); check model.path"
            ) from error
    found = {name for part in folder.iterdir() for name in _variants(part)}
    if variant is not None and variant not in found:
        others = ", ".join(sorted(name for name in found if name)) or "none"
        raise UserError(f"{place}: no weights of model.variant `{variant}`; its variants are: {others}")
    return folder


def _variants(part: Path) -> dict[str, str]:
    """File of weights by variant, of one part of a pipeline; the variant without a name is the empty text."""
    matches = [(WEIGHTS.fullmatch(file.name), file.name) for file in sorted(part.glob("*"))]
    return {match[1] or "": name for match, name in reversed(matches) if match}


def load_part(kind: Any, part: Path, variant: str | None) -> Any:
    """A part of a pipeline in float32, from its own folder; a part without `variant` has plain weights.

    Raises UserError with the file's name if weights are missing, too many, damaged or not finite.
    """
    chosen = _choose_variant(part, variant)
    file = part / _variants(part).get(chosen, "")
    try:
        loaded, report = kind.from_pretrained(
            part, variant=chosen or None, torch_dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{file}: no whole weights of a {kind.__name__} ({reason}); fetch the model again") from error
    extra = {name for name in report["unexpected_keys"] if not name.endswith(OLD_BUFFER)}
    for problem, names in (("lacks", report["missing_keys"]), ("holds unknown", extra)):
        if names:
            raise UserError(f"{file}: {problem} {show_names(names)} of a {kind.__name__}; fetch the model again")
    check_finite(dict(loaded.named_parameters()), str(file))
    return loaded


def _choose_variant(part: Path, variant: str | None) -> str:
    found = _variants(part)
    if variant is None and "" not in found and len(found) > 1:
        raise UserError(f"{part}: weights of several variants; set model.variant to one of {', '.join(sorted(found))}")
    return variant if variant in found else "" if "" in found or not found else next(iter(found))


class TensorFiles(Mapping[str, torch.Tensor]):
    """The weights of a part of a pipeline in float32, each read from its file when it is asked for.

    Raises UserError, with the file's name, if there are no safetensors files, or a tensor is not finite.
    """

    def __init__(self, part: Path, variant: str | None) -> None:
        chosen, self._part = _choose_variant(part, variant), part
        matches = [(file, WEIGHTS.fullmatch(file.name)) for file in sorted(part.glob("*.safetensors"))]
        files = [file for file, match in matches if match is not None and (match[1] or "") == chosen]
        if not files:
            raise UserError(
                f"{part}: no safetensors files, and align.zero_stage 3 reads no others layer by layer; "
                "save the pipeline again with save_pretrained, or use another stage"
            )
        self._files: dict[str, Any] = {}
        for file in files:
            try:
                opened = safe_open(file, "pt")
            except (OSError, SafetensorError) as error:
                raise UserError(f"{file}: cannot be read ({error}); fetch the model again") from error
            self._files |= dict.fromkeys(opened.keys(), opened)

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._files[name].get_tensor(name).float()
        check_finite({name: tensor}, str(self._part))
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def show_names(names: Any) -> str:
    """Some names of tensors and the number of the others."""
    shown = sorted(names)
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


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
                networks[name] = cls.from_config(read_part_config(folder / name, "config.json"))
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
    of the class. Raises UserError if it is incomplete or damaged.
    """
    import diffusers
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
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
    return pipeline


def check_finite(tensors: Mapping[str, torch.Tensor], place: str) -> None:
    """Raises UserError, naming `place`, if a tensor of weights holds a number that is not finite."""
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise UserError(f"{place}: not finite: {show_names(bad)}; these weights are damaged, use others")
