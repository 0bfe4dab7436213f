"""The suite of benchmarks: which switches pay, and its figure; no figure is taken on trust of these few rounds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks.__main__ import format_results
from benchmarks.suite.figure import draw_figure
from benchmarks.suite.joined_steps import join_steps
from benchmarks.suite.rollout import MODEL, equal_work
from benchmarks.suite.switches import SWITCHES, Pair, Switch, format_table, measure_switch
from benchmarks.suite.update import make_config, roll_out
from benchmarks.suite.whole_step import summarise
from rlhf.alignment.objective import TrainingBatch
from rlhf.alignment.policy_gradient import compute_loss
from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.policy import Policy, keeps_merged, load_policy, make_trainable
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.trained_weights import load_trainable_state, trainable_state, without_adapters
from serve.settings import EngineSettings


def around(median: float) -> dict[str, float]:
    return {"median": median, "low": 0.9 * median, "high": 1.1 * median}


def ratio(median: float, *, is_kept: bool) -> dict[str, Any]:
    times = {"off_over_on": around(median), "on_ms": around(10.0), "off_ms": around(10 * median)}
    return times | {"on_mb": 0.25, "kept": is_kept, "why": "so"}


SHARES = {name: around(0.3) for name in ("rollouts", "training", "samplers_idle", "learner_idle")}
LINE = {"update_s": 10.0, "rollout_s": 6.0, "train_s": 3.5, "sampler_idle_share": 0.25, "weights_sync_s": 0.1}
RESULTS: dict[str, Any] = {
    "machine": {"cpu": "a processor"},
    "rollout": {"images_per_s": {"ours, defaults": around(20.0), "a trainer's loop": around(16.0)}},
    "update": {"ms_per_transition": {"LoRA": around(28.0), "plain PyTorch": around(24.0)}},
    "whole_step": {"sync": {"shares": SHARES | {"control": around(0.05)}}, "overlapped": {"shares": SHARES}},
    "switches": {
        "fast": ratio(2.0, is_kept=True),
        "slow": ratio(0.5, is_kept=False),
        "even": ratio(1.0, is_kept=False),
        "pinned": {"left_out": "needs CUDA"},
    },
}


def test_a_whole_update_is_shared_out_among_roles() -> None:
    found = {mode: summarise([LINE | {"scorer_idle_share": 0.9}], 16, in_turn=mode) for mode in (True, False)}
    shares = {name: share["median"] for name, share in found[True]["shares"].items()}
    expected = {"rollouts": 0.59, "training": 0.35, "samplers_idle": 0.55, "learner_idle": 0.65}
    assert shares == pytest.approx(expected | {"weights": 0.01, "control": 0.05, "no_model": 0.21})
    assert sum(shares[name] for name in ("rollouts", "training", "weights", "control")) == pytest.approx(1)
    assert found[False]["shares"].keys() == expected.keys(), "what overlaps adds up to more than one"


@pytest.mark.parametrize("parts", [(), ("rollout",), ("update", "switches"), ("whole_step",), tuple(RESULTS)])
def test_the_figure_has_a_panel_for_each_part_that_was_measured(parts: tuple[str, ...], tmp_path: Path) -> None:
    draw_figure({part: RESULTS[part] for part in parts}, tmp_path / "results.png")
    if not parts:
        assert not list(tmp_path.iterdir())
        return
    picture = Image.open(tmp_path / "results.png")
    assert (picture.width > 1000) == (len(parts) > 1)


def test_the_table_says_what_pays_and_what_was_not_measured() -> None:
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in format_table(RESULTS["switches"]).split("\n")[2:]
    ]
    assert rows[0] == ["fast", "2.00 [1.80, 2.20]", "10", "20", "yes", "on", "so; 0.25 MB on"]
    assert [row[4] for row in rows] == ["yes", "costs", "no", "not measured"]
    assert rows[3][-1] == "needs CUDA"
    assert {"fast", "rollout: images_per_s: ours, defaults"} <= {
        line.split("  ")[0].strip("| ") for line in format_results(RESULTS).split("\n")
    }


def gradients(policy: Policy, batch: TrainingBatch) -> dict[str, torch.Tensor]:
    """Of the mean loss over all passes of a micro-batch."""
    config, t = make_config(), batch.trajectories
    schedule = policy.family.schedule(config.num_inference_steps, (8, 8))
    for k in range(len(t.latents)):
        inputs = t.latents[k], schedule.timesteps[t.steps_at(k)], t.condition
        with torch.no_grad(), without_adapters(policy.network):
            base = policy.predict(*inputs)
        (compute_loss(policy.predict(*inputs), base, batch, k, schedule, config).loss / len(t.latents)).backward()
    found = {name: p.grad.clone() for name, p in policy.network.named_parameters() if p.grad is not None}
    policy.network.zero_grad()
    return found


def test_steps_trained_in_one_pass_have_the_gradient_of_one_after_the_other() -> None:
    batch, policy = roll_out(make_config()), load_policy(MODEL)
    make_trainable(policy, "lora", rank=make_config().lora_rank, targets=make_config().lora_targets, seed=0)
    moved = {
        n: t + 1e-4 * torch.randn(t.shape, generator=torch.Generator().manual_seed(1))
        for n, t in trainable_state(policy.network).items()
    }
    load_trainable_state(policy.network, moved)
    joined = join_steps(batch)
    assert len(joined.trajectories.latents) == 1
    apart, together = gradients(policy, batch), gradients(policy, joined)
    assert apart.keys() == together.keys()
    flat = [torch.cat([g.flatten() for g in found.values()]) for found in (apart, together)]
    assert flat[0].norm() > 0
    assert (flat[0] - flat[1]).norm() < 1e-4 * flat[0].norm()


def test_a_switch_is_run_on_and_off_in_turn() -> None:
    calls: list[str] = []
    pair = Pair(on=lambda: calls.append("on"), off=lambda: calls.append("off"), figures={"on_mb": 1.0})
    found = measure_switch(Switch(make=lambda: pair, is_kept=True, reason="so"), 3)
    assert calls == ["on", "off", "on", "off", "off", "on", "on", "off"], "once unmeasured, then back and forth"
    assert found.keys() == {"off_over_on", "on_ms", "off_ms", "on_mb", "kept", "why"}


def test_ours_with_equal_switches_encodes_every_image_and_shares_nothing() -> None:
    policy, (prompts, plan, samples) = load_policy(MODEL), equal_work()
    assert (len(prompts), len({p.prompt_id for p in prompts}), len(samples)) == (16, 16, 1)
    done = rollout(policy, prompts[:2], plan, sample_indices=samples, seed_key=("t",))
    assert done.forward_images == 2 * plan.num_inference_steps
    assert plan.stochastic_steps == frozenset(range(plan.num_inference_steps))


@pytest.mark.parametrize(
    ("name", "largest"),
    [("channels_last, VAE decoder", 1e-5), ("LoRA merged, UNet forward", 1e-5), ("bf16, UNet forward", 0.05)],
)
def test_both_ways_lead_to_the_same(name: str, largest: float) -> None:
    assert 0 < SWITCHES[name].make().figures["differs_by"] < largest


def test_the_defaults_are_what_the_table_says() -> None:
    align, serving, policy = make_config(), EngineSettings(), load_policy(MODEL)
    assert SWITCHES["bf16, UNet forward"].is_kept == (ModelConfig().precision == "bf16")
    assert SWITCHES["LoRA merged, UNet forward"].is_kept == keeps_merged(policy, align.merged_sampling)
    assert SWITCHES["compiled blocks, UNet forward"].is_kept == serving.compile
    make_trainable(policy, "lora", rank=align.lora_rank, targets=align.lora_targets, seed=0, keeps_merged=True)
    for name, part in (("UNet forward", policy.merged), ("VAE decoder", policy.family.pipeline.vae)):
        weight = next(p for p in part.parameters() if p.ndim == 4 and p.shape[-1] > 1)
        assert SWITCHES[f"channels_last, {name}"].is_kept == weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is measured there")
def test_what_needs_a_gpu_is_left_out_without_one() -> None:
    (name,) = [name for name, switch in SWITCHES.items() if switch.needs_cuda]
    assert measure_switch(SWITCHES[name], 1) == {"left_out": "needs CUDA"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, switch in SWITCHES.items() if not switch.needs_cuda])
def test_every_switch_can_be_measured(name: str) -> None:
    found = measure_switch(SWITCHES[name], 1)
    assert found["off_over_on"]["median"] > 0
    assert not any(isinstance(value, float) and value <= 0 for value in found.values())
