"""DDIM in the place of the scheduler that a pipeline's folder names: where it means the same, and where it does not."""

import inspect
import sys
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import diffusers

from rlhf.errors import UserError

EXACT = ("DDIMScheduler", "DDIMParallelScheduler")
REPLACED = (
    "PNDMScheduler",
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "SASolverScheduler",
)
"""Classes that solve the same process for the same networks, so that DDIM samples the same model."""
REPRODUCED: dict[str, tuple[object, ...]] = {
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "timestep_type": ("discrete",),
    "interpolation_type": ("linear",),
    "final_sigmas_type": ("zero", "sigma_min"),
    "thresholding": (False,),
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_dynamic_shifting": (False,),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "shift_terminal": (None,),
    "lambda_min_clipped": (-float("inf"),),
}
"""Values of a scheduler's options with which DDIM passes through its noise levels; other values are refused."""


def ddim_for(kind: str, config: Mapping[str, Any], pipeline: Any, place: str) -> diffusers.DDIMScheduler:
    """DDIM at the noise levels and timesteps of the scheduler that the folder of a pipeline of class `pipeline` names.

    `kind` and `config` are the scheduler's class and configuration. Says once what is replaced. Raises UserError,
    naming `place`, if the class or an option means other levels, or another kind of network.
    """
    where = f"{place}: its {kind}"
    if kind not in EXACT + REPLACED:
        raise UserError(
            f"{where} has other steps than DDIM, which samples here; supported are {', '.join(EXACT + REPLACED)}; "
            "name one of them in model_index.json and scheduler/scheduler_config.json if the model was trained for it"
        )
    try:
        theirs = getattr(diffusers, kind).from_config(config)
        stated = dict(theirs.config)
        options = _in_pipeline(theirs, pipeline)
        _check_options(options, where)
        # Defaults of DDIMScheduler that the other classes do not share.
        silent = {
            "clip_sample": False,
            "timestep_spacing": "linspace",
            "set_alpha_to_one": options.get("final_sigmas_type") != "sigma_min",
        }
        scheduler = diffusers.DDIMScheduler.from_config(silent | options)
    except (NotImplementedError, ValueError, TypeError, IndexError, RuntimeError) as error:
        raise UserError(f"{where} cannot be opened ({error}); mend scheduler/scheduler_config.json") from error
    _check_levels(scheduler, where)
    if scheduler.config.prediction_type == "epsilon" and not bool((scheduler.alphas_cumprod > 0).all()):
        raise UserError(
            f"{where} begins without signal (rescale_betas_zero_snr), where predicted noise tells nothing "
            "(prediction_type `epsilon`); mend scheduler/scheduler_config.json"
        )
    if (note := _describe_replacement(kind, stated, scheduler)) is not None:
        _say_once(f"{place}: {note}")
    return scheduler


def _in_pipeline(scheduler: Any, pipeline: Any) -> dict[str, Any]:
    """The options that a scheduler has in a pipeline of class `pipeline`, which may change them when it is made."""
    parameters = inspect.signature(pipeline.__init__).parameters
    needed = {name: None for name, p in parameters.items() if name != "self" and p.default is p.empty}
    unguarded = {"requires_safety_checker": False} if "requires_safety_checker" in parameters else {}
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # We say ourselves what changes.
        options = dict(pipeline(**needed | {"scheduler": scheduler} | unguarded).scheduler.config)
    # With this list, `from_config` would replace the defaults of the scheduler's class by those of DDIMScheduler.
    options.pop("_use_default_values", None)
    return options


def _check_options(options: Mapping[str, Any], where: str) -> None:
    for option, values in REPRODUCED.items():
        if option in options and options[option] not in values:
            good = " or ".join(f"`{value}`" for value in values if value is not None)
            raise UserError(
                f"{where} has {option} `{options[option]}`, which is not reproduced; "
                f"set it to {good or '`null`'} in scheduler/scheduler_config.json if the model was trained for that"
            )


def _check_levels(scheduler: diffusers.DDIMScheduler, where: str) -> None:
    levels = scheduler.alphas_cumprod
    # False for NaN too, whose steps would paint black pictures.
    if not (len(levels) and ((levels >= 0) & (levels <= 1)).all() and (levels.diff() <= 0).all()):
        raise UserError(
            f"{where} has noise levels that do not fall from 1 to 0 (num_train_timesteps, betas); "
            "mend scheduler/scheduler_config.json"
        )


def _describe_replacement(kind: str, stated: Mapping[str, Any], scheduler: diffusers.DDIMScheduler) -> str | None:
    own = scheduler.config
    if kind not in EXACT:
        levels = f"timesteps `{own.timestep_spacing}`, steps_offset {own.steps_offset}"
        return f"its {kind} is replaced by DDIM with the same training schedule ({levels})"
    if own.timestep_spacing == "linspace":
        return f"each step of its {kind} ends at the next timestep's noise level, which its `linspace` steps miss"
    if stated["steps_offset"] != own.steps_offset:
        return f"its steps_offset {stated['steps_offset']} is taken as {own.steps_offset}, as diffusers' pipeline does"
    return None


@cache
def _say_once(line: str) -> None:
    print(f"model: {line}", file=sys.stderr)
