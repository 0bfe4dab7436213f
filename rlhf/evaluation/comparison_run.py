"""`rlhf evaluate`: the curve of a run where there is one, then all contestants on the same prompts."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rlhf.config.devices import resolve_device
from rlhf.config.run_config import RunConfig
from rlhf.data.prompts import Prompt, PromptTable, checksum_prompts, load_prompts
from rlhf.diffusion.policy_folders import list_policies
from rlhf.diffusion.sampler import Sampler
from rlhf.errors import UserError
from rlhf.evaluation.comparison import ALIGNED, BASE, Entry, check_base, find_common, summarise_contest
from rlhf.evaluation.comparison_page import write_contest_page
from rlhf.evaluation.comparison_tables import comparisons_csv, figures_csv, to_latex
from rlhf.evaluation.contestants import IMAGES, Contestant, describe, of_model, open_contestant
from rlhf.evaluation.evaluation import evaluate
from rlhf.evaluation.judged_store import CONTESTANTS, JudgedStore
from rlhf.evaluation.judges import open_judges
from rlhf.evaluation.judging import Judged, Jury
from rlhf.rewards.open_reward import checksum_reward, open_reward
from rlhf.storage.atomic_files import atomic_write_json, atomic_write_text

OpenSamplers = Callable[[PromptTable, Sequence[Path]], AbstractContextManager[Callable[[Path | None], Sampler]]]
"""Given prompts and policies, the function that opens each policy's sampler."""


@dataclass(frozen=True, kw_only=True)
class ContestRequest:
    """What the command line asks for."""

    prompts: Path
    split: str
    reward: Path
    run: Path | None
    """What `rlhf align` wrote: `base` and, of its last policy, `aligned` take part."""
    specs: Mapping[str, str]
    """Further contestants: spec by name."""
    base: str
    """Name of the contestant that the others are compared with."""
    out: Path


def hold_contest(request: ContestRequest, config: RunConfig, open_samplers: OpenSamplers) -> dict[str, Any]:
    """Judge everyone and write tables and page; returns `contest`, and of a run its `evaluation` summary.

    Contestants that `out` holds from an interrupted run of the same settings are not painted again. Raises UserError
    where a contestant is not there, sizes differ, or too few prompts are common to all.
    """
    policies = list_policies(request.run) if request.run is not None else []
    check_names(request, policies)
    prompts = load_prompts(request.prompts, split=request.split)
    check_sizes(prompts, request.prompts)
    table = PromptTable(request.prompts, split=request.split)
    contestants = [open_contestant(name, spec, config, table.rows) for name, spec in request.specs.items()]
    if request.run is None and request.base == BASE and BASE not in request.specs:
        contestants.insert(0, of_model(BASE, "", config, table.rows))
    captions = {prompt.prompt_id: prompt.caption for prompt in prompts}
    reward = open_reward(request.reward, resolve_device(config.model.device), captions)
    held_out = open_judges(config, prompts)
    jury = Jury(reward=reward, judges=held_out.judges, lpips=held_out.lpips)
    store = JudgedStore(request.out / CONTESTANTS, prompts, jury, settings_of(request, config, prompts, jury))
    # What needs no model goes first: what is wrong with a folder of images shows before hours of painting.
    judged = judge_contestants([c for c in contestants if not c.follows_noise], prompts, jury, store)
    entries, evaluation = judge_run(request, config, policies, prompts, table, jury, store, open_samplers)
    judged |= judge_contestants([c for c in contestants if c.follows_noise], prompts, jury, store)
    entries += [judged[contestant.name] for contestant in contestants]
    entries.sort(key=lambda entry: entry.name != request.base)
    contest = summarise_contest(entries, request.base, prompts, config.evaluate, held_out.features)
    contest["left_out"] += held_out.left_out
    if evaluation:  # of the run's own policies the alarms along its whole curve tell
        contest["alarms"] = [alarm for alarm in contest["alarms"] if alarm["policy"] != ALIGNED] + evaluation["alarms"]
    contest["settings"] = describe_settings(request, config)
    write_contest(contest, entries, prompts, evaluation, request.out)
    return {"contest": contest, "evaluation": evaluation}


def check_names(request: ContestRequest, policies: Sequence[Path]) -> None:
    """UserError where there is nobody to compare, or a name is taken by the run."""
    if request.run is None and not request.specs:
        raise UserError("evaluate: nobody to compare; give --run RUN, or --contestant NAME=SPEC")
    taken = {BASE, ALIGNED, *(policy.name for policy in policies)} if policies else set()
    for name in request.specs:
        if name in taken:
            raise UserError(f"--contestant {name}: the run's own models have that name; give it another")
    own = [BASE, ALIGNED] if policies else [BASE] if request.base == BASE else []
    check_base(request.base, [*dict.fromkeys([*own, *request.specs])])


def check_sizes(prompts: Sequence[Prompt], place: Path) -> None:
    """UserError where prompts are of several sizes: they are judged in batches, and scores of sizes do not compare."""
    sizes = {tuple(prompt.mask.shape[-2:]): prompt.prompt_id for prompt in prompts}
    if len(sizes) > 1:
        such = " and ".join(f"{width}x{height} ({name})" for (height, width), name in list(sizes.items())[:2])
        raise UserError(f"{place}: prompts of several sizes, such as {such}; evaluate each size apart")


def settings_of(request: ContestRequest, config: RunConfig, prompts: Sequence[Prompt], jury: Jury) -> dict[str, Any]:
    """What every contestant's images and marks depend on."""
    return {
        "prompts": checksum_prompts(prompts),
        "reward": checksum_reward(request.reward),
        "judges": [entry.model_dump(mode="json") for entry in config.judges if entry.label in jury.judges],
        "seed": config.seed,
        "evaluate": config.evaluate.model_dump(mode="json", exclude={"bootstrap", "features"}),
        "marks": jury.marks,
        "precision": config.model.precision,
    }


def judge_run(
    request: ContestRequest,
    config: RunConfig,
    policies: list[Path],
    prompts: list[Prompt],
    table: PromptTable,
    jury: Jury,
    store: JudgedStore,
    open_samplers: OpenSamplers,
) -> tuple[list[Entry], dict[str, Any] | None]:
    """Base and aligned model with the summary of `evaluate`; nobody without a run."""
    kept: dict[str, Judged] = {}
    if request.run is None:
        return [], None

    def keep(name: str, policy: Path | None, judge: Callable[[], Judged]) -> Judged:
        judged = store.judge(name, describe(config.model.path, policy), judge)
        if name in (BASE, ALIGNED):
            kept[name] = judged
        return judged

    with open_samplers(table, policies) as open_policy:
        summary = evaluate(
            open_policy,
            policies,
            prompts,
            jury.reward,
            request.out,
            config.evaluate,
            seed=config.seed,
            judges=jury.judges,
            lpips=jury.lpips,
            keep=keep,
        )
    specs = {BASE: config.model.path, ALIGNED: str(policies[-1])}
    return [Entry(name=n, spec=specs[n], follows_noise=True, judged=kept[n]) for n in (BASE, ALIGNED)], summary


def judge_contestants(
    contestants: Sequence[Contestant], prompts: Sequence[Prompt], jury: Jury, store: JudgedStore
) -> dict[str, Entry]:
    """Judge them, or read how they were judged, by name; folders of images come first.

    Raises UserError where an image does not fit its prompt, or too few prompts are common to all.
    """
    entries: dict[str, Entry] = {}
    for contestant in sorted(contestants, key=lambda c: not c.spec.startswith(IMAGES)):
        name, spec, judge = contestant.name, contestant.spec, partial(contestant.judge, prompts, jury)
        judged = store.judge(name, contestant.what, judge)
        entries[name] = Entry(name=name, spec=spec, follows_noise=contestant.follows_noise, judged=judged)
        find_common(list(entries.values()), prompts)
    return entries


def describe_settings(request: ContestRequest, config: RunConfig) -> dict[str, Any]:
    """For whoever reads the results."""
    return {
        "seed": config.seed,
        "num_inference_steps": config.evaluate.num_inference_steps,
        "reward": str(request.reward),
        "prompts": str(request.prompts),
        "split": request.split,
    }


def write_contest(
    contest: dict[str, Any],
    entries: Sequence[Entry],
    prompts: Sequence[Prompt],
    evaluation: dict[str, Any] | None,
    out: Path,
) -> None:
    """`contestants.csv`, `comparisons.csv`, `contestants.tex`, `contest.html` and, last, `contest.json`."""
    atomic_write_text(out / "contestants.csv", figures_csv(contest))
    atomic_write_text(out / "comparisons.csv", comparisons_csv(contest))
    atomic_write_text(out / "contestants.tex", to_latex(contest))
    write_contest_page(contest, entries, prompts, evaluation, out / "contest.html")
    atomic_write_json(out / "contest.json", contest)
