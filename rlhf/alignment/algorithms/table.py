"""The algorithms by the name that `align.algorithm` gives."""

from rlhf.alignment.algorithms import awm, dpo, grpo, guard, mixgrpo, nft, prefpaint
from rlhf.alignment.objective import Algorithm
from rlhf.config.run_config import AlignConfig


def algorithm_of(config: AlignConfig) -> Algorithm:
    """The one that the configuration names."""
    modules = {
        "awm": awm,
        "dpo": dpo,
        "grpo": grpo,
        "guard": guard,
        "mixgrpo": mixgrpo,
        "nft": nft,
        "prefpaint": prefpaint,
    }
    return modules[config.algorithm].ALGORITHM
