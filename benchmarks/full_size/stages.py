"""The stages of `benchmarks.full_size`: the commands that a user types, and the settings that they read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu import full_size_models as models
from rlhf.data.photographs import choose_photograph_folders

STEPS, SAMPLES = 4, 2
TRAINING_PHOTOGRAPHS = 10
"""The reward needs three in part A, and pictures of five in part B; fewer are refused as collapsed features."""
PORT = 8790


@dataclass(frozen=True, kw_only=True)
class Size:
    """Architectures and side of the images."""

    px: int
    pipeline: models.Architecture
    text: Mapping[str, int]
    vision: Mapping[str, int]


SIZES = {
    "full": Size(px=512, pipeline=models.SD, text=models.CLIP_TEXT, vision=models.CLIP_VISION),
    "tiny": Size(px=64, pipeline=models.TINY_SD, text=models.TINY_TEXT, vision=models.TINY_VISION),
}


def make_models(size: Size, out: Path) -> None:
    """Writes the pipeline, the vision tower, and folders of the package's photographs to train and test with."""
    models.save_pipeline(size.pipeline, size.text, out / "pipeline")
    models.build_vision_tower(size.vision).save_pretrained(out / "clip")
    for name, folder, count in zip(
        ("photographs", "test_photographs"),
        choose_photograph_folders("full_size", None, None),
        (TRAINING_PHOTOGRAPHS, 1),
        strict=True,
    ):
        (out / name).mkdir(exist_ok=True)
        for photograph in sorted(folder.glob("*.jpg"))[:count]:
            (out / name / photograph.name).write_bytes(photograph.read_bytes())


def settings(size: Size, out: Path) -> dict[str, Any]:
    """Returns the run file: the least work in which every stage does all that it does."""
    return {
        "model": {"path": str(out / "pipeline"), "device": "cpu", "precision": "bf16"},
        "prompts": {"size_px": size.px, "crops_per_photograph": 1},
        "candidates": {
            "samples_per_prompt": SAMPLES,
            "num_inference_steps": [STEPS],
            "micro_batch_size": SAMPLES,
        },
        "annotators": {"count": 2, "marks_per_candidate": 2},
        "reward": {
            "backbone": str(out / "clip"),
            "frozen_share": 1.0,
            "decorrelation": 1.0,
            "epochs": 1,
            "learning_rate": 1e-4,
            "micro_batch_size": 4,
            "coverage": 0.5,
            "parts": [0.3, 0.5, 0.1, 0.1],
        },
        "align": {
            "updates": 1,
            "prompts_per_update": 1,
            "samples_per_prompt": SAMPLES,
            "micro_batch_size": SAMPLES,
            "num_inference_steps": STEPS,
            "window_size": 1,
            "window_range": 2,
            "gradient_checkpointing": True,
            "checkpoint_every": 1,
            "keep_last": 1,
        },
        "cluster": {"samplers": 1, "scorers": 1, "threads_per_sampler": 1, "threads_per_learner": 1},
        "evaluate": {"samples_per_prompt": 1, "num_inference_steps": STEPS, "micro_batch_size": 1},
    }


WHOLE = (
    *("--set", "align.trainable=full", "--set", "align.learning_rate=1e-6"),
    # A KL would need a copy of the base network, and an average a copy of the trained one.
    *("--set", "align.kl_weight=0", "--set", "align.average_decay=0"),
)


def stage_commands(out: Path) -> dict[str, list[str]]:
    """Returns the arguments of `rlhf` by stage, in order; `serve` keeps running until it is stopped."""
    at: Callable[[str], str] = lambda name: str(out / name)  # noqa: E731
    config = ["--config", at("run.yaml")]
    training = ["--prompts", at("prompts"), "--reward", at("reward")]
    dumped = ["--dump-rollouts", at("rollouts"), "--rollouts-only"]
    return {
        "prompts": ["prompts", "--images", at("photographs"), "--split", "train", "--out", at("prompts"), *config],
        "test prompts": [
            *("prompts", "--images", at("test_photographs"), "--split", "test", "--out", at("test_prompts")),
            *config,
        ],
        "candidates": ["candidates", "--prompts", at("prompts"), "--out", at("candidates"), *config],
        "annotate": ["annotate", at("candidates"), "--simulated", "--out", at("annotations"), *config],
        "reward": ["reward", at("prompts"), at("candidates"), at("annotations"), "--out", at("reward"), *config],
        "align, LoRA": ["align", *training, "--out", at("align"), *config],
        "evaluate": [
            *("evaluate", "--prompts", at("test_prompts"), "--reward", at("reward")),
            *("--run", at("align"), "--out", at("evaluation"), *config),
        ],
        "export": ["export", at("align/policy-000001"), "--out", at("exported"), *config],
        "serve, one edit": [
            *("serve", f"aligned={at('exported')}", "--reward", at("reward"), "--port", str(PORT), "--num-cpus", "1"),
            *("--device", "cpu", "--precision", "bf16", "--request-timeout-s", "7200"),
        ],
        # Samplers and learner one after the other: together they need more than 24 GB.
        "align, full: rollout": ["align", *training, "--out", at("rolled_out"), *dumped, *config, *WHOLE],
        "align, full: update": ["align", "--replay", at("rollouts"), "--out", at("align_full"), *config, *WHOLE],
    }
