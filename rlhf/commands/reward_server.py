"""Command that serves a reward to other processes and machines: `rlhf reward-server`."""

from typing import Annotated

import typer

from rlhf.commands.options import Config, Overrides, resolve_config


def reward_server(
    reward: Annotated[
        str | None, typer.Argument(help="Reward folder, or the place that --kind needs: weights, module:name, a URL.")
    ] = None,
    kind: Annotated[str, typer.Option(help="Kind of reward, as in the configuration's `rewards:`.")] = "model",
    text: Annotated[str | None, typer.Option(help="Fixed text in place of the captions.")] = None,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to bind; 0 takes a free one.")] = 8100,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Serve a reward over HTTP for `kind: http`: POST /v1/rewards."""
    resolved = resolve_config(config, overrides)
    from rlhf.config.config_files import parse_reward
    from rlhf.config.reward_kinds import KINDS

    key = (KINDS[kind].needs if kind in KINDS else None) or "path"
    given = {"kind": kind, key: reward, "text": text}
    entry = parse_reward({name: value for name, value in given.items() if value is not None})
    from serve.reward_server import run

    run(entry, resolved.model, host, port)
