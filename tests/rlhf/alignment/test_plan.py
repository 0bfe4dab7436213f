"""Plans of runs: bytes as they are measured, arithmetic of time and money, what does not fit, and bad input."""

import json
from pathlib import Path

import pytest
import torch
from command_line import rlhf

from benchmarks.gpu.measuring import make_prompts
from benchmarks.plan_memory import allocated_peak
from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.alignment.learner import Learner
from rlhf.alignment.objective import TrainingBatch
from rlhf.alignment.planning.machine import Machine, Rates, read_rates
from rlhf.alignment.planning.plan import Plan, check_splits, make_plan
from rlhf.alignment.planning.process_needs import ProcessNeed
from rlhf.alignment.planning.verdict import check_room, judge, refuse
from rlhf.config.config_files import load_config
from rlhf.config.run_config import AlignConfig, ModelConfig, RunConfig
from rlhf.diffusion.families.pipeline_folder import Part
from rlhf.diffusion.policy import Policy, load_policy, make_trainable
from rlhf.diffusion.rollout import rollout
from rlhf.errors import UserError

IMAGES = 4
SMALL = ("align.samples_per_prompt=4", "align.micro_batch_size=4", "align.prompts_per_update=2")
ON_GPUS = ("cluster.gpus_per_actor=1", "cluster.gpus_per_sampler=0.9", "cluster.gpus_per_scorer=0.1")


def configured(*overrides: str) -> RunConfig:
    return load_config(None, (*SMALL, *overrides))


def need_of(plan: Plan, role: str) -> ProcessNeed:
    return next(need for need in plan.processes if need.role == role)


def held(*modules: torch.nn.Module | None) -> int:
    return sum(t.nbytes for module in modules if module for t in (*module.parameters(), *module.buffers()))


def opened(model: ModelConfig, align: AlignConfig) -> Policy:
    policy = load_policy(model, parts={Part.NETWORK, Part.VAE}, is_trained_whole=align.trainable == "full")
    make_trainable(policy, align.trainable, rank=align.lora_rank, targets=None, seed=0)
    return policy


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("trainable", ["lora", "full"])
@pytest.mark.parametrize("model", ["tiny", "tiny-sd"])
def test_the_planned_bytes_of_a_built_in_model_are_those_that_are_measured(model: str, trainable: str) -> None:
    config = configured(f"model.path={model}", f"align.trainable={trainable}", "prompts.size_px=64")
    align, plan = config.align, make_plan(config)
    policy, run_plan = opened(config.model, align), algorithm_of(align).plan_rollout(align, 0, 0)
    done = []

    def paint() -> None:
        prompts = make_prompts(1, 64)
        done.append(rollout(policy, prompts, run_plan, sample_indices=range(IMAGES), seed_key=("plan",)))

    passes = allocated_peak(paint)
    sampler = need_of(plan, "sampler").device
    assert held(policy.network, policy.family.pipeline.vae) == sampler["network"] + sampler["VAE"]
    assert passes == pytest.approx(sampler["passes"] + sampler["rollout"], rel=0.15)

    network = load_policy(config.model, parts={Part.NETWORK})
    learner = Learner(network, align, micro_batches=4, seed=0)
    ones = torch.ones(IMAGES)
    batches = [TrainingBatch(trajectories=done[0].trajectories, advantages=ones, trust_weights=ones)] * 2
    learner.train(batches, is_on_policy=False)  # Adam's moments are there from now on.
    moments = 2 * sum(p.nbytes for p in learner.policy.network.parameters() if p.requires_grad)
    measured = moments + allocated_peak(lambda: learner.train(batches, is_on_policy=False))
    planned = need_of(plan, "learner").device
    assert held(learner.policy.network, learner._base) == planned["network"] + planned["base copy"]
    assert measured == pytest.approx(planned["gradients"] + planned["optimizer"] + planned["passes"], rel=0.15)


def test_time_and_money_follow_from_rates_and_price() -> None:
    config = configured(*ON_GPUS)
    slow, fast = (
        make_plan(config, rates=Rates(rollout=rate, training=rate), price_per_gpu_hour=3.0) for rate in (1e12, 2e12)
    )
    assert slow.timing is not None
    assert fast.timing is not None
    assert slow.timing.update_s == pytest.approx(slow.timing.rollout_s + slow.timing.training_s)
    assert slow.timing.update_s == pytest.approx(2 * fast.timing.update_s)
    assert slow.gpus == 3
    assert slow.largest_gpu == "sampler + scorer"
    assert slow.timing.cost_per_1000_images == pytest.approx(1000 / 8 * slow.timing.update_s / 3600 * 3 * 3.0)
    overlapped = make_plan(configured(*ON_GPUS, "align.max_staleness=1"), rates=Rates(rollout=1e12, training=1e12))
    assert overlapped.timing is not None
    assert overlapped.timing.update_s < slow.timing.update_s
    assert make_plan(config).timing is None, "nothing was measured"


def test_what_travels_is_what_the_records_hold() -> None:
    config = configured("cluster.learners=2")
    traffic = make_plan(config).traffic
    images, latents, trained = 8, 16 * 16 * 16 * 4, 2_105_344
    assert traffic.weights == trained
    assert traffic.images == images * 3 * 64 * 64
    assert traffic.between_learners == trained, "an all-reduce of two ranks sends and receives a half each"
    steps = config.align.window_size
    assert traffic.trajectories >= images * (2 * steps * latents + 6 * 16 * 16 * 4)


def test_a_setting_is_named_that_makes_a_run_fit_and_it_does() -> None:
    config = configured(*ON_GPUS, "align.micro_batch_size=8")
    plan = make_plan(config)
    machine = Machine(gpus=3, gpu_bytes=plan.largest_gpu_bytes - 1)
    assert not judge(config, plan, Machine(gpus=3, gpu_bytes=plan.largest_gpu_bytes)).problems
    (problem,) = judge(config, plan, machine).problems
    settings = [word for word in problem.split() if word.startswith("align.")]
    assert settings
    assert "would make it fit" in problem
    mended = load_config(None, (*SMALL, *ON_GPUS, "align.micro_batch_size=8", *settings))
    assert make_plan(mended).largest_gpu_bytes <= plan.largest_gpu_bytes - 1
    with pytest.raises(UserError, match="would make it fit"):
        refuse(judge(config, plan, machine))


@pytest.mark.slow
def test_what_no_setting_mends_is_told() -> None:
    config = configured(*ON_GPUS)
    plan = make_plan(config)
    (hopeless,) = judge(config, plan, Machine(gpu_bytes=1000)).problems
    assert "a larger GPU, or a smaller model" in hopeless
    (crowded,) = judge(config, plan, Machine(host_bytes=1000)).problems
    assert "host memory" in crowded


def test_a_run_that_cannot_fit_this_machine_is_refused_at_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured("prompts.size_px=64")
    assert "fit anywhere" in check_room(config, None, is_here=True)
    monkeypatch.setattr("rlhf.alignment.planning.verdict.COUNTED_FROM", 0)
    monkeypatch.setattr(Machine, "here", lambda: Machine(gpus=0, host_bytes=1000))
    with pytest.raises(UserError, match=r"^tiny: .*host memory"):
        check_room(config, None, is_here=True)
    assert "not compared with the cluster's memory" in check_room(config, None, is_here=False)


def test_zero_3_refuses_weights_that_it_cannot_split(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionInpaintPipeline"}')
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").touch()
    config = configured("align.zero_stage=3", f"model.path={tmp_path}")
    with pytest.raises(UserError, match="save the pipeline again with save_pretrained, or set a lower stage"):
        check_splits(config)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").touch()
    check_splits(config)


def test_rates_are_read_from_the_gpu_benchmark(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    shares = {"sd_rollout": 0.5, "sd_training": 0.25}
    parts = {part: {"as in align": {"utilisation": {"median": share}}} for part, share in shares.items()}
    file.write_text(json.dumps({"products_per_s": {"bf16": 8e14}, "parts": parts}))
    assert read_rates(file, "bf16") == Rates(rollout=4e14, training=2e14)
    with pytest.raises(UserError, match=r"no rates in fp32 .*--tflops"):
        read_rates(file, "fp32")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--set", "model.precision=fp8"), "model.precision: Input should be 'auto', 'fp32' or 'bf16'"),
        (("--set", "model.path=/nowhere"), "these configurations are known: stable-diffusion-v1-5"),
        (("--set", "prompts.size_px=63"), "this model paints multiples of 4 px"),
        (("--set", "cluster.gpus_per_actor=1", "--gpus", "2"), "asks for 4 GPUs, and there are 2"),
        (("--gpu-memory-gb", "80"), "no process of this run asks for a GPU"),
        (("--tflops", "5", "--rates", "x.json"), "leave one out"),
    ],
)
def test_bad_input_is_told_with_a_remedy(words: tuple[str, ...], message: str) -> None:
    done = rlhf("plan", *words)
    assert done.returncode == 2
    assert message in done.stderr


def test_the_command_prints_a_table_or_json() -> None:
    words = ("plan", "--set", "cluster.gpus_per_actor=1", "--gpus", "4", "--gpu-memory-gb", "24", "--tflops", "1")
    table = rlhf(*words)
    assert table.returncode == 0
    assert "it fits" in table.stdout
    assert all(role in table.stdout for role in ("sampler", "scorer", "learner", "time:"))
    record = json.loads(rlhf(*words, "--json").stdout)
    assert [own["role"] for own in record["processes"]] == ["sampler", "scorer", "learner"]
    assert all(own["gpu_bytes"] > 1e9 for own in record["processes"])


@pytest.mark.slow
def test_stable_diffusion_at_full_size_is_counted_without_weights() -> None:
    config = load_config(
        None,
        ("model.path=stable-diffusion-v1-5", "model.precision=bf16", "prompts.size_px=512", "align.trainable=full"),
    )
    plan = make_plan(config, rates=Rates(rollout=1.0, training=1.0))
    learner = need_of(plan, "learner")
    assert learner.parameters == 859_535_364
    assert learner.device["optimizer"] == 8 * 859_535_364
    assert learner.device["passes"] == pytest.approx(22.2e9, rel=0.02)
    assert plan.timing is not None
    images, steps, forward = 64, 2, 0.803e12
    assert plan.timing.training_s / images / steps == pytest.approx(2.47e12 + forward, rel=0.01)
