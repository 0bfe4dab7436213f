"""Measures time, memory, floating-point operations and profiles on a GPU, which works asynchronously."""

import gc
import platform
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.full_size_models import Architecture, build_policy
from benchmarks.measure import Figures, describe_machine
from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.families.stable_diffusion import LORA_TARGETS, StableDiffusion
from rlhf.storage.atomic_files import atomic_write_json, atomic_write_text

LEAST_ROUNDS = 3
"""Smallest number of measured rounds."""


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PassClock:
    """Clock of the device time within passes of modules that do not call one another; it does not synchronise."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def _mark(self) -> None:
        if self._device.type == "cuda":
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record()
        else:
            self._marks.append(time.perf_counter())

    def watch(self, module: torch.nn.Module) -> None:
        """Counts the module's forward passes from now on, and those of copies made later."""
        module.register_forward_pre_hook(lambda *_: self._mark())
        module.register_forward_hook(lambda *_: self._mark())

    def timed(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `run` with its calls counted, for backward passes."""

        def marked(*args: Any, **kwargs: Any) -> Any:
            self._mark()
            result = run(*args, **kwargs)
            self._mark()
            return result

        return marked

    def read(self) -> float:
        """Returns the seconds since the last reading; the device must have finished its work."""
        spans = list(zip(self._marks[::2], self._marks[1::2], strict=True))
        self._marks = []
        if self._device.type == "cuda":
            return sum(begin.elapsed_time(end) for begin, end in spans) / 1e3
        return sum(end - begin for begin, end in spans)


def time_rounds(
    run: Callable[[], object], clock: PassClock, device: torch.device, *, rounds: int, limit_s: float
) -> tuple[list[float], list[float]]:
    """Returns the seconds of each call, and the seconds within UNet passes.

    Measures up to `rounds` calls, at least LEAST_ROUNDS, and starts none after `limit_s` seconds. One earlier call is
    not measured. The peak of memory is that of the measured calls.
    """
    run()
    synchronize(device)
    clock.read()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds: list[float] = []
    within: list[float] = []
    while len(seconds) < LEAST_ROUNDS or (len(seconds) < rounds and sum(seconds) < limit_s):
        started = time.perf_counter()
        run()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
        within.append(clock.read())
    return seconds, within


def product_rate(device: torch.device, precision: str, side: int, rounds: int = 9) -> float:
    """Returns the FLOP/s of square matrix products; fp32 runs without TF32, as by PyTorch's default."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b, c = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(3))
    products = 20

    def multiply() -> None:
        for _ in range(products):
            torch.mm(a, b, out=c)

    seconds, _ = time_rounds(multiply, PassClock(device), device, rounds=rounds, limit_s=10)
    return products * 2 * side**3 / float(np.median(seconds))


@cache
def count_flops(architecture: Architecture, px: int, trainable: str, *, backward: bool) -> int:
    """Counts the FLOPs of one image's pass through the UNet, forward or forward and backward, on `meta`.

    `trainable` is none, lora (unmerged) or full. Activations that checkpointing computes again are not counted.
    """
    meta = torch.device("meta")
    policy = build_policy(architecture, meta, "fp32")
    family, unet = policy.family, policy.network
    assert isinstance(family, StableDiffusion)
    if trainable == "lora":
        from peft import LoraConfig

        defaults = AlignConfig()
        unet.add_adapter(LoraConfig(r=defaults.lora_rank, target_modules=list(defaults.lora_targets or LORA_TARGETS)))
    elif trainable == "full":
        unet.requires_grad_(True)
    side = px // family.pipeline.vae_scale_factor
    latents, timestep = torch.empty(1, 9, side, side, device=meta), torch.zeros(1, dtype=torch.long, device=meta)
    with torch.set_grad_enabled(backward), FlopCounterMode(display=False) as counter:
        output = unet(latents, timestep, **family.text_inputs(policy.text, latents[:, :4]), return_dict=False)[0]
        if backward:
            output.sum().backward()
    return counter.get_total_flops()


def memory(device: torch.device) -> Figures:
    """Returns GB in use now and at the peak; empty for a CPU, where they are not counted."""
    if device.type != "cuda":
        return {}
    return {
        "held_gb": torch.cuda.memory_allocated(device) / 1e9,
        "peak_gb": torch.cuda.max_memory_allocated(device) / 1e9,
    }


def release_memory(device: torch.device) -> None:
    """Releases the memory of the last variant, so that the next starts like the first."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def attempt(measure: Callable[[], Figures], device: torch.device) -> Figures:
    """Returns the figures, or the first line of the error: too little memory, or a failure of PyTorch or a package."""
    try:
        figures = measure()
    except torch.OutOfMemoryError as error:
        figures = {"out_of_memory": str(error).splitlines()[0]}
    # A kernel, compiler or package (xformers) does not support the variant; others can still be measured.
    except (RuntimeError, ImportError, ValueError) as error:
        figures = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
    release_memory(device)  # Outside the handler, where no error refers to the memory.
    return figures


def write_profile(run: Callable[[], object], device: torch.device, file: Path, call_s: float) -> None:
    """Writes the operators of one call by their own time on the device, as a table and as JSON.

    `call_s` is the duration of a call without the profiler; a GPU is busy for `kernels_s` of it.
    """
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    is_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]) as profiler:
        run()
        synchronize(device)
    events = profiler.key_averages()
    key = "self_device_time_total" if is_cuda else "self_cpu_time_total"
    operators = [event for event in events if event.device_type == DeviceType.CPU and not event.is_user_annotation]
    operators.sort(key=lambda event: getattr(event, key), reverse=True)
    total = sum(getattr(event, key) for event in operators)
    shares = {event.key: {"share": getattr(event, key) / total, "calls": event.count} for event in operators[:30]}
    figures = {"sorted_by": key, "call_s": call_s, "operators": shares}
    if is_cuda:
        kernels = [event for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
        figures["kernels_s"] = sum(event.self_device_time_total for event in kernels) / 1e6
    atomic_write_text(file, events.table(sort_by=key, row_limit=30))
    atomic_write_json(file.with_suffix(".json"), figures)


def describe_device(device: torch.device) -> Figures:
    """Returns the GPU and the versions of PyTorch, CUDA and Python; on a CPU, the machine."""
    if device.type != "cuda":
        return describe_machine()
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "gpu_memory_gb": properties.total_memory / 1e9,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }
