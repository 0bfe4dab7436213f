"""A policy behind a name: through the gate, copied beside the catalogue, then named there."""

import re
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rlhf.config.run_config import RunConfig
from rlhf.diffusion.policy_folders import MANIFEST, locate_policy, read_manifest
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
class Request:
    """What `rlhf promote` is asked."""

    policy: Path
    """A policy folder, or a run folder for its last policy."""
    name: str
    catalogue: Path
    prompts: Path
    reward: Path
    split: str = "test"
    """Which of the prompts."""
    canary: float | None = None
    """Share of the requests to try the policy on; None makes it the current one."""
    is_forced: bool = False
    """Promote whatever the verdict is."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of it."""

    contender: ServedPolicy
    """The policy as it was given."""
    before: ServedName
    after: ServedName
    """The same as `before` where nothing was changed."""
    verdict: Verdict | None = None
    """None where the policy answers already."""
    verdict_file: Path | None = None
    is_reused: bool = False
    """The figures are those of an earlier verdict on the same comparison."""

    @property
    def is_refused(self) -> bool:
        """The gate was not passed, and nothing was changed."""
        return self.verdict is not None and not (self.verdict.passed or self.verdict.forced)


def promote(request: Request, config: RunConfig) -> Outcome:
    """Put a policy behind a name, as the current one or on trial, if it passes the gate.

    The contender is judged against what the name serves now, the base model where the name is new; an earlier verdict
    on the same weights, prompts and settings is used again. The verdict is written beside the catalogue, passed or not.
    Where it passed, or `is_forced`, the policy's folder is copied to `<catalogue>.policies/VERSION`, which no run
    removes, and the catalogue is replaced last, whole or not at all: whoever reads it finds all that it names.

    Raises UserError where an input is unsound, the policy is of another base model than the name's, or the name was
    changed while the policies painted.
    """
    catalogue = request.catalogue.resolve()
    _check_request(request)
    found, folder = _locate(request.policy, config)
    contender = describe_policy(folder)
    with locked(catalogue):  # Says now, not after the painting, what cannot be read or written.
        names = read_or_new(catalogue)
    before = names.models.get(request.name) or ServedName(base=found)
    if absolute_base(before.base) != found:
        raise UserError(f"{folder}: is a policy of {found}, but {request.name} of {before.base}; choose another --name")
    if contender.version == before.current.version:
        if request.canary is not None:
            raise UserError(f"{request.name} answers with {contender} already; leave --canary out")
        keep_policy(folder, catalogue)  # Where somebody removed the copy, it is there again.
        return Outcome(contender=contender, before=before, after=before)
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": found})})
    held_out = load_held_out(request.prompts, request.reward, split=request.split, config=config)
    verdict, is_reused = _judge_or_recall(request, contender, before.current, held_out, config)
    file = verdict_file(catalogue, request.name, contender, before.current)
    write_verdict(verdict, file)
    is_let_through = verdict.passed or request.is_forced
    after = put_behind_name(request, before, keep_policy(folder, catalogue)) if is_let_through else before
    return Outcome(
        contender=contender, before=before, after=after, verdict=verdict, verdict_file=file, is_reused=is_reused
    )


def _check_request(request: Request) -> None:
    if not re.fullmatch(NAME_PATTERN, request.name):
        raise UserError(
            f"--name {request.name!r}: takes letters, digits, dots, dashes and underscores, 64 at most, "
            "a letter or digit first"
        )
    if request.canary is not None and not 0 < request.canary < 1:
        raise UserError(f"--canary {request.canary:g}: a share between 0 and 1; leave it out to promote altogether")


def _locate(policy: Path, config: RunConfig) -> tuple[str, Path]:
    """The base model and the folder of a policy that a user names."""
    if not policy.exists():
        raise UserError(f"{policy}: no such folder; name a policy folder, or the run folder that holds it")
    found, folder = locate_policy(config.model, policy)
    if folder is None:
        raise UserError(f"{policy}: a whole pipeline, which has no version; name a policy folder or a run folder")
    return absolute_base(found.path), folder.resolve()


def absolute_base(base: str) -> str:
    """The base model for a service that starts in another folder; `tiny`, URLs and hub names as they are."""
    return str(Path(base).resolve()) if base == str(as_path(base)) and Path(base).is_dir() else base


def _judge_or_recall(
    request: Request, contender: ServedPolicy, incumbent: ServedPolicy, held_out: HeldOut, config: RunConfig
) -> tuple[Verdict, bool]:
    """A verdict, and whether its figures are an earlier one's; the limits are always this configuration's."""
    comparison = plan_comparison(contender, incumbent, held_out, config)
    file = verdict_file(request.catalogue.resolve(), request.name, contender, incumbent)
    if file.is_file():
        earlier = read_verdict(file)
        if earlier.comparison == comparison:
            return earlier.decide(config.gate, forced=request.is_forced), True
    verdict = judge(request.name, contender, incumbent, comparison, held_out, config)
    return verdict.decide(config.gate, forced=request.is_forced), False


def keep_policy(folder: Path, catalogue: Path) -> ServedPolicy:
    """Copy a policy folder to where nothing removes it: `names.policies/VERSION` beside `names.json`.

    File by file, each whole, the manifest last; a complete copy of the same checksum is left as it is. Raises UserError
    where the weights are not those of the manifest, or cannot be written.
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


def put_behind_name(request: Request, judged: ServedName, policy: ServedPolicy) -> ServedName:
    """Name the policy in the catalogue; UserError where the name has another current policy than was judged."""
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
