"""Models of one kind are known in their family's file alone."""

import re
from pathlib import Path

import rlhf

ROOT = Path(rlhf.__file__).parents[1]
KNOWN_TO = ("rlhf/diffusion/families/", "rlhf/diffusion/steps/", "rlhf/diffusion/builtin/")
ONE_KIND = re.compile(r"\bunet\b|UNet|alphas_cumprod|DDIM|in_channels|StableDiffusion\w*Pipeline")


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
