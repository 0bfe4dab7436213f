"""What a running service answers with: policies behind names, and who may ask."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf.commands.options import Config, Overrides, PromptsFolder, RewardFolder, resolve_config

if TYPE_CHECKING:
    from rlhf.promotion.catalogue import ServedName
    from rlhf.promotion.gate_verdict import Check
    from rlhf.promotion.promotion import Outcome, Request

CatalogueFile = Annotated[Path, typer.Option("--catalogue", help="JSON file that the service reads, local or a URL.")]
SHOWN = {
    "win_rate": "WinRate (gold judge, simulated)",
    "win_rate_reward": "WinRate (the reward, shown only)",
    "sharpness_ratio": "sharpness against the incumbent",
    "diversity_ratio": "diversity against the incumbent",
    "known_pixels_differ": "known pixels that differ",
}


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Run folders, policy folders, pipeline folders or hub names, as PLACE or NAME=PLACE."),
    ] = None,
    catalogue: Annotated[
        str | None, typer.Option(help="File of names that `rlhf promote` writes; changes are taken up while serving.")
    ] = None,
    reward: Annotated[str | None, typer.Option(help="Reward folder, for bounds; default: the first run's own.")] = None,
    host: Annotated[str, typer.Option(help="Address to bind; others than this machine's own need keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to bind.")] = 8000,
    api_keys: Annotated[Path | None, typer.Option(help="File of hashed keys, made by `rlhf api-key`.")] = None,
    store: Annotated[str | None, typer.Option(help="Folder or URL for answers as URLs (response_format=url).")] = None,
    public_url: Annotated[str | None, typer.Option(help="Address that stands in such URLs.")] = None,
    replicas: Annotated[int, typer.Option(help="Copies of each base model.")] = 1,
    max_replicas: Annotated[int | None, typer.Option(help="Start more copies up to this number under load.")] = None,
    num_cpus: Annotated[float | None, typer.Option(help="CPUs and threads of a copy.")] = None,
    num_gpus: Annotated[float | None, typer.Option(help="GPUs of a copy; default: 1 where there is one.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    attention: Annotated[str, typer.Option(help="auto, sdpa or xformers.")] = "auto",
    compile: Annotated[bool, typer.Option("--compile", help="Compile the UNet.")] = False,
    warmup: Annotated[bool, typer.Option("--warmup", help="Paint batches of all sizes before being ready.")] = False,
    batching: Annotated[str, typer.Option(help="continuous or whole.")] = "continuous",
    max_batch_images: Annotated[int, typer.Option(help="Images per forward pass.")] = 8,
    max_policies: Annotated[int, typer.Option(help="Policies that a copy keeps loaded.")] = 8,
    max_waiting: Annotated[int, typer.Option(help="Requests in work, beyond which more get 429.")] = 64,
    request_timeout_s: Annotated[float, typer.Option(help="Seconds for a request, once it has arrived.")] = 120.0,
    upload_timeout_s: Annotated[float, typer.Option(help="Seconds for a request to arrive.")] = 30.0,
) -> None:
    """Serve models over HTTP with Ray Serve: a page at /, and POST /v1/images/edits."""
    given = dict(locals())
    from serve.application import run, to_settings

    own = [as_run(place) / "reward" for place in models or ()]
    if reward is None:
        given["reward"] = next((folder for folder in own if (folder / "reward.json").is_file()), None)
    run(
        to_settings({**{k: v for k, v in given.items() if k not in ("host", "port")}, "models": models or ()}),
        host,
        port,
    )


def as_run(model: str) -> Path:
    """The folder in PLACE or NAME=PLACE."""
    from rlhf.storage.url_path import as_path

    name, equals, place = model.partition("=")
    return as_path(place if equals and "/" not in name else model)


def promote(
    policy: Annotated[Path, typer.Argument(help="Policy folder, or run folder for its last policy.")],
    name: Annotated[str, typer.Option("--name", help="What requests call it, as `model`.")],
    catalogue: CatalogueFile,
    prompts: PromptsFolder,
    reward: RewardFolder,
    split: Annotated[str, typer.Option(help="Which prompts; held-out ones.")] = "test",
    min_win_rate: Annotated[
        float | None, typer.Option(help="What the WinRate's lower end must exceed; default: gate.min_win_rate, 0.5.")
    ] = None,
    canary: Annotated[
        float | None, typer.Option(help="Try it on this share of the requests; default: on all, for good.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Promote whatever the gate says; the verdict tells.")] = False,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Put a policy behind a name if it beats what answers now on held-out prompts; exit code 1 if refused."""
    limit = [] if min_win_rate is None else [f"gate.min_win_rate={min_win_rate}"]
    resolved = resolve_config(config, [*(overrides or ()), *limit])
    from rlhf.promotion.promotion import promotion

    request = promotion.Request(
        policy=policy,
        name=name,
        catalogue=catalogue,
        prompts=prompts,
        reward=reward,
        split=split,
        canary=canary,
        is_forced=force,
    )
    outcome = promotion.promote(request, resolved)
    _print_verdict(outcome)
    if outcome.verdict is not None and outcome.is_refused:
        failed = "; ".join(SHOWN[check.figure] for check in outcome.verdict.checks if not check.passed)
        print(f"refused ({failed}); {name} is as it was. --force promotes nevertheless", flush=True)
        raise typer.Exit(1)
    _print_change(name, outcome.before, outcome.after)
    if outcome.after is not outcome.before:
        given = {"--config": config, "--min-win-rate": min_win_rate}
        settings = [str(word) for pair in given.items() if pair[1] is not None for word in pair]
        _print_next(request, outcome, settings + [word for text in overrides or () for word in ("--set", text)])


def _print_next(request: "Request", outcome: "Outcome", settings: list[str]) -> None:
    """The commands that go on from here, and back."""
    where = ["--catalogue", str(request.catalogue)]
    if outcome.after.canary is not None and request.canary is not None:
        held_out = ["--prompts", str(request.prompts), "--reward", str(request.reward), "--split", request.split]
        force = ["--force"] if outcome.verdict is not None and not outcome.verdict.passed else []
        command = ["rlhf", "promote", str(outcome.after.canary.folder), "--name", request.name]
        print("make it current:", shlex.join([*command, *where, *held_out, *settings, *force]))
    print("go back:", shlex.join(["rlhf", "rollback", request.name, *where]))


def _print_verdict(outcome: "Outcome") -> None:
    verdict = outcome.verdict
    if verdict is None:
        return
    against = f"{outcome.contender} against {verdict.incumbent}"
    print(
        f"{against}: {verdict.prompts} prompts of {verdict.photographs} photographs, split {verdict.comparison.split}"
    )
    print(f"{'':34} {'value':>7}  {'95 % interval':16} asked")
    for check in verdict.checks:
        print(f"{SHOWN[check.figure]:34} {_describe(check)}")
    forced = ", promoted by --force" if verdict.forced and not verdict.passed else ""
    again = (
        f"; painted {verdict.judged}, not again, since nothing that decides has changed" if outcome.is_reused else ""
    )
    print(f"{'passed' if verdict.passed else 'not passed'}{forced}: {outcome.verdict_file}{again}")


def _describe(check: "Check") -> str:
    value = "none" if check.value is None else f"{check.value:.3f}" if check.low is not None else f"{check.value:g}"
    interval = "" if check.low is None else f"[{check.low:.3f}, {check.high:.3f}]"
    asked = "" if check.limit is None else f"low > {check.limit:g}" if check.low is not None else f"{check.limit:g}"
    kept = "" if check.limit is None else "ok" if check.passed else "FAILS"
    return f"{value:>7}  {interval:16} {asked:12} {kept}".rstrip()


def _print_change(name: str, before: "ServedName", after: "ServedName") -> None:
    if after is before:
        on_trial = f"; {after.canary} stays on trial, `rlhf rollback` drops it" if after.canary is not None else ""
        print(f"{name} answers with {after.current} already; nothing was changed{on_trial}")
        return
    if before.canary is not None and before.canary not in (after.canary, after.current):
        print(f"{before.canary} is no longer on trial")
    trial = f", {after.canary_share:.0%} of the requests with {after.canary}" if after.canary is not None else ""
    kept = f" (before: {after.previous})" if after.previous is not None else ""
    print(f"{name} answers with {after.current}{kept}{trial}")


def rollback(
    name: Annotated[str, typer.Argument(help="Name in the catalogue.")],
    catalogue: CatalogueFile,
) -> None:
    """Drop a name's canary, else bring its previous policy back; at once, no weights are read."""
    from rlhf.promotion.catalogue import roll_back

    _print_change(name, *roll_back(catalogue, name))


def models(catalogue: CatalogueFile) -> None:
    """List the names of a catalogue: which versions answer which share, and where their folders are."""
    from rlhf.promotion.catalogue import read_catalogue

    rows = [("name", "base", "role", "version", "share", "folder")]
    for name, served in sorted(read_catalogue(catalogue).models.items()):
        trial = served.canary_share if served.canary is not None else 0.0
        roles = (
            ("current", served.current, 1 - trial),
            ("canary", served.canary, trial),
            ("previous", served.previous, 0),
        )
        for role, policy, share in roles:
            if policy is not None:
                folder = policy.folder or "(the base model)"
                rows.append((name, served.base, role, policy.version, f"{share:.0%}", str(folder)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def api_key(
    name: Annotated[str, typer.Argument(help="Whose key it is, as logs call them.")],
    per_minute: Annotated[int, typer.Option(min=1, help="Requests per minute that it allows.")] = 60,
) -> None:
    """Make a random API key: the key itself goes to stderr, the line by which a service knows it to stdout."""
    from serve.api.api_keys import new_key

    key, line = new_key(name, per_minute)
    typer.echo(f"The key of {name}, shown this once and kept nowhere:\n{key}", err=True)
    typer.echo("Its line for the file of --api-keys (append with >>), or for PREFPAINT_API_KEYS:", err=True)
    print(line)
