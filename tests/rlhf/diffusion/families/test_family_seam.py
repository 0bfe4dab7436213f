"""Models of one kind are known in their family's file alone."""

import re
from pathlib import Path

import family_cases

import rlhf
from rlhf.diffusion.families.open_family import MODULES

ROOT = Path(rlhf.__file__).parents[1]
KNOWN_TO = ("rlhf/diffusion/families/", "rlhf/diffusion/steps/", "rlhf/diffusion/builtin/")
ONE_KIND = re.compile(
    r"\bunet\b|UNet|alphas_cumprod|DDIM|in_channels|StableDiffusion|Flux|Klein|QwenImage|ZImage|Transformer2D"
    r"|encoder_hidden_states|pooled_projections|img_ids|joint_attention"
)


def test_only_families_and_step_rules_name_parts_of_one_kind_of_model() -> None:
    files = [path for folder in ("rlhf", "actors", "serve") for path in (ROOT / folder).rglob("*.py")]
    outside = [path for path in files if not str(path.relative_to(ROOT)).startswith(KNOWN_TO)]
    found = {
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in outside
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if ONE_KIND.search(line)
    }
    assert found == set()


def test_every_module_of_families_has_a_small_pipeline_in_the_tests() -> None:
    cases = Path(family_cases.__file__).read_text(encoding="utf-8")
    without = {name for name in MODULES.values() if f"from rlhf.diffusion.families.{name} import" not in cases}
    assert without == set(), "add a case for it to tests/support/families/family_cases.py"
