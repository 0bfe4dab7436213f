"""DeepSpeed's engine around the network of a learner rank."""

import os
from argparse import Namespace
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from rlhf.alignment.training_checkpoint import TAG
from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.policy import Policy


def prepare_deepspeed(device: torch.device) -> None:
    """Called before anything of DeepSpeed starts."""
    if device.type == "cpu":
        import deepspeed.ops

        # Otherwise deepspeed compiles a shared-memory collective at start (50 s, needs a compiler).
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.setdefault("LOCAL_RANK", "0")


def start_deepspeed(
    policy: Policy, parameters: list, config: AlignConfig, micro_batches: int, *, is_resized: bool = False
) -> Any:
    """Wraps the policy's network, which trains `parameters`, in an engine, on GPU or CPU.

    The optimizer is PyTorch's AdamW, since DeepSpeed would compile its own (a minute or two).
    """
    import deepspeed

    prepare_deepspeed(policy.device)
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    settings = _settings(policy, policy.network, config) | {
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": config.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "checkpoint": {"load_universal": is_resized},
    }
    engine, *_ = deepspeed.initialize(
        model=policy.network, model_parameters=parameters, optimizer=optimizer, config=settings
    )
    return engine


def start_frozen(policy: Policy, network: torch.nn.Module, config: AlignConfig) -> Any:
    """Wraps a frozen network that is split over the ranks: each layer is gathered when it computes."""
    import deepspeed

    engine, *_ = deepspeed.initialize(model=network, config=_settings(policy, network, config))
    return engine


def _settings(policy: Policy, network: torch.nn.Module, config: AlignConfig) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "zero_optimization": _zero_settings(network, config.zero_stage),
        # On a GPU the engine's autocast replaces the family's. No modules are named, since gradients of named
        # modules would be averaged in bfloat16.
        "torch_autocast": {
            "enabled": policy.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        "steps_per_print": 10**9,
    }


def _zero_settings(network: torch.nn.Module, stage: int) -> dict[str, Any]:
    """At stage 3 no parameter stays gathered, and few more than the largest layer's are at any time.

    DeepSpeed's own limits are counts of parameters, which models of less than a billion never reach.
    """
    if stage < 3:
        return {"stage": stage}
    largest = max(sum(count_numbers(p) for p in m.parameters(recurse=False)) for m in network.modules())
    return {
        "stage": stage,
        "stage3_param_persistence_threshold": 0,
        "stage3_max_live_parameters": largest,
        "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": 0,
        "reduce_bucket_size": largest,
        # DeepSpeed's own linear layer adds the bias after rounding: in bf16 a learner would not compute like a sampler.
        "memory_efficient_linear": False,
    }


def count_numbers(parameter: Any) -> int:
    """Number of elements of a parameter, also of one that is split over the ranks."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def make_universal(checkpoint: Path, out: Path) -> Path:
    """Converts a ZeRO checkpoint, in `out`, for any number of ranks; each rank makes its own copy."""
    from deepspeed.checkpoint.ds_to_universal import main

    arguments = Namespace(
        input_folder=str(checkpoint / TAG),
        output_folder=str(out / "universal"),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with Path(os.devnull).open("w") as silence, redirect_stdout(silence):
        main(arguments)
    return out
