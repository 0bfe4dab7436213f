"""The run files load, and the sums in their comments are those of their numbers."""

from pathlib import Path

import pytest

import rlhf
from actors.resources import ROLES, resources_of
from rlhf.alignment.planning.idle_shares import ImageCosts, simulate
from rlhf.alignment.planning.machine import Machine
from rlhf.alignment.planning.plan import make_plan
from rlhf.alignment.planning.verdict import judge
from rlhf.config.config_files import load_config
from rlhf.config.run_config import RunConfig
from rlhf.diffusion.families.written_down import find_written, read_written
from rlhf.errors import UserError

RUNS = Path(rlhf.__file__).parents[1] / "cluster" / "runs"
# File: images and micro-batches an update, micro-batches per sampler and per learner, GPUs.
SUMS = {
    "demo": (128, 8, 4, 8, 0),
    "rounds": (128, 8, 4, 8, 0),
    "long": (128, 8, 4, 8, 0),
    "laptop": (64, 4, 2, 4, 0),
    "tour": (64, 4, 2, 4, 0),
    "one_node_8gpu": (384, 24, 4, 12, 8),
    "multi_node_64gpu": (384, 96, 2, 6, 64),
    "spot": (320, 20, 2, 5, 14),
    "prefpaint_paper": (64, 16, 16 / 6, 8, 8),
    "trust_study": (64, 4, 2, 4, 0),
    "flux_fill_1gpu": (32, 8, 8, 8, 0.66),
    "klein_1gpu": (32, 8, 8, 8, 0.66),
    "flux_fill_8gpu": (192, 48, 12, 12, 8),
    "klein_8gpu": (192, 48, 12, 12, 8),
    "qwen_image_1gpu": (32, 8, 8, 8, 0.66),
    "qwen_image_8gpu": (192, 48, 12, 12, 8),
}
GPU_RUNS = ("one_node_8gpu", "multi_node_64gpu", "spot", "prefpaint_paper")
PLANNED_RUNS = tuple(name for name in SUMS if name.startswith(("flux_fill", "klein", "qwen_image")))


def stated_costs(config: RunConfig) -> ImageCosts:
    """In forward passes: 3 for the VAE, 2 backward; CLIP takes a quarter of a pass of SD 1.5, SDXL's pass 8 of them."""
    align = config.align
    base, again = float(align.kl_weight > 0), float(align.gradient_checkpointing)
    score = 0.25 / (8.0 if config.prompts.size_px > 512 else 1.0)
    return ImageCosts(step=1.0, ends=3.0, score=score, train=3.0 + base + again)


def test_every_run_file_is_checked_here() -> None:
    assert {path.stem for path in RUNS.glob("*.yaml")} == set(SUMS)


@pytest.mark.parametrize("name", SUMS)
def test_a_run_file_loads_and_its_sums_are_right(name: str) -> None:
    config = load_config(RUNS / f"{name}.yaml")
    align, cluster = config.align, config.cluster
    images = align.prompts_per_update * align.samples_per_prompt
    chunks = images // align.micro_batch_size
    whole = (cluster.samplers + cluster.learners) * cluster.gpus_per_actor
    assert (images, chunks, chunks / cluster.samplers, chunks / cluster.learners, whole) == SUMS[name]


@pytest.mark.parametrize("name", GPU_RUNS)
def test_a_gpu_run_file_adds_up_its_gpus_and_lets_no_role_wait_for_long(name: str) -> None:
    config = load_config(RUNS / f"{name}.yaml")
    cluster = config.cluster
    asked = [resources_of(cluster, role)["GPU"] for role in ROLES]
    counts = [getattr(cluster, f"{role}s") for role in ROLES]
    total = sum(count * gpus for count, gpus in zip(counts, asked, strict=True))
    sampler, scorer, learner = asked
    comment = (
        f"{counts[0]} samplers{' (spot)' * (name == 'spot')} x {sampler:g} + {counts[1]} scorer x {scorer:g} + "
        f"{counts[2]} learners = {total:.4g} of {SUMS[name][-1]};"
    )
    assert comment in (RUNS / f"{name}.yaml").read_text()
    assert sampler > 0.5, "no two samplers share a GPU"
    assert sampler + scorer <= 1, "the scorer fits beside a sampler"
    idle = simulate(config, stated_costs(config)).idle
    assert -0.05 <= idle["scorer"] <= 0.15, "its fraction of a GPU is what it uses"
    assert idle["sampler"] <= 0.15
    assert idle["learner"] <= 0.15


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANNED_RUNS)
def test_a_run_file_of_a_large_model_fits_by_its_plan_and_its_comment_has_the_plans_sizes(name: str) -> None:
    config, gpus = load_config(RUNS / f"{name}.yaml"), int(name[-4])
    plan = make_plan(config, gpus=gpus)
    assert not judge(config, plan, Machine(gpus=gpus, gpu_bytes=80 * 10**9)).problems
    text = (RUNS / f"{name}.yaml").read_text()
    for need in plan.processes:
        if need.role != "scorer":
            assert f"{need.gpu_bytes / 1e9:.1f} GB" in text
    assert f"{plan.largest_gpu_bytes / 1e9:.1f} GB" in text
    if gpus == 8:
        assert max(plan.idle_shares["sampler"], plan.idle_shares["learner"]) <= 0.25


@pytest.mark.parametrize("name", PLANNED_RUNS)
def test_a_run_file_of_a_large_model_names_its_licence_and_a_model_that_is_written_down(name: str) -> None:
    path = load_config(RUNS / f"{name}.yaml").model.path
    place = find_written(path)
    assert place is not None
    assert read_written()[place.name].licence in (RUNS / f"{name}.yaml").read_text().replace("\n# ", " ")


def test_the_papers_constants_are_the_papers() -> None:
    config = load_config(RUNS / "prefpaint_paper.yaml")
    align, reward = config.align, config.reward
    assert (align.algorithm, align.num_inference_steps, align.trained_steps, align.eta) == ("prefpaint", 50, 5, 1.0)
    assert (align.learning_rate, align.weight_decay, align.clip_range) == (2e-6, 0.01, 1e-4)
    assert (align.advantage_clip, align.trainable, align.kl_weight) == (10.0, "full", 0.0)
    assert (reward.trust_k, reward.trust_b, reward.frozen_share, reward.feature_dim) == (0.05, 0.7, 0.7, 256)
    assert (reward.learning_rate, reward.micro_batch_size, config.candidates.samples_per_prompt) == (1e-5, 5, 3)


def test_sdxl_on_one_node_as_its_comment_says() -> None:
    text = (RUNS / "one_node_8gpu.yaml").read_text().replace("\n# ", " ")
    words = text.split("SDXL inpainting on the same node", 1)[1].split(";", 1)[0].split()
    overrides = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    config = load_config(RUNS / "one_node_8gpu.yaml", tuple(overrides))
    assert (config.model.path, config.prompts.size_px) == ("diffusers/stable-diffusion-xl-1.0-inpainting-0.1", 1024)
    assert config.align.prompts_per_update * config.align.samples_per_prompt // config.align.micro_batch_size == 24


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("samplers:", "smaplers:", r"run\.yaml:\d+: cluster\.smaplers: unknown key; did you mean cluster\.samplers\?"),
        ("learners: 2", "learners: two", r"run\.yaml:\d+: cluster\.learners: .*integer"),
        ("learners: 2", "learners: 5", "24 micro-batches, which 5 learners cannot share evenly"),
    ],
)
def test_a_mistake_in_a_run_file_is_told(right: str, wrong: str, message: str, tmp_path: Path) -> None:
    text = (RUNS / "one_node_8gpu.yaml").read_text()
    assert right in text
    (tmp_path / "run.yaml").write_text(text.replace(right, wrong))
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / "run.yaml")
