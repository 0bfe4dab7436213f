"""Files of weights of one part of a pipeline: which are read, and whether they are whole."""

import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rlhf.errors import UserError

WEIGHTS = re.compile(r"(?:(?:diffusion_)?pytorch_)?model(?:\.(\w+))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)")
"""Names of files of weights; the group is the variant, such as `fp16`."""
QUANTISED = re.compile(r"I8|U8|F8_.*|F4|F6_.*|torch\.(u?int8|float8_.*)")
"""Types of numbers that mean nothing without the scales of the tool that wrote them, in the words of safetensors or
PyTorch."""
LOADING_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    SafetensorError,
    pickle.UnpicklingError,
)
"""What libraries raise for files of weights that are missing or damaged."""
OLD_BUFFER = "position_ids"
"""Tensor that older transformers saved with text encoders, and that holds nothing learned."""


def variants_of(part: Path) -> dict[str, str]:
    """File of weights by variant, of one part of a pipeline; the variant without a name is the empty text."""
    matches = [(WEIGHTS.fullmatch(file.name), file.name) for file in sorted(part.glob("*"))]
    return {match[1] or "": name for match, name in reversed(matches) if match}


def load_part(kind: Any, part: Path, variant: str | None) -> Any:
    """A part of a pipeline in float32, from its own folder; a part without `variant` has plain weights.

    Raises UserError with the file's name if weights are missing, too many, damaged or not finite.
    """
    chosen = _choose_variant(part, variant)
    file = part / variants_of(part).get(chosen, "")
    try:
        _refuse_quantised(_files_of(part, chosen))
        loaded, report = kind.from_pretrained(
            part, variant=chosen or None, torch_dtype=torch.float32, output_loading_info=True
        )
    except LOADING_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{file}: no whole weights of a {kind.__name__} ({reason}); fetch the model again") from error
    extra = {name for name in report["unexpected_keys"] if not name.endswith(OLD_BUFFER)}
    for problem, names in (("lacks", report["missing_keys"]), ("holds unknown", extra)):
        if names:
            raise UserError(f"{file}: {problem} {show_names(names)} of a {kind.__name__}; fetch the model again")
    check_finite(dict(loaded.named_parameters()), str(file))
    return loaded


def _files_of(part: Path, variant: str) -> list[Path]:
    """Files of weights of a variant, all shards of it; safetensors alone where a part has both kinds."""
    matches = [(file, WEIGHTS.fullmatch(file.name)) for file in sorted(part.glob("*"))]
    files = [file for file, match in matches if match is not None and (match[1] or "") == variant]
    return [file for file in files if file.suffix == ".safetensors"] or files


def _refuse_quantised(files: list[Path]) -> None:
    """Raises UserError, naming file and tensor, if weights are quantised: loading would cast them without scales."""
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                kinds = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
        else:
            kinds = {name: str(tensor.dtype) for name, tensor in torch.load(file, map_location="meta").items()}
        found = next((name for name, kind in kinds.items() if QUANTISED.fullmatch(kind)), None)
        if found is not None:
            raise UserError(
                f"{file}: {found} is quantised ({kinds[found]}), which is not read; "
                "use the weights in float16, bfloat16 or float32"
            )


def _choose_variant(part: Path, variant: str | None) -> str:
    found = variants_of(part)
    if variant is None and "" not in found and len(found) > 1:
        raise UserError(f"{part}: weights of several variants; set model.variant to one of {', '.join(sorted(found))}")
    return variant if variant in found else "" if "" in found or not found else next(iter(found))


class TensorFiles(Mapping[str, torch.Tensor]):
    """The weights of a part of a pipeline in float32, each read from its file when it is asked for.

    Raises UserError, with the file's name, if there are no safetensors files, or a tensor is not finite.
    """

    def __init__(self, part: Path, variant: str | None) -> None:
        chosen, self._part = _choose_variant(part, variant), part
        files = [file for file in _files_of(part, chosen) if file.suffix == ".safetensors"]
        if not files:
            raise UserError(
                f"{part}: no safetensors files, and align.zero_stage 3 reads no others layer by layer; "
                "save the pipeline again with save_pretrained, or use another stage"
            )
        self._files: dict[str, Any] = {}
        for file in files:
            try:
                _refuse_quantised([file])
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


def check_finite(tensors: Mapping[str, torch.Tensor], place: str) -> None:
    """Raises UserError, naming `place`, if a tensor of weights holds a number that is not finite."""
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise UserError(f"{place}: not finite: {show_names(bad)}; these weights are damaged, use others")
