"""Options that several commands share, and how they become a configuration."""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path | None, typer.Option("--config", help="YAML file with what differs from the defaults.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override, as section.key=value; repeatable.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write to.")]
PromptsFolder = Annotated[Path, typer.Option("--prompts", help="Folder of prompts.")]
RewardFolder = Annotated[Path, typer.Option("--reward", help="Reward folder.")]


def resolve_config(file: Path | None, overrides: list[str] | None):  # noqa: ANN202
    """The defaults, what the file says otherwise, and the overrides."""
    from rlhf.config_files import load_config

    return load_config(file, tuple(overrides or ()))


def save_config(config, out: Path) -> None:  # noqa: ANN001
    """Write the resolved configuration beside a stage's results."""
    from rlhf.config_files import dump_config
    from rlhf.storage import atomic_write_text

    atomic_write_text(out / "config.yaml", dump_config(config))
