"""A policy behind a name: the gate, the copy that is served, canary and rollback, and what cannot be lost."""

import json
import shutil
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import pytest
import torch
from s3_server import run_s3_server
from small_parts import save_small_reward, small_prompts, write_prompts
from typer.testing import CliRunner

from rlhf.commands.cli import app
from rlhf.config.gate_config import GateConfig
from rlhf.config.run_config import EvaluateConfig, ModelConfig, RunConfig
from rlhf.diffusion.policy import load_policy, make_trainable
from rlhf.diffusion.policy_weights import check_weights, save_policy
from rlhf.diffusion.trained_weights import trainable_state
from rlhf.errors import UserError
from rlhf.evaluation.evaluation import Gain, evaluate
from rlhf.evaluation.judging import Jury
from rlhf.promotion.catalogue import (
    Catalogue,
    ServedName,
    ServedPolicy,
    describe_policy,
    read_catalogue,
    roll_back,
    write_catalogue,
)
from rlhf.promotion.gate import load_held_out
from rlhf.promotion.gate_verdict import check_figures, read_verdict
from rlhf.promotion.promotion import Promotion, PromotionRequest, keep_policy, promote, put_behind_name
from rlhf.reports.intervals import Estimate
from rlhf.storage.url_path import as_path

PAINTED = EvaluateConfig(samples_per_prompt=2, num_inference_steps=2)
EASY = GateConfig(min_win_rate=0.0, min_sharpness_ratio=0.0, min_diversity_ratio=0.0)
"""Limits that any policy passes that wins anything at all."""
HARD = EASY.model_copy(update={"min_win_rate": 0.99})


def save_moved_policy(pipeline: Path, folder: Path, version: int, trainable: str = "lora") -> Path:
    policy = load_policy(ModelConfig(path=str(pipeline)))
    make_trainable(policy, trainable, rank=2, targets=("to_q", "conv1"), seed=version)
    torch.manual_seed(version)
    state = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in trainable_state(policy.network).items()}
    save_policy(policy.family, state, folder, version=version, trainable=trainable, base=str(pipeline))
    return folder


@dataclass(frozen=True)
class Inputs:
    run: Path
    """Run folder of policies 10 and 20."""
    prompts: Path
    reward: Path

    def ask(self, catalogue: Path, version: int | None = None, **asked: object) -> PromotionRequest:
        policy = self.run if version is None else self.run / f"policy-{version:06d}"
        told = {"policy": policy, "name": "aligned", "prompts": self.prompts, "reward": self.reward} | asked
        return PromotionRequest(catalogue=catalogue, **told)


@pytest.fixture(scope="module")
def inputs(small_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    for version in (10, 20):
        save_moved_policy(small_pipeline, folder / "run" / f"policy-{version:06d}", version)
    prompts = [replace(prompt, split="test") for prompt in small_prompts(6)]
    return Inputs(folder / "run", write_prompts(prompts, folder / "prompts"), save_small_reward(folder / "reward"))


def pass_gate(request: PromotionRequest, gate: GateConfig = EASY, **settings: object) -> Promotion:
    return promote(request, RunConfig(evaluate=PAINTED, gate=gate, **settings))


def test_what_is_promoted_is_served_from_a_copy_that_outlives_the_run(
    inputs: Inputs, small_pipeline: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(inputs.run, tmp_path / "run")
    pass_gate(replace(inputs.ask(tmp_path / "names.json"), policy=run))
    shutil.rmtree(run)
    served = read_catalogue(tmp_path / "names.json").models["aligned"]
    assert served.base == str(small_pipeline)
    assert served.previous == ServedPolicy(), "the base model, which the gate took for what a new name serves"
    assert served.current.folder == tmp_path / "names.policies" / served.current.version
    check_weights(served.current.folder)
    assert load_policy(ModelConfig(path=served.base), served.current.folder).version == 20, "the run's last policy"


def test_a_refusal_exits_with_1_leaves_the_catalogue_alone_and_its_verdict_tells_why(
    inputs: Inputs, tmp_path: Path
) -> None:
    catalogue = tmp_path / "names.json"
    write_catalogue(Catalogue(models={"other": ServedName(base="tiny")}), catalogue)
    before = catalogue.read_bytes()
    options = f"--catalogue {catalogue} --prompts {inputs.prompts} --reward {inputs.reward} --min-win-rate 0.99"
    settings = "--set evaluate.num_inference_steps=2"
    done = CliRunner().invoke(app, ["promote", str(inputs.run), "--name", "aligned", *f"{options} {settings}".split()])
    assert done.exit_code == 1, done.output
    assert "refused (WinRate (gold judge, simulated)" in done.output
    assert catalogue.read_bytes() == before
    assert not (tmp_path / "names.policies").exists()
    (file,) = (tmp_path / "names.verdicts").iterdir()
    verdict = read_verdict(file)
    assert (verdict.passed, verdict.forced, verdict.limits.min_win_rate) == (False, False, 0.99)
    assert "simulated" in verdict.judge
    assert file.name == f"aligned-{describe_policy(inputs.run / 'policy-000020').version}-over-0.json"


def test_force_promotes_and_the_verdict_says_that_it_was_forced(inputs: Inputs, tmp_path: Path) -> None:
    outcome = pass_gate(inputs.ask(tmp_path / "names.json", is_forced=True), HARD)
    assert read_catalogue(tmp_path / "names.json").models["aligned"] == outcome.after
    verdict = read_verdict(outcome.verdict_file)
    assert (verdict.passed, verdict.forced) == (False, True)


def test_the_gate_has_the_figures_of_an_evaluation(inputs: Inputs, small_pipeline: Path, tmp_path: Path) -> None:
    verdict = pass_gate(inputs.ask(tmp_path / "names.json")).verdict
    config = RunConfig(evaluate=PAINTED, model=ModelConfig(path=str(small_pipeline)))
    held_out = load_held_out(inputs.prompts, inputs.reward, split="test", config=config)
    policy = inputs.run / "policy-000020"
    jury = Jury(reward=held_out.reward, judges=held_out.judges)
    summary = asdict(evaluate(held_out.open_policy, [policy], held_out.prompts, jury, tmp_path, PAINTED, seed=0))
    assert verdict is not None
    assert asdict(verdict.figures) == {field.name: summary[field.name] for field in fields(Gain)}
    assert verdict.figures.win_rate.clusters == verdict.photographs == 6


def test_a_verdict_that_lacks_a_figure_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    file = pass_gate(inputs.ask(tmp_path / "names.json", canary=0.5)).verdict_file
    record = json.loads(file.read_text())
    assert read_verdict(file).model_dump(mode="json") == record
    del record["figures"]["win_rate"]
    file.write_text(json.dumps(record))
    with pytest.raises(UserError, match="not a verdict"):
        read_verdict(file)


def test_a_trial_that_becomes_current_is_not_painted_again(inputs: Inputs, tmp_path: Path) -> None:
    catalogue = tmp_path / "names.json"
    first = pass_gate(inputs.ask(catalogue, 10))
    trial = pass_gate(inputs.ask(catalogue, 20, canary=0.25))
    assert (trial.after.current, trial.after.canary_share) == (first.after.current, 0.25)
    record = json.loads(trial.verdict_file.read_text())
    record["figures"]["win_rate"]["low"] = 0.625  # Nobody who paints again finds this.
    trial.verdict_file.write_text(json.dumps(record))
    final = pass_gate(replace(inputs.ask(catalogue), policy=trial.after.canary.folder), HARD)
    assert (final.is_reused, final.verdict.checks[0].low) == (True, 0.625)
    assert final.is_refused, "figures are taken over, limits are not"
    final = pass_gate(replace(inputs.ask(catalogue), policy=trial.after.canary.folder))
    served = read_catalogue(catalogue).models["aligned"]
    assert (served.current, served.previous, served.canary) == (trial.after.canary, first.after.current, None)
    assert final.verdict.incumbent == first.after.current


def test_other_prompts_are_judged_anew(inputs: Inputs, tmp_path: Path) -> None:
    pass_gate(inputs.ask(tmp_path / "names.json", canary=0.5))
    again = pass_gate(inputs.ask(tmp_path / "names.json", canary=0.75))
    others = [replace(prompt, split="test", image=-prompt.image) for prompt in small_prompts(6)]
    anew = pass_gate(inputs.ask(tmp_path / "names.json", prompts=write_prompts(others, tmp_path / "others")))
    assert (again.is_reused, anew.is_reused) == (True, False)
    assert again.verdict.figures != anew.verdict.figures


def test_what_answers_already_is_left_alone_and_a_lost_copy_comes_back(inputs: Inputs, tmp_path: Path) -> None:
    catalogue = tmp_path / "names.json"
    served = pass_gate(inputs.ask(catalogue)).after
    before = catalogue.read_bytes()
    shutil.rmtree(served.current.folder)
    outcome = pass_gate(inputs.ask(catalogue), HARD)
    assert (outcome.verdict, outcome.after, catalogue.read_bytes()) == (None, served, before)
    check_weights(served.current.folder)
    with pytest.raises(UserError, match="leave --canary out"):
        pass_gate(inputs.ask(catalogue, canary=0.1))


def estimate(low: float) -> Estimate:
    return Estimate(value=0.9, low=low, high=1.0, clusters=9)


@pytest.mark.parametrize(
    ("changed", "failed"),
    [
        ({}, []),
        ({"win_rate": estimate(0.5)}, ["win_rate"]),
        ({"win_rate": estimate(float("nan"))}, ["win_rate"]),
        ({"win_rate_reward": estimate(0.0)}, []),
        ({"sharpness_ratio": estimate(0.79)}, ["sharpness_ratio"]),
        ({"diversity_ratio": estimate(float("nan"))}, ["diversity_ratio"]),
        ({"known_pixels_differ": 1}, ["known_pixels_differ"]),
    ],
)
def test_the_lower_end_decides_and_every_check_counts(changed: dict, failed: list[str]) -> None:
    estimates = [field.name for field in fields(Gain) if field.type is Estimate]
    known = {name: estimate(0.85) for name in estimates}
    known |= {"gold_base": 0.5, "gold_aligned": 0.6, "known_pixels_differ": 0, "win_rate_by_hole": {}}
    figures = Gain(**(known | changed))
    assert [check.figure for check in check_figures(figures, GateConfig()) if not check.passed] == failed


@pytest.mark.parametrize(
    ("asked", "gate", "said"),
    [
        ({"policy": Path("nowhere")}, EASY, "nowhere: no such folder"),
        ({"name": "a/b"}, EASY, "--name 'a/b': takes letters"),
        ({"canary": 1.0}, EASY, "--canary 1: a share between"),
        ({"split": "val"}, EASY, "no prompts of split 'val'"),
        ({}, EASY.model_copy(update={"min_photographs": 7}), "6 photograph.*too few.*7 or more .gate.min_photographs"),
        ({"name": "of-tiny"}, EASY, "but of-tiny of tiny; choose another --name"),
    ],
)
def test_what_a_user_gets_wrong_is_said_before_anything_is_painted(
    inputs: Inputs, tmp_path: Path, asked: dict, gate: GateConfig, said: str
) -> None:
    write_catalogue(Catalogue(models={"of-tiny": ServedName(base="tiny")}), tmp_path / "names.json")
    with pytest.raises(UserError, match=said):
        pass_gate(inputs.ask(tmp_path / "names.json", **asked), gate)
    assert not (tmp_path / "names.verdicts").exists()


def test_a_whole_pipeline_a_damaged_catalogue_and_prompts_without_originals_are_refused(
    inputs: Inputs, small_pipeline: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="a whole pipeline"):
        pass_gate(inputs.ask(tmp_path / "names.json", policy=small_pipeline))
    (tmp_path / "damaged.json").write_text("{")
    with pytest.raises(UserError, match=r"damaged\.json: .*restored or removed"):
        pass_gate(inputs.ask(tmp_path / "damaged.json"))
    grey = [replace(p, split="test", image=p.image * (1 - p.mask) + p.mask / 255) for p in small_prompts(6)]
    prompts = write_prompts([*grey[:1], *(replace(p, split="test") for p in small_prompts(6)[1:])], tmp_path / "grey")
    with pytest.raises(UserError, match=r"no originals.*1 prompts.*\(p0\)"):
        pass_gate(inputs.ask(tmp_path / "names.json", prompts=prompts))


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_weights_that_are_not_their_manifests_are_refused(small_pipeline: Path, tmp_path: Path, trainable: str) -> None:
    folder = save_moved_policy(small_pipeline, tmp_path / "policy", 10, trainable)
    check_weights(folder)
    weights = next(folder.rglob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"policy: its weights are not those of its manifest\.json"):
        keep_policy(folder, tmp_path / "names.json")
    weights.write_bytes(whole[:100])
    with pytest.raises(UserError, match="policy: its weights cannot be read"):
        check_weights(folder)
    assert not (tmp_path / "names.policies").exists()


def test_half_a_copy_is_completed_and_other_weights_are_not_written_over(inputs: Inputs, tmp_path: Path) -> None:
    folder = inputs.run / "policy-000010"
    kept = keep_policy(folder, tmp_path / "names.json").folder
    (kept / "manifest.json").unlink()
    (kept / "pytorch_lora_weights.safetensors").write_bytes(b"half")
    check_weights(keep_policy(folder, tmp_path / "names.json").folder)
    record = json.loads((kept / "manifest.json").read_text())
    (kept / "manifest.json").write_text(json.dumps(record | {"checksum": record["checksum"][:8] + 56 * "0"}))
    with pytest.raises(UserError, match="holds other weights"):
        keep_policy(folder, tmp_path / "names.json")


def test_a_name_that_was_changed_while_policies_painted_is_not_written_over(inputs: Inputs, tmp_path: Path) -> None:
    catalogue = tmp_path / "names.json"
    judged, policy = ServedName(base="tiny"), ServedPolicy(folder=tmp_path, version="20-bbbbbbbb")
    other = judged.succeeded_by(ServedPolicy(folder=tmp_path, version="15-cccccccc"))
    write_catalogue(Catalogue(models={"aligned": other}), catalogue)
    with pytest.raises(UserError, match=r"aligned answers with 15-cccccccc now.*promote again"):
        put_behind_name(inputs.ask(catalogue), judged, policy)
    assert read_catalogue(catalogue).models == {"aligned": other}


def test_a_catalogue_in_a_bucket_is_promoted_to_and_rolled_back(inputs: Inputs, tmp_path: Path) -> None:
    with run_s3_server():
        catalogue = as_path("s3://runs/serve/names.json")
        served = pass_gate(inputs.ask(catalogue, 10)).after
        assert str(served.current.folder) == f"s3://runs/serve/names.policies/{served.current.version}"
        again = read_catalogue(catalogue).models["aligned"]
        check_weights(again.current.folder)
        trial = pass_gate(inputs.ask(catalogue, 20, canary=0.1))
        assert (
            trial.verdict.comparison.incumbent
            == json.loads((again.current.folder / "manifest.json").read_text())["checksum"]
        )
        assert pass_gate(inputs.ask(catalogue, 20, canary=0.2)).is_reused
        assert roll_back(catalogue, "aligned")[1] == served == read_catalogue(catalogue).models["aligned"]
