"""Promotion: judges a policy, copies it beside the catalogue, and puts it behind a name there."""

import re
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rlhf.config.run_config import RunConfig
from rlhf.diffusion.policy_manifest import MANIFEST, locate_policy, read_manifest
from rlhf.diffusion.policy_weights import check_weights
from rlhf.errors import UserError
from rlhf.promotion.catalogue import (
    NAME_PATTERN,
    ServedName,
    ServedPolicy,
    describe_policy,
    locked,
    read_or_new,
    write_catalogue,
)
from rlhf.promotion.gate import HeldOut, judge, load_held_out, plan_comparison
from rlhf.promotion.gate_verdict import Verdict, read_verdict, verdict_file, write_verdict
from rlhf.storage.atomic_files import atomic_write
from rlhf.storage.url_path import as_path, local_copy


@dataclass(frozen=True, kw_only=True)
class PromotionRequest:
    """The arguments of `rlhf promote`."""

    policy: Path
    """A policy folder, or a run folder for its last policy."""
    name: str
    """Name under which the policy is to answer."""
    catalogue: Path
    prompts: Path
    reward: Path
    split: str = "test"
    """Split of the prompts to judge on."""
    canary: float | None = None
    """Share of the requests that try the policy; None makes it the current one."""
    is_forced: bool = False
    """Whether to promote regardless of the verdict."""


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """The result of a promotion."""

    contender: ServedPolicy
    """The policy that was to be promoted."""
    before: ServedName
    """The name before the promotion."""
    after: ServedName
    """The name after the promotion; the same object as `before` if nothing was changed."""
    verdict: Verdict | None = None
    """The verdict of the gate; None if the policy answers already."""
    verdict_file: Path | None = None
    is_reused: bool = False
    """Whether the figures come from an earlier verdict on the same comparison."""

    @property
    def is_refused(self) -> bool:
        """Whether the gate was not passed, so that nothing was changed."""
        return self.verdict is not None and not (self.verdict.passed or self.verdict.forced)


def promote(request: PromotionRequest, config: RunConfig) -> Promotion:
    """Puts a policy behind a name, as the current one or as canary, if it passes the gate.

    The contender is judged against what the name serves now, or against the base model if the name is new. An earlier
    verdict on the same weights, prompts and settings is reused. The verdict is written beside the catalogue, passed or
    not. If it passed, or `is_forced`, the policy's folder is copied to `<catalogue>.policies/VERSION`, which no run
    removes. The catalogue is replaced last, whole or not at all, so that readers find every folder that it names.

    Raises UserError if an input is unsound, the policy belongs to another base model than the name's, or the name was
    changed while the policies painted.
    """
    catalogue = request.catalogue.resolve()
    _check_request(request)
    found, folder = _locate(request.policy, config)
    contender = describe_policy(folder)
    with locked(catalogue):  # Fails before the painting if the catalogue cannot be read or locked.
        names = read_or_new(catalogue)
    before = names.models.get(request.name) or ServedName(base=found)
    if absolute_base(before.base) != found:
        raise UserError(f"{folder}: is a policy of {found}, but {request.name} of {before.base}; choose another --name")
    if contender.version == before.current.version:
        if request.canary is not None:
            raise UserError(f"{request.name} answers with {contender} already; leave --canary out")
        keep_policy(folder, catalogue)  # Restores the copy if somebody removed it.
        return Promotion(contender=contender, before=before, after=before)
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": found})})
    held_out = load_held_out(request.prompts, request.reward, split=request.split, config=config)
    verdict, is_reused = _judge_or_recall(request, contender, before.current, held_out, config)
    file = verdict_file(catalogue, request.name, contender, before.current)
    write_verdict(verdict, file)
    is_let_through = verdict.passed or request.is_forced
    after = put_behind_name(request, before, keep_policy(folder, catalogue)) if is_let_through else before
    return Promotion(
        contender=contender, before=before, after=after, verdict=verdict, verdict_file=file, is_reused=is_reused
    )


def _check_request(request: PromotionRequest) -> None:
    if not re.fullmatch(NAME_PATTERN, request.name):
        raise UserError(
            f"--name {request.name!r}: takes letters, digits, dots, dashes and underscores, 64 at most, "
            "a letter or digit first"
        )
    if request.canary is not None and not 0 < request.canary < 1:
        raise UserError(f"--canary {request.canary:g}: a share between 0 and 1; leave it out to promote altogether")


def _locate(policy: Path, config: RunConfig) -> tuple[str, Path]:
    """Returns the base model and the folder of a policy that a user names."""
    if not policy.exists():
        raise UserError(f"{policy}: no such folder; name a policy folder, or the run folder that holds it")
    found, folder = locate_policy(config.model, policy)
    if folder is None:
        raise UserError(f"{policy}: a whole pipeline, which has no version; name a policy folder or a run folder")
    return absolute_base(found.path), folder.resolve()


def absolute_base(base: str) -> str:
    """Returns a base model's folder as an absolute path; `tiny`, URLs and hub names are returned unchanged."""
    return str(Path(base).resolve()) if base == str(as_path(base)) and Path(base).is_dir() else base


def _judge_or_recall(
    request: PromotionRequest, contender: ServedPolicy, incumbent: ServedPolicy, held_out: HeldOut, config: RunConfig
) -> tuple[Verdict, bool]:
    """Returns a verdict by the limits of `config`, and whether its figures come from an earlier one."""
    comparison = plan_comparison(contender, incumbent, held_out, config)
    file = verdict_file(request.catalogue.resolve(), request.name, contender, incumbent)
    if file.is_file():
        earlier = read_verdict(file)
        if earlier.comparison == comparison:
            return earlier.decide(config.gate, forced=request.is_forced), True
    verdict = judge(request.name, contender, incumbent, comparison, held_out, config)
    return verdict.decide(config.gate, forced=request.is_forced), False


def keep_policy(folder: Path, catalogue: Path) -> ServedPolicy:
    """Copies a policy folder to `names.policies/VERSION` beside `names.json`, where nothing removes it.

    Copies file by file, each whole, the manifest last; a complete copy of the same checksum is kept. Raises UserError
    if the weights do not match the manifest, or cannot be written.
    """
    described = describe_policy(folder)
    target = catalogue.parent / f"{catalogue.stem}.policies" / described.version
    if (target / MANIFEST).is_file():
        if read_manifest(target)["checksum"] != read_manifest(folder)["checksum"]:
            raise UserError(f"{target}: holds other weights than {folder}; move it away if no name serves it")
        check_weights(target)
        return describe_policy(target)
    check_weights(folder)
    with local_copy(folder) as local:
        files = [path.relative_to(local) for path in sorted(local.rglob("*")) if path.is_file()]
        for name in sorted(files, key=lambda name: name == Path(MANIFEST)):
            atomic_write(target / name, partial(shutil.copyfile, local / name))
    return describe_policy(target)


def put_behind_name(request: PromotionRequest, judged: ServedName, policy: ServedPolicy) -> ServedName:
    """Puts a policy behind a name. Raises UserError if the name was changed since the policy was judged."""
    catalogue = request.catalogue.resolve()
    with locked(catalogue):
        names = read_or_new(catalogue)
        served = names.models.get(request.name) or ServedName(base=judged.base)
        if (served.base, served.current) != (judged.base, judged.current):
            raise UserError(
                f"{catalogue}: {request.name} answers with {served.current} now, but {policy} was judged against "
                f"{judged.current}; promote again"
            )
        after = served.succeeded_by(policy) if request.canary is None else served.on_trial(policy, request.canary)
        write_catalogue(names.with_name(request.name, after), catalogue)
    return after
