"""Compares a plan's bytes with measured ones: `python -m benchmarks.plan_memory [--px 512] [--images 1]`.

One training pass of stable-diffusion-inpainting at full size with random weights, forward and backward with LoRA, in
float32 on the CPU. Measured are the growth of this process's resident memory to its peak, and the bytes of PyTorch's
allocator, beside what `rlhf plan` counts on the meta device.
"""

import argparse
import gc
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.full_size_models import SD, build_policy
from rlhf.alignment.planning.model_costs import count_model
from rlhf.config.run_config import AlignConfig, ModelConfig
from rlhf.diffusion.policy import make_trainable


def allocated_peak(run: Callable[[], object]) -> int:
    """The most that PyTorch's own allocator held at once during a call, beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def resident_bytes(key: str) -> int:
    """This process's resident memory: now (VmRSS), or at its peak (VmHWM)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--px", type=int, default=512)
    parser.add_argument("--images", type=int, default=1)
    given = parser.parse_args()
    align = AlignConfig(
        samples_per_prompt=given.images, micro_batch_size=given.images, prompts_per_update=2, algorithm="prefpaint"
    )
    costs = count_model(ModelConfig(path="stable-diffusion-v1-5"), align, (given.px, given.px), "fp32")
    gc.collect()
    before = resident_bytes("VmRSS")
    policy = build_policy(SD, torch.device("cpu"), "fp32")
    make_trainable(policy, "lora", rank=align.lora_rank, targets=None, seed=0)
    trained = [parameter for parameter in policy.network.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    side = given.px // 8
    latents, condition = torch.randn(given.images, 4, side, side), torch.randn(given.images, 5, side, side)
    timestep = torch.zeros(given.images, dtype=torch.long)
    allocated = allocated_peak(lambda: policy.predict(latents, timestep, condition).sum().backward())
    measured = resident_bytes("VmHWM") - before
    held = costs.frozen_bytes + costs.vae_bytes + 8 * costs.trained
    planned = held + costs.training.peak_bytes
    print(f"{given.images} image(s) of {given.px} px: resident memory grew by {measured / 1e9:.2f} GB")
    print(f"planned {planned / 1e9:.2f} GB: {held / 1e9:.2f} held, {costs.training.peak_bytes / 1e9:.2f} in the pass")
    print(f"resident / planned: {measured / planned:.3f}")
    share = allocated / costs.training.peak_bytes
    print(f"the pass by PyTorch's allocator: {allocated / 1e9:.3f} GB, {share:.3f} of the plan")


if __name__ == "__main__":
    main()
