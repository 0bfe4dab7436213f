"""Computes the embeddings of captions once, before those processes start that read them."""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rlhf.config.devices import resolve_device
from rlhf.config.run_config import ModelConfig, RunConfig
from rlhf.data.prompts import PromptTable
from rlhf.diffusion.families.open_family import module_of, open_family
from rlhf.diffusion.families.pipeline_folder import Part, fetch
from rlhf.diffusion.families.text_cache import TextCache
from rlhf.diffusion.policy import resolve_model
from rlhf.progress import progress_bar
from rlhf.storage.checksum import folder_checksum
from rlhf.storage.url_path import as_path, local_copy

READS_TEXT = ("text_encoder", "tokenizer", "processor")
"""First letters of a pipeline's parts on which embeddings depend."""


def cache_folder(config: RunConfig, out: Path) -> Path:
    """Where a stage that writes into `out` keeps the embeddings of its captions; absolute, or at a URL."""
    chosen = config.cluster.text_cache
    return (out / "texts" if chosen is None else as_path(chosen)).resolve()


def needs_cache(prompts: PromptTable) -> bool:
    """Whether a prompt has a caption; the empty text alone is embedded by whoever needs it."""
    return any(prompts.captions.values())


def fill_cache(config: ModelConfig, prompts: PromptTable, folder: Path) -> TextCache:
    """The cache in `folder`, with the embeddings of all captions, of the empty text and of the negative caption.

    The text encoder is opened if one is missing, and held until this function returns. Embeddings by other encoders
    are not used; a line on stderr names them.
    """
    place = as_path(resolve_model(config.path))
    with local_copy(place) as copied:
        local = fetch(copied, config.variant)
        cache = TextCache.open(folder, config.path, _describe_encoder(config, local))
        missing = cache.missing(["", config.negative_caption or "", *prompts.captions.values()])
        if missing:
            if others := cache.describe_others():
                print(f"{folder}: no embeddings by the text encoder of {config.path}{others}", file=sys.stderr)
            family = open_family(config, local, resolve_device(config.device), {Part.TEXT})
            for text in progress_bar(missing, stage="captions"):
                cache.write(text, family.embed(text))
    return cache


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
