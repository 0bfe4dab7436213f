"""Gate before a promotion: contender and incumbent paint held-out prompts, and a judge that trained neither decides."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rlhf import __version__
from rlhf.config.devices import resolve_device
from rlhf.config.run_config import RunConfig
from rlhf.data.networks.package_weights import RESNET50
from rlhf.data.prompts import Prompt, PromptTable, checksum_prompts, load_prompts
from rlhf.diffusion.policy import load_policy
from rlhf.diffusion.policy_manifest import read_manifest
from rlhf.diffusion.policy_weights import check_weights
from rlhf.diffusion.sampler import InProcessSampler, Sampler
from rlhf.errors import UserError
from rlhf.evaluation.evaluation import compare, judge_policy
from rlhf.evaluation.judging import Jury
from rlhf.evaluation.network_judge import NAME, open_network_judge
from rlhf.promotion.catalogue import ServedPolicy
from rlhf.promotion.gate_verdict import Comparison, Verdict, timestamp
from rlhf.rewards.open_reward import checksum_reward, open_reward
from rlhf.rewards.scores import Reward

BLANK = 0.005
"""Largest distance from mid-grey (0 in [-1, 1]) of a hole that an import blanked, so that no original is there."""

OpenPolicy = Callable[[Path | None], Sampler]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The data and the reward that policies are judged on."""

    prompts: list[Prompt]
    open_policy: OpenPolicy
    """Returns the sampler of a policy folder, or of the base model for None."""
    reward: Reward
    judges: Mapping[str, Reward] = field(default_factory=dict)
    """The held-out network, if its package is installed."""
    split: str
    prompts_checksum: str
    reward_checksum: str


def load_held_out(prompts: Path, reward: Path, *, split: str, config: RunConfig) -> HeldOut:
    """Reads and checks prompts and reward; policies are opened on `config.model`.

    Raises UserError if something is unreadable, the prompts hold no originals to judge against or show fewer
    photographs than `gate.min_photographs`, or there is one sample per prompt, which leaves diversity unknown.
    """
    if config.evaluate.samples_per_prompt < 2:
        raise UserError("evaluate.samples_per_prompt: the gate measures diversity, which takes at least 2")
    loaded = load_prompts(prompts, split=split)
    photographs, needed = len({p.photograph for p in loaded}), config.gate.min_photographs
    if photographs < needed:
        raise UserError(
            f"{prompts}: split {split!r} shows {photographs} photograph(s), too few for an interval to trust; make "
            f"prompts from {needed} or more (gate.min_photographs)"
        )
    blank = [p.prompt_id for p in loaded if (p.image[:, p.mask[0] > 0.5].abs() < BLANK).all()]
    if blank:
        raise UserError(
            f"{prompts}: no originals to judge against: the holes of {len(blank)} prompts are grey in the pictures too "
            f"({', '.join(blank[:3])}); make prompts from whole photographs with `rlhf prompts`"
        )
    take = PromptTable(prompts, split=split).rows
    device = resolve_device(config.model.device)
    opened = open_reward(reward, device, {p.prompt_id: p.caption for p in loaded})
    return HeldOut(
        prompts=loaded,
        open_policy=lambda policy: InProcessSampler(load_policy(config.model, policy), take),
        reward=opened,
        judges={NAME: open_network_judge(device)} if RESNET50.is_installed else {},
        split=split,
        prompts_checksum=checksum_prompts(loaded),
        reward_checksum=checksum_reward(reward),
    )


def plan_comparison(
    contender: ServedPolicy, incumbent: ServedPolicy, held_out: HeldOut, config: RunConfig
) -> Comparison:
    """Describes the comparison. Raises UserError if a policy folder is incomplete or does not match its manifest."""
    assert contender.folder is not None, "only the incumbent can be the base model"
    model = config.model.model_dump(mode="json", exclude={"path"})
    return Comparison(
        base=config.model.path,
        contender=_checksum(contender.folder),
        incumbent=None if incumbent.folder is None else _checksum(incumbent.folder),
        prompts=held_out.prompts_checksum,
        split=held_out.split,
        reward=held_out.reward_checksum,
        seed=config.seed,
        settings=config.evaluate.model_dump(mode="json") | model,
        software=__version__,
    )


def _checksum(policy: Path) -> str:
    """Returns the checksum in a policy's manifest, after comparing it with the weights."""
    check_weights(policy)
    return read_manifest(policy)["checksum"]


def judge(
    name: str,
    contender: ServedPolicy,
    incumbent: ServedPolicy,
    comparison: Comparison,
    held_out: HeldOut,
    config: RunConfig,
) -> Verdict:
    """Paints the prompts with both policies on the same noise, and applies the limits of `config.gate`."""

    def paint(policy: ServedPolicy, role: str):  # noqa: ANN202
        """Paints all prompts with a policy, and judges the samples."""
        stage = f"gate: {role} {policy.version}"
        sampler = held_out.open_policy(policy.folder)
        jury = Jury(reward=held_out.reward, judges=held_out.judges)
        return judge_policy(sampler, held_out.prompts, jury, config.evaluate, seed=config.seed, stage=stage)

    before, after = paint(incumbent, "incumbent"), paint(contender, "contender")
    now = timestamp()
    return Verdict(
        name=name,
        contender=contender,
        incumbent=incumbent,
        comparison=comparison,
        prompts=len(held_out.prompts),
        photographs=len({p.photograph for p in held_out.prompts}),
        judged=now,
        figures=compare(before, after, held_out.prompts),
        decided=now,
        limits=config.gate,
        checks=(),
        passed=False,
        forced=False,
    ).decide(config.gate, forced=False)
