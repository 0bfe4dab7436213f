"""Runs `rlhf evaluate`: judges the policies of a run, if there is one, then compares all contestants."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from rlhf.config.devices import precision_of, resolve_device
from rlhf.config.run_config import RunConfig
from rlhf.data.prompts import Prompt, PromptTable, checksum_prompts, load_prompts
from rlhf.diffusion.families.open_family import check_sizes
from rlhf.diffusion.policy_manifest import list_policies
from rlhf.diffusion.sampler import Sampler
from rlhf.errors import UserError
from rlhf.evaluation.comparison import summarise_comparison
from rlhf.evaluation.comparison_notes import find_common
from rlhf.evaluation.comparison_page import write_comparison_page
from rlhf.evaluation.comparison_records import (
    ALIGNED,
    BASE,
    ComparisonReport,
    ComparisonSettings,
    JudgedContestant,
)
from rlhf.evaluation.comparison_tables import tabulate_figures, tabulate_tests
from rlhf.evaluation.contestants import IMAGES, Contestant, describe, of_model, open_contestant
from rlhf.evaluation.evaluation import EvaluationSummary, evaluate
from rlhf.evaluation.judged_store import CONTESTANTS, JudgedStore, JudgingSettings
from rlhf.evaluation.judges import HeldOutJudges, open_judges
from rlhf.evaluation.judging import Judged, Jury
from rlhf.rewards.open_reward import checksum_reward, open_reward
from rlhf.storage.atomic_files import atomic_write_json, atomic_write_text

OpenSamplers = Callable[[PromptTable, Sequence[Path]], AbstractContextManager[Callable[[Path | None], Sampler]]]
"""Given prompts and policies, returns the function that opens each policy's sampler."""


@dataclass(frozen=True, kw_only=True)
class ComparisonRequest:
    """Comparison that the command line asks for."""

    prompts: Path
    split: str
    reward: Path
    run: Path | None
    """Folder that `rlhf align` wrote; `base` and `aligned`, its last policy, take part."""
    specs: Mapping[str, str]
    """Specs of further contestants by name."""
    base: str
    """Name of the contestant that the others are compared with."""
    out: Path


@dataclass(frozen=True, kw_only=True)
class ComparisonResult:
    """Results of `rlhf evaluate`."""

    report: ComparisonReport
    evaluation: EvaluationSummary | None
    """Figures of the run, if one takes part."""


def run_comparison(request: ComparisonRequest, config: RunConfig, open_samplers: OpenSamplers) -> ComparisonResult:
    """Judges all contestants and writes tables and page.

    Contestants that `out` holds from an interrupted run with the same settings are not painted again. Raises UserError
    if a contestant is missing, the model cannot paint a prompt's size, or too few prompts are common to all.
    """
    policies = list_policies(request.run) if request.run is not None else []
    check_names(request, policies)
    prompts = load_prompts(request.prompts, split=request.split)
    table = PromptTable(request.prompts, split=request.split)
    if request.run is not None or BASE == request.base not in request.specs:
        check_sizes(config.model, {prompt.prompt_id: prompt.size for prompt in prompts})
    contestants = open_contestants(request, config, table)
    captions = {prompt.prompt_id: prompt.caption for prompt in prompts}
    reward = open_reward(request.reward, resolve_device(config.model.device), captions)
    held_out = open_judges(config, prompts)
    distance = None if held_out.network is None else held_out.network.distance
    jury = Jury(reward=reward, judges=held_out.judges, lpips=held_out.lpips, distance=distance)
    store = JudgedStore(request.out / CONTESTANTS, prompts, jury, settings_of(request, config, prompts, jury))
    # Contestants without a model go first: a fault in a folder of images shows before hours of painting.
    judged = judge_contestants([c for c in contestants if not c.follows_noise], prompts, jury, store)
    entries, evaluation = judge_run(request, config, policies, prompts, table, jury, store, open_samplers)
    judged |= judge_contestants([c for c in contestants if c.follows_noise], prompts, jury, store)
    entries += [judged[contestant.name] for contestant in contestants]
    entries.sort(key=lambda entry: entry.name != request.base)
    report = complete_report(
        summarise_comparison(entries, request.base, prompts, config.evaluate, held_out.features),
        held_out,
        evaluation,
        ComparisonSettings(
            seed=config.seed,
            num_inference_steps=config.evaluate.num_inference_steps,
            reward=str(request.reward),
            prompts=str(request.prompts),
            split=request.split,
        ),
    )
    write_comparison(report, entries, prompts, evaluation, request.out)
    return ComparisonResult(report=report, evaluation=evaluation)


def open_contestants(request: ComparisonRequest, config: RunConfig, table: PromptTable) -> list[Contestant]:
    """Opens the contestants outside the run; without a run the configured model takes part as `base`."""
    contestants = [open_contestant(name, spec, config, table.rows) for name, spec in request.specs.items()]
    if request.run is None and request.base == BASE and BASE not in request.specs:
        contestants.insert(0, of_model(BASE, "", config, table.rows))
    return contestants


def complete_report(
    report: ComparisonReport,
    held_out: HeldOutJudges,
    evaluation: EvaluationSummary | None,
    settings: ComparisonSettings,
) -> ComparisonReport:
    """Adds the settings, the judges that are left out, and the alarms of the run.

    The alarms along the whole curve of a run replace those about its aligned model alone.
    """
    alarms = report.alarms
    if evaluation is not None:
        alarms = [alarm for alarm in alarms if alarm.policy != ALIGNED] + evaluation.alarms
    return replace(report, left_out=report.left_out + held_out.left_out, alarms=alarms, settings=settings)


def check_names(request: ComparisonRequest, policies: Sequence[Path]) -> None:
    """Raises UserError if there is nobody to compare, a name is taken by the run, or the base does not take part."""
    if request.run is None and not request.specs:
        raise UserError("evaluate: nobody to compare; give --run RUN, or --contestant NAME=SPEC")
    taken = {BASE, ALIGNED, *(policy.name for policy in policies)} if policies else set()
    for name in request.specs:
        if name in taken:
            raise UserError(f"--contestant {name}: the run's own models have that name; give it another")
    own = [BASE, ALIGNED] if policies else [BASE] if request.base == BASE else []
    names = [*dict.fromkeys([*own, *request.specs])]
    if request.base not in names:
        raise UserError(f"--base {request.base}: no contestant of that name; there are {', '.join(names)}")


def settings_of(
    request: ComparisonRequest, config: RunConfig, prompts: Sequence[Prompt], jury: Jury
) -> JudgingSettings:
    """Returns the settings on which the images and marks of every contestant depend."""
    return JudgingSettings(
        prompts=checksum_prompts(prompts),
        reward=checksum_reward(request.reward),
        judges=[entry.model_dump(mode="json") for entry in config.judges if entry.label in jury.judges],
        seed=config.seed,
        evaluate=config.evaluate.model_dump(mode="json", exclude={"features"}),
        marks=jury.marks,
        precision=precision_of(config.model),
    )


def judge_run(
    request: ComparisonRequest,
    config: RunConfig,
    policies: list[Path],
    prompts: list[Prompt],
    table: PromptTable,
    jury: Jury,
    store: JudgedStore,
    open_samplers: OpenSamplers,
) -> tuple[list[JudgedContestant], EvaluationSummary | None]:
    """Judges the policies of the run; returns base and aligned model with the summary, or nobody without a run."""
    kept: dict[str, Judged] = {}
    if request.run is None:
        return [], None

    def keep(name: str, policy: Path | None, judge: Callable[[], Judged]) -> Judged:
        """Reads or judges a policy, and keeps the judged base and aligned model."""
        judged = store.judge(name, describe(config.model.path, policy), judge)
        if name in (BASE, ALIGNED):
            kept[name] = judged
        return judged

    with open_samplers(table, policies) as open_policy:
        summary = evaluate(
            open_policy,
            policies,
            prompts,
            jury,
            request.out,
            config.evaluate,
            seed=config.seed,
            keep=keep,
        )
    specs = {BASE: config.model.path, ALIGNED: str(policies[-1])}
    models = [JudgedContestant(name=n, spec=specs[n], follows_noise=True, judged=kept[n]) for n in (BASE, ALIGNED)]
    return models, summary


def judge_contestants(
    contestants: Sequence[Contestant], prompts: Sequence[Prompt], jury: Jury, store: JudgedStore
) -> dict[str, JudgedContestant]:
    """Judges contestants, or reads how they were judged; folders of images come first. Returns them by name.

    Raises UserError if an image does not fit its prompt, or too few prompts are common to all.
    """
    entries: dict[str, JudgedContestant] = {}
    for contestant in sorted(contestants, key=lambda c: not c.spec.startswith(IMAGES)):
        name, spec, judge = contestant.name, contestant.spec, partial(contestant.judge, prompts, jury)
        judged = store.judge(name, contestant.what, judge)
        entries[name] = JudgedContestant(name=name, spec=spec, follows_noise=contestant.follows_noise, judged=judged)
        find_common(list(entries.values()), prompts)
    return entries


def write_comparison(
    report: ComparisonReport,
    entries: Sequence[JudgedContestant],
    prompts: Sequence[Prompt],
    evaluation: EvaluationSummary | None,
    out: Path,
) -> None:
    """Writes `contestants.csv`, `comparisons.csv`, `comparison.html` and, last, `comparison.json`."""
    for name, table in (("contestants.csv", tabulate_figures(report)), ("comparisons.csv", tabulate_tests(report))):
        atomic_write_text(out / name, table.to_csv(index=False, lineterminator="\n"))
    write_comparison_page(report, entries, prompts, evaluation, out / "comparison.html")
    atomic_write_json(out / "comparison.json", asdict(report))
