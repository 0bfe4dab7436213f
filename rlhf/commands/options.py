"""Options shared by several commands, and the configuration made from them."""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer

from rlhf.storage.folder_lock import hold_folder
from rlhf.storage.url_path import as_path

if TYPE_CHECKING:
    from rlhf.config.run_config import RunConfig
    from rlhf.data.prompts import PromptTable
    from rlhf.diffusion.sampler import Sampler

Config = Annotated[Path | None, typer.Option("--config", help="YAML file with changes to the defaults.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override, as section.key=value; repeatable.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write to.")]
PolicyFolder = Annotated[Path | None, typer.Option("--policy", help="Policy folder; default: the base model.")]
Split = Annotated[str, typer.Option("--split", help="Split of the prompts.")]
PromptsFolder = Annotated[Path, typer.Option("--prompts", help="Folder of prompts.")]
RewardFolder = Annotated[
    Path, typer.Option("--reward", help="Reward folder, or a run folder or YAML file with `rewards:`.")
]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join; default: this machine alone.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for resources that are not available yet.")]
SamplersAddress = Annotated[str | None, typer.Option("--address", help="Ray cluster whose samplers paint.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Samplers on Ray, on this machine or at --address; default: cluster.samplers.")
]

PageHost = Annotated[str, typer.Option("--host", help="Address to bind; beyond this machine a token is required.")]
PagePort = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to bind; 0 takes a free one.")]
Database = Annotated[str | None, typer.Option("--database", help="postgresql://... default: OUT/annotations.db.")]


def take_urls(command: Callable[..., object] | None) -> None:
    """Lets every path option of a command take a local path or a URL; Typer alone would make both local paths."""
    for hint in get_type_hints(command, include_extras=True).values():
        if get_origin(hint) is Annotated and Path in (hint.__origin__, *get_args(hint.__origin__)):
            for option in hint.__metadata__:
                option.parser, option.metavar = as_path, "PATH"


def holds_out(command: Callable[..., None]) -> Callable[..., None]:
    """Has a command hold its folder `out` while it runs: two of them would mix their results."""

    @functools.wraps(command)
    def held(**options: Any) -> None:
        with hold_folder(options["out"]):
            command(**options)

    return held


def resolve_config(file: Path | None, overrides: list[str] | None) -> "RunConfig":
    """Returns the defaults, changed by the file and then by the overrides; tells of overrides without effect."""
    from rlhf.config.config_files import find_unused, load_config

    config = load_config(file, tuple(overrides or ()))
    for sentence in find_unused(config, overrides or ()):
        print(f"warning: {sentence}", file=sys.stderr)
    return config


def save_config(config: "RunConfig", out: Path) -> None:
    """Writes the resolved configuration beside a stage's results."""
    from rlhf.config.config_files import dump_config
    from rlhf.storage.atomic_files import atomic_write_text

    atomic_write_text(out / "config.yaml", dump_config(config))


@contextmanager
def open_samplers(
    config: "RunConfig",
    table: "PromptTable",
    policies: Sequence[Path | None],
    out: Path,
    workers: int | None,
    address: str | None,
    wait: bool,
) -> Iterator[Callable[[Path | None], "Sampler"]]:
    """Gives the function that opens the sampler of a policy (None: the base model), in this process or on Ray."""
    from rlhf.diffusion.families.pipeline_folder import PAINTING
    from rlhf.diffusion.policy import load_policy
    from rlhf.diffusion.sampler import InProcessSampler
    from rlhf.diffusion.text_encoding import cache_folder, fill_cache, needs_cache

    if workers is None and address is None:
        texts = fill_cache(config.model, table, cache_folder(config, out)) if needs_cache(config.model, table) else None
        yield lambda policy: InProcessSampler(
            load_policy(config.model, policy, parts=PAINTING, texts=texts), table.rows
        )
        return
    from actors.remote_sampler import remote_samplers

    with remote_samplers(config, table, policies, out, workers=workers, address=address, wait=wait) as open_policy:
        yield open_policy
