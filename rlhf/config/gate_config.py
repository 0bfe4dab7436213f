"""Limits that a policy must pass before it answers under a name."""

from typing import Annotated

from pydantic import Field

from rlhf.config.config_types import Section

Ratio = Annotated[float, Field(ge=0.0, lt=1.0)]


class GateConfig(Section):
    """Limits of `rlhf promote`, each for the lower end of a 95 % interval.

    The limits of sharpness and diversity are chosen, not derived: a loss of a fifth. Sound runs lost at most 4 %; a run
    with its LoRA scaled by 12 lost a tenth of its diversity, with a lower end of 0.64. The limits compare with the
    policy that the name serves now, so a series of promotions may lose more.
    """

    min_win_rate: Ratio = 0.5
    """WinRate by the gold judge; must be exceeded."""
    min_sharpness_ratio: Ratio = 0.8
    """Sharpness inside holes against the policy in place; must be exceeded: fills that blur win marks cheaply."""
    min_diversity_ratio: Ratio = 0.8
    """Difference between a prompt's samples against the policy in place; must be exceeded."""
    min_photographs: Annotated[int, Field(ge=6)] = 6
    """Least number of photographs; fewer than 6 have no interval."""
