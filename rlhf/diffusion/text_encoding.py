"""Computes the embeddings of captions once, before those processes start that read them."""

import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rlhf.config.devices import resolve_device
from rlhf.config.run_config import ModelConfig, RunConfig
from rlhf.data.prompts import PromptTable, decode_prompt
from rlhf.diffusion.families.blending import known_picture
from rlhf.diffusion.families.open_family import module_of, open_family, reads_picture, resolve_model
from rlhf.diffusion.families.pipeline_folder import Part, fetch
from rlhf.diffusion.families.text_cache import TextCache, key_of
from rlhf.progress import progress_bar
from rlhf.storage.checksum import folder_checksum
from rlhf.storage.url_path import as_path, local_copy

READS_TEXT = ("text_encoder", "tokenizer", "processor")
"""First letters of a pipeline's parts on which embeddings depend."""


def cache_folder(config: RunConfig, out: Path) -> Path:
    """Returns the folder of the captions' embeddings for a stage that writes into `out`; absolute, or at a URL."""
    chosen = config.cluster.text_cache
    return (out / "texts" if chosen is None else as_path(chosen)).resolve()


def needs_cache(config: ModelConfig, prompts: PromptTable) -> bool:
    """Whether a prompt has a caption, or an embedding of its own; the empty text is embedded by whoever needs it."""
    return any(prompts.captions.values()) or reads_picture(as_path(resolve_model(config.path)))


def fill_cache(config: ModelConfig, prompts: PromptTable, folder: Path) -> TextCache:
    """The cache in `folder`, with the embeddings of all captions, of the empty text and of the negative caption.

    The text encoder is opened if one is missing, and held until this function returns. Embeddings by other encoders
    are not used; a line on stderr names them.
    """
    place = as_path(resolve_model(config.path))
    with local_copy(place) as copied:
        local = fetch(copied, config.variant)
        cache = TextCache.open(folder, config.path, _describe_encoder(config, local))
        there, family = cache.keys(), None
        wanted = _list_texts(config, prompts, with_pictures=reads_picture(local))
        for text, picture in progress_bar(wanted, stage="captions"):
            key = key_of(text, picture)
            if key in there:
                continue
            if family is None:
                if others := cache.describe_others():
                    print(f"{folder}: no embeddings by the text encoder of {config.path}{others}", file=sys.stderr)
                family = open_family(config, local, resolve_device(config.device), {Part.TEXT})
            cache.write(key, family.embed(text, picture))
            there.add(key)
    return cache


def _list_texts(
    config: ModelConfig, prompts: PromptTable, *, with_pictures: bool
) -> Iterator[tuple[str, torch.Tensor | None]]:
    """All texts of a stage, each with its prompt's known picture if the encoder looks at it."""
    negative = (config.negative_caption or "",) if config.guidance == "true" else ()
    for text in dict.fromkeys(("", *negative, *(() if with_pictures else prompts.captions.values()))):
        yield text, None
    for name in prompts if with_pictures else ():
        (row,) = prompts.rows([name])
        prompt = decode_prompt(row, str(prompts.folder))
        picture = known_picture(prompt)
        for text in dict.fromkeys((prompt.caption, *negative)):
            yield text, picture


def _describe_encoder(config: ModelConfig, local: Path) -> dict[str, Any]:
    """Everything in a local pipeline folder that its embeddings depend on, and the versions that have the templates."""
    module = module_of(local)
    parts = [part for part in sorted(local.iterdir()) if part.is_dir() and part.name.startswith(READS_TEXT)]
    return {
        "family": module.__name__.rpartition(".")[2],
        "options": dict(module.TEXT_OPTIONS),
        "variant": config.variant,
        "files": {part.name: folder_checksum(part) for part in parts},
        "diffusers": version("diffusers"),
        "transformers": version("transformers"),
    }
