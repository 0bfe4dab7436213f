"""The GPU part of the benchmarks, without a GPU: its models, what it counts, and a tiny run of it."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_parts import small_config, small_prompts

from benchmarks.device_measures import PassClock, attempt, count_flops
from benchmarks.gpu.__main__ import format_table, open_results, run
from benchmarks.gpu.full_size_models import SD, TINY_SD, TINY_XL, XL, Architecture, build_policy, build_unet
from benchmarks.gpu.variants import PARTS
from benchmarks.training_loops import plain_update
from rlhf.alignment.algorithms import grpo
from rlhf.alignment.learner import Learner
from rlhf.alignment.objective import TrainingBatch
from rlhf.diffusion.policy import load_policy
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.trained_weights import trainable_state
from rlhf.errors import UserError

CPU = torch.device("cpu")
RUN = """
import gc, sys
from benchmarks.gpu.__main__ import main
main(sys.argv[1:])
from diffusers import UNet2DConditionModel
assert "ray" not in sys.modules
assert not any(isinstance(found, UNet2DConditionModel) for found in gc.get_objects()), "memory of a variant is held"
"""
MEASURED = {
    "sd_rollout": "as in align",
    "sd_training": "full",
    "xl_rollout": "1024 px",
    "xl_training": "LoRA, gradient checkpointing",
}


@pytest.mark.parametrize(("architecture", "millions"), [(SD, 859.5), (XL, 2567.5)])
def test_full_size_models_have_the_published_number_of_parameters(architecture: Architecture, millions: float) -> None:
    unet = build_unet(architecture, torch.device("meta"))
    assert sum(p.numel() for p in unet.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    assert unet.config.in_channels == 9


def test_a_forward_pass_of_stable_diffusion_at_512_px_is_0_8_tflop() -> None:
    assert count_flops(SD, 512, "none", backward=False) == pytest.approx(0.80e12, rel=0.01)


def test_frozen_weights_save_part_of_a_backward_pass() -> None:
    forward = count_flops(TINY_SD, 64, "none", backward=False)
    with_adapters = count_flops(TINY_SD, 64, "lora", backward=False)
    lora, full = (count_flops(TINY_SD, 64, trainable, backward=True) for trainable in ("lora", "full"))
    assert full == pytest.approx(3 * forward, rel=0.05)
    assert forward < with_adapters < lora < 0.9 * 3 * with_adapters


def test_the_tiny_vae_is_reached_at_the_scale_of_the_full_one() -> None:
    policy = build_policy(TINY_XL, CPU, "fp32")
    assert policy.family.pipeline.vae_scale_factor == 8
    assert policy.text.pooled is not None


def test_passes_of_copies_count_and_are_read_once() -> None:
    clock, layer = PassClock(CPU), torch.nn.Linear(256, 256)
    clock.watch(layer)
    for net in (layer, copy.deepcopy(layer)):
        net(torch.randn(64, 256))
        assert clock.read() > 0
    assert clock.read() == 0
    clock.timed(torch.Tensor.backward)(layer(torch.randn(1, 256)).sum())
    assert clock.read() > 0


def test_too_little_memory_is_a_figure_and_does_not_end_the_part() -> None:
    def measure() -> dict:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    figures = attempt(measure, CPU)
    assert figures == {"out_of_memory": "CUDA out of memory. Tried to allocate 2.00 GiB."}
    assert attempt(lambda: {"failed": torch.zeros(2) @ torch.zeros(3)}, CPU)["failed"].startswith("RuntimeError: ")
    results = {"machine": {}, "products_per_s": {"bf16": 7e14}, "parts": {"xl_training": {"full": figures}}}
    assert "out of memory" in format_table(results)
    assert "bf16 700" in format_table(results)


def test_figures_of_another_size_are_not_gone_on_with(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps(open_results(file, "tiny", CPU)))
    assert open_results(file, "tiny", CPU)["parts"] == {}
    with pytest.raises(UserError, match="choose another --out"):
        open_results(file, "full", CPU)
    with pytest.raises(UserError, match="needs a CUDA GPU"):
        run(tmp_path, ["sd_rollout"], "full", CPU)


@pytest.mark.slow
def test_a_tiny_run_measures_what_is_missing_without_ray(tmp_path: Path) -> None:
    file, earlier = tmp_path / "gpu.json", {"out_of_memory": "earlier"}
    results = open_results(file, "tiny", CPU)
    for part, measured in MEASURED.items():
        results["parts"][part] = {title: earlier for title in PARTS[part].variants if title != measured}
    results["parts"]["sd_rollout"]["as in align"] = {"failed": "earlier"}
    file.write_text(json.dumps(results))
    command = [sys.executable, "-c", RUN, "--out", str(tmp_path), "--device", "cpu", "--only", *MEASURED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    parts = found["parts"]
    for part, measured in MEASURED.items():
        assert all(figures == earlier for title, figures in parts[part].items() if title != measured)
    painted, trained = (parts[part][MEASURED[part]] for part in ("sd_rollout", "xl_training"))
    assert (parts["xl_rollout"]["1024 px"]["px"], painted["px"]) == (128, 64)
    full = parts["sd_training"]["full"]
    base = count_flops(TINY_SD, 64, "none", backward=False)
    assert full["flop"] == full["transitions"] * (count_flops(TINY_SD, 64, "full", backward=True) + base)
    profile = json.loads((tmp_path / painted["profile"]).with_suffix(".json").read_text())
    assert 0.5 < sum(operator["share"] for operator in profile["operators"].values()) <= 1.001
    assert painted["flop"] == painted["forward_images"] * count_flops(TINY_SD, 64, "none", backward=False)
    rate = painted["flop"] / painted["s"]["median"] / found["products_per_s"]["fp32"]
    assert painted["utilisation"]["median"] == pytest.approx(rate)
    assert painted["images_per_s"]["median"] == pytest.approx(painted["images"] / painted["s"]["median"])
    assert 0 < painted["share_in_unet"]["median"] <= 1, "no pass is counted twice"
    assert 0 < trained["share_in_unet"]["median"] <= 1
    assert trained["transitions"] == 2 * trained["images"]
    assert trained["loop"] == "DeepSpeed"


def test_after_its_limit_a_part_leaves_the_rest_to_the_same_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, earlier, left = tmp_path / "gpu.json", {"out_of_memory": "earlier"}, ["no LoRA", "1 prompt"]
    results = open_results(file, "tiny", CPU)
    others = {title: earlier for title in PARTS["sd_rollout"].variants if title not in left}
    results["parts"]["sd_rollout"] = others
    file.write_text(json.dumps(results))
    for number in (1, 2):
        run(tmp_path, ["sd_rollout"], "tiny", CPU, limit_s=0.0)
        assert ("1 variants are left" in capsys.readouterr().out) == (number == 1)
        found = json.loads(file.read_text())["parts"]["sd_rollout"]
        assert [title for title in left if title in found] == left[:number]


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_plain_pytorch_trains_as_the_learner_does(process_group: None, small_pipeline: Path, trainable: str) -> None:
    run_config = small_config(small_pipeline, trainable=trainable, kl_weight=1.0)
    config, policies = run_config.align, [load_policy(run_config.model) for _ in range(2)]
    plan = grpo.plan_rollout(config, 0, 0)
    kept = rollout(policies[0], small_prompts(2), plan, sample_indices=range(4), seed_key=(0,)).trajectories
    advantages = torch.randn(8, generator=torch.Generator().manual_seed(0))
    batches = [TrainingBatch(trajectories=kept, advantages=advantages, trust_weights=torch.ones(8))] * 2
    learner = Learner(policies[0], config, micro_batches=4, seed=0)
    before, update = learner.weights(), plain_update(policies[1], batches, config)
    for _ in range(2):
        learner.train(batches, is_on_policy=False)
        update()
    plain = trainable_state(policies[1].network)
    for name, tensor in learner.weights().items():
        torch.testing.assert_close(plain[name], tensor, atol=1e-5, rtol=1e-4)
    assert any(not torch.equal(before[name], tensor) for name, tensor in plain.items())
