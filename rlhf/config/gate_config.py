"""What a policy must show before it answers under a name."""

from typing import Annotated

from pydantic import Field

from rlhf.config.config_types import Section

Ratio = Annotated[float, Field(ge=0.0, lt=1.0)]


class GateConfig(Section):
    """Limits of `rlhf promote`, each for the lower end of a 95 % interval.

    Those of sharpness and diversity were chosen, not derived: a fifth lost. Sound runs lost at most 4 %, the lower ends
    being at least 0.94; one whose LoRA was scaled by 12 lost a tenth of its diversity, the lower end at 0.72. They are
    against what the name serves now, so a row of promotions may lose more.
    """

    min_win_rate: Ratio = 0.5
    """WinRate by the gold judge; must be exceeded."""
    min_sharpness_ratio: Ratio = 0.8
    """Sharpness inside holes against the policy in place; must be exceeded: fills that blur win marks cheaply."""
    min_diversity_ratio: Ratio = 0.8
    """Difference between a prompt's samples against the policy in place; must be exceeded."""
    min_photographs: Annotated[int, Field(ge=6)] = 6
    """Photographs that the intervals rest on; fewer than 6 have no interval."""
