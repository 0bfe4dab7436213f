"""Chooses which policy answers under which name: `rlhf promote`, `rollback`, `models`, and `export`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf.commands.options import Config, Out, Overrides, PromptsFolder, RewardFolder, resolve_config

if TYPE_CHECKING:
    from rlhf.promotion.catalogue import ServedName
    from rlhf.promotion.gate_verdict import Check
    from rlhf.promotion.promotion import Promotion, PromotionRequest

CatalogueFile = Annotated[Path, typer.Option("--catalogue", help="JSON file that the service reads, local or a URL.")]
SHOWN = {
    "win_rate": "WinRate (gold judge, simulated)",
    "win_rate_network": "WinRate (held-out network, shown only)",
    "win_rate_reward": "WinRate (the reward, shown only)",
    "sharpness_ratio": "sharpness against the incumbent",
    "diversity_ratio": "diversity against the incumbent",
    "known_pixels_differ": "known pixels that differ",
}


def promote(
    policy: Annotated[Path, typer.Argument(help="Policy folder, or run folder for its last policy.")],
    name: Annotated[str, typer.Option("--name", help="Name that requests give as `model`.")],
    catalogue: CatalogueFile,
    prompts: PromptsFolder,
    reward: RewardFolder,
    split: Annotated[str, typer.Option(help="Split of the prompts, held out from training.")] = "test",
    min_win_rate: Annotated[float | None, typer.Option(help="WinRate to exceed (lower end); default: 0.5.")] = None,
    canary: Annotated[float | None, typer.Option(help="Share of requests that try it; default: all, for good.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Promote whatever the gate says; the verdict records it.")
    ] = False,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Put a policy behind a name if it beats what answers now on held-out prompts; exit code 1 if refused."""
    limit = [] if min_win_rate is None else [f"gate.min_win_rate={min_win_rate}"]
    resolved = resolve_config(config, [*(overrides or ()), *limit])
    from rlhf.promotion import promotion

    request = promotion.PromotionRequest(
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
    _print_verdict(name, outcome)
    if outcome.is_refused:
        raise typer.Exit(1)
    _print_change(name, outcome.before, outcome.after)
    if outcome.after is not outcome.before:
        given = [("--config", config), ("--min-win-rate", min_win_rate), *(("--set", text) for text in overrides or ())]
        _print_next(request, outcome, [str(word) for pair in given if pair[1] is not None for word in pair])


def _print_next(request: "PromotionRequest", outcome: "Promotion", settings: list[str]) -> None:
    """Prints the commands that go on from here, and back."""
    where = ["--catalogue", str(request.catalogue)]
    if outcome.after.canary is not None and request.canary is not None:
        held_out = ["--prompts", str(request.prompts), "--reward", str(request.reward), "--split", request.split]
        force = ["--force"] if outcome.verdict is not None and not outcome.verdict.passed else []
        command = ["rlhf", "promote", str(outcome.after.canary.folder), "--name", request.name]
        print("make it current:", shlex.join([*command, *where, *held_out, *settings, *force]))
    print("go back:", shlex.join(["rlhf", "rollback", request.name, *where]))


def _print_verdict(name: str, outcome: "Promotion") -> None:
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
    if outcome.is_refused:
        failed = "; ".join(SHOWN[check.figure] for check in verdict.checks if not check.passed)
        print(f"refused ({failed}); {name} is as it was. --force promotes nevertheless", flush=True)


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
    """Drop a name's canary, or else bring its previous policy back, at once and without reading weights."""
    from rlhf.promotion.catalogue import roll_back

    _print_change(name, *roll_back(catalogue, name))


def models(catalogue: CatalogueFile) -> None:
    """List the names of a catalogue, their versions, shares and folders."""
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


def import_lora(
    file: Annotated[Path, typer.Argument(help="LoRA of the denoiser: .safetensors of Kohya, PEFT or diffusers.")],
    out: Out,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Make a policy folder of another tool's LoRA; the whole file fits the model, or nothing is written."""
    resolved = resolve_config(config, overrides)
    from rlhf.diffusion.lora_import import import_lora as convert
    from rlhf.storage.url_path import local_copy

    with local_copy(file) as local:
        count = convert(resolved.model, local, out)
    print(f"policy in {out}: {count} tensors on {resolved.model.path}")


def export(
    policy: Annotated[Path, typer.Argument(help="Policy folder.")],
    out: Out,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Merge a policy into its base model, as a complete pipeline folder for diffusers."""
    resolved = resolve_config(config, overrides)
    from rlhf.diffusion.policy import export_policy

    print(f"pipeline in {export_policy(resolved.model, policy, out)}")
