"""Measures which switches pay: each alone, on and off in turn, with the same weights, images and steps.

Unless a row says otherwise, it uses the built-in model `tiny-sd` in float32 and 16 images (2 prompts x 8 samples). A
switch pays if the lower quartile of the ratios (time off over time on, round by round) is above 1.
"""

import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch._inductor.utils import fresh_cache

from benchmarks.measure import Figures, Spread, interleave, peak_megabytes, ratios, show, spread
from benchmarks.suite.joined_steps import make_update
from benchmarks.suite.rollout import ALIGN, KEY, MODEL, PROMPTS, SAMPLES, SIDE, STEPS, make_prompts
from rlhf.alignment.algorithms import grpo
from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.policy import Policy, load_policy, make_trainable, update_merged
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.trained_weights import load_trainable_state, trainable_state
from rlhf.diffusion.trajectories import RolloutPlan

CHANNELS = 4
"""Channels of the latents."""
IMAGES = PROMPTS * SAMPLES
FURTHER = {
    "differs_by": "differs by {:.0e}",
    "first_call_s": "first call {:.0f} s",
    "on_mb": "{:.2g} MB on",
    "off_mb": "{:.2g} MB off",
    "on_added_mb": "memory {:.0f} MB on",
    "off_added_mb": "{:.0f} MB off",
}
"""Formats of further figures in the table."""
Run = Callable[[], object]
Prediction = Callable[[], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The same work with a switch on and off."""

    on: Run
    off: Run
    figures: Figures = field(default_factory=dict)
    """Further figures that the switch changes, by the keys of FURTHER."""


@dataclass(frozen=True, kw_only=True)
class Switch:
    """A switch, and the project's choice."""

    make: Callable[[], Pair]
    is_kept: bool
    """Whether `rlhf align` has it on by default."""
    reason: str
    needs_cuda: bool = False


def make_latents(policy: Policy, channels: int) -> torch.Tensor:
    """Returns normal noise [16, channels, h, w] of a fixed seed."""
    edge = SIDE // policy.family.pipeline.vae_scale_factor
    return torch.randn(IMAGES, channels, edge, edge, generator=torch.Generator().manual_seed(0)).to(policy.device)


def forward(policy: Policy, *, is_merged: bool = False) -> Prediction:
    """Returns one forward pass of the UNet."""
    latents = make_latents(policy, CHANNELS)
    condition = make_latents(policy, CHANNELS + 1)
    timestep = torch.full((IMAGES,), 500, device=policy.device)
    predict = policy.predict_untrained if is_merged else policy.predict
    return torch.no_grad()(lambda: predict(latents, timestep, condition))


def compare(on: Prediction, off: Prediction, **figures: float) -> Pair:
    """Pairs two ways to compute the same tensor, with their relative difference in norm."""
    expected = off()
    differs = float((on() - expected).norm() / expected.norm())
    return Pair(on=on, off=off, figures={"differs_by": differs} | figures)


def use_bf16() -> Pair:
    """Runs the UNet's forward pass under autocast."""
    return compare(forward(load_policy(ModelConfig(path=MODEL.path, precision="bf16"))), forward(load_policy(MODEL)))


def order_unet() -> Pair:
    """Stores the UNet's weights with channels last."""
    off = load_policy(MODEL)
    off.network.to(memory_format=torch.contiguous_format)
    return compare(forward(load_policy(MODEL)), forward(off))


def order_vae() -> Pair:
    """Stores the VAE's weights and inputs with channels last."""

    def decode(memory_format: torch.memory_format) -> Prediction:
        policy = load_policy(MODEL)
        latents = make_latents(policy, CHANNELS).to(memory_format=memory_format)
        policy.family.pipeline.vae.to(memory_format=memory_format)
        return torch.no_grad()(lambda: policy.family.pipeline.vae.decode(latents).sample)

    return compare(decode(torch.channels_last), decode(torch.contiguous_format))


def compile_blocks() -> Pair:
    """Compiles the UNet's transformer blocks, as `rlhf serve --compile` does, with an empty compiler cache."""
    compiled = load_policy(MODEL)
    compiled.network.compile_repeated_blocks(dynamic=True)
    on, started = forward(compiled), time.perf_counter()
    with fresh_cache():
        on()
    return compare(on, forward(load_policy(MODEL)), first_call_s=time.perf_counter() - started)


def merge_adapters() -> Pair:
    """Runs the UNet with the LoRA merged into its weights; off, it runs with adapter layers."""
    policy = load_policy(MODEL)
    make_trainable(policy, "lora", rank=ALIGN.lora_rank, targets=ALIGN.lora_targets, seed=0, keeps_merged=True)
    load_trainable_state(policy.network, {name: t + 0.01 for name, t in trainable_state(policy.network).items()})
    update_merged(policy)
    return compare(forward(policy, is_merged=True), forward(policy))


def decode_in_parts() -> Pair:
    """Decodes all latents in parts that stay in the cache; off, all in one pass."""
    policy = load_policy(MODEL)
    latents, vae = make_latents(policy, CHANNELS), policy.family.pipeline.vae
    return Pair(
        on=lambda: policy.family.decode(latents),
        off=torch.no_grad()(lambda: vae.decode(latents / vae.config.scaling_factor).sample),
    )


def encode_once() -> Pair:
    """Encodes masked images once per prompt; off, once per sample."""
    policy, prompts = load_policy(MODEL), make_prompts()
    repeated = [prompt for prompt in prompts for _ in range(SAMPLES)]
    return Pair(on=lambda: policy.family.encode_prompts(prompts), off=lambda: policy.family.encode_prompts(repeated))


def keep_trained() -> Pair:
    """Serialises only the trained transitions of a rollout; off, all of them.

    All steps are random, so that all have a log-prob.
    """
    policy, prompts, every = load_policy(MODEL), make_prompts(), tuple(range(STEPS))
    some = grpo.plan_rollout(ALIGN, 0, 0).trained_steps
    plan = RolloutPlan(num_inference_steps=STEPS, eta=1.0, stochastic_steps=frozenset(every), trained_steps=some)

    def pack(plan: RolloutPlan) -> bytes:
        return pickle.dumps(rollout(policy, prompts, plan, sample_indices=range(SAMPLES), seed_key=KEY).trajectories)

    whole = replace(plan, trained_steps=every)
    megabytes = {"on_mb": len(pack(plan)) / 1e6, "off_mb": len(pack(whole)) / 1e6}
    return Pair(on=lambda: pickle.loads(pack(plan)), off=lambda: pickle.loads(pack(whole)), figures=megabytes)


def join_training() -> Pair:
    """Trains the transitions of two steps in one pass of 32 rows; off, in two passes of 16. Both in plain PyTorch."""
    alone = {name: peak_megabytes("benchmarks.suite.joined_steps", name)["median"] for name in ("joined", "apart")}
    return Pair(
        on=make_update("joined"),
        off=make_update("apart"),
        figures={"on_added_mb": alone["joined"], "off_added_mb": alone["apart"]},
    )


def pin_transfers() -> Pair:
    """Copies micro-batches to the GPU from pinned memory during the computation; off, from other memory before it."""
    policy = load_policy(ModelConfig(path=MODEL.path, device="cuda"))
    timestep = torch.full((IMAGES,), 500, device=policy.device)
    batches = [make_latents(policy, 2 * CHANNELS + 1).cpu() for _ in range(8)]
    copying, computing = torch.cuda.Stream(), torch.cuda.current_stream()

    def predict(moved: torch.Tensor) -> None:
        policy.predict(moved[:, :CHANNELS], timestep, moved[:, CHANNELS:])

    @torch.no_grad()
    def pinned() -> None:
        for batch in batches:
            with torch.cuda.stream(copying):
                moved = batch.pin_memory().to(policy.device, non_blocking=True)
            computing.wait_stream(copying)
            moved.record_stream(computing)
            predict(moved)

    @torch.no_grad()
    def plain() -> None:
        for batch in batches:
            predict(batch.to(policy.device))

    return Pair(on=pinned, off=plain)


SWITCHES: Mapping[str, Switch] = {
    "bf16, UNet forward": Switch(
        make=use_bf16, is_kept=False, reason="settings for GPUs and `rlhf serve` there have it"
    ),
    "channels_last, UNet forward": Switch(
        make=order_unet,
        is_kept=True,
        reason="where it is not trained: DeepSpeed takes no such weights",
    ),
    "channels_last, VAE decoder": Switch(make=order_vae, is_kept=True, reason="it takes the memory that is planned"),
    "compiled blocks, UNet forward": Switch(
        make=compile_blocks, is_kept=False, reason="every process and policy compiles anew; `rlhf serve --compile`"
    ),
    "LoRA merged, UNet forward": Switch(
        make=merge_adapters, is_kept=True, reason="in steps that are not trained; in others the ratio must start at 1"
    ),
    "decoding in parts of 16 images": Switch(
        make=decode_in_parts, is_kept=True, reason="on a CPU, where what a layer makes then stays in the cache"
    ),
    "conditions once per prompt": Switch(make=encode_once, is_kept=True, reason="8 samples share them"),
    "only trained transitions kept, rollout": Switch(
        make=keep_trained, is_kept=True, reason="steps are drawn before the rollout; the rest would travel unused"
    ),
    "two steps in one training pass": Switch(
        make=join_training,
        is_kept=False,
        reason="twice the activations; the ratio is exactly 1 only in passes shaped as the rollout's",
    ),
    "pinned, overlapped transfers": Switch(
        make=pin_transfers, is_kept=False, reason="pinning copies what the object store holds", needs_cuda=True
    ),
}


def finished(run: Run) -> Run:
    """Returns the run with a wait until the GPU has finished."""

    def wait() -> None:
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return wait


def measure_switch(switch: Switch, rounds: int) -> Figures:
    """Measures the time off over the time on, or tells why it is not measured."""
    if switch.needs_cuda and not torch.cuda.is_available():
        return {"left_out": "needs CUDA"}
    pair = switch.make()
    seconds = interleave({"on": finished(pair.on), "off": finished(pair.off)}, rounds)
    milliseconds = {f"{name}_ms": spread([1e3 * s for s in found]) for name, found in seconds.items()}
    times = {"off_over_on": ratios(seconds["off"], seconds["on"])} | milliseconds
    return times | pair.figures | {"kept": switch.is_kept, "why": switch.reason}


def measure(rounds: int) -> Figures:
    """Measures all switches."""
    return {name: measure_switch(switch, rounds) for name, switch in SWITCHES.items()}


def judge(ratio: Spread) -> str:
    """Returns whether a switch pays, by the quartiles of its ratios."""
    if ratio["low"] > 1:
        return "yes"
    return "costs" if ratio["high"] < 1 else "no"


def format_table(records: Mapping[str, Figures]) -> str:
    """Formats a row per switch, as Markdown."""
    rows: list[tuple[str, ...]] = [("switch", "off / on", "ms on", "ms off", "pays", "default", "")]
    for name, record in records.items():
        if "left_out" in record:
            rows.append((name, "", "", "", "not measured", "", record["left_out"]))
            continue
        further = [shown.format(record[key]) for key, shown in FURTHER.items() if key in record]
        times = (show(record["off_over_on"]), *(f"{record[key]['median']:.3g}" for key in ("on_ms", "off_ms")))
        default = "on" if record["kept"] else "off"
        rows.append((name, *times, judge(record["off_over_on"]), default, "; ".join([record["why"], *further])))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("-" * width for width in widths))
    cells = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
