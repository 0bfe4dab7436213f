"""Writes docs/licences.json, the licences of all required packages: `python docs/generate_licences.py`.

They are read from the installed packages as SPDX expressions: a package gives its own, or its classifiers or text do.
"""

import importlib.metadata
import json
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "docs" / "licences.json"
NAMES = {
    "Apache Software License": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "3-Clause BSD License": "BSD-3-Clause",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "GPLv2": "GPL-2.0-only",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
"""SPDX identifiers of the names in metadata without an expression; of BSD's licences the stricter is taken."""


def required_packages(without: frozenset[str] = frozenset()) -> list[str]:
    """Returns the canonical names of what pyproject.toml requires, directly or not, sorted.

    Packages that only those in `without` bring are left out, and so are these.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    seen: set[tuple[str, str]] = set()
    waiting = list(project["dependencies"])
    while waiting:
        requirement = Requirement(waiting.pop())
        for extra in {"", *requirement.extras}:
            name = canonicalize_name(requirement.name)
            if name in without or (name, extra) in seen:
                continue
            seen.add((name, extra))
            further = map(Requirement, importlib.metadata.requires(requirement.name) or ())
            waiting += [str(f) for f in further if f.marker is None or f.marker.evaluate({"extra": extra})]
    return sorted({name for name, _ in seen})


def licence_of(name: str) -> str:
    """Returns the SPDX expression of an installed package's licence. Raises KeyError if its metadata name none."""
    about = importlib.metadata.metadata(name)
    if about["License-Expression"]:
        return about["License-Expression"]
    text = (about["License"] or "").strip()
    if re.fullmatch(r"[A-Z][\w.+-]*\d[\w.]*(-\w+)*( (AND|OR) [\w.+-]+)*|MIT", text) and text not in NAMES:
        return text
    kinds = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or () if line.startswith("License ::")]
    known = [NAMES[kind] for kind in [text, *kinds] if kind in NAMES]
    if not known:
        raise KeyError(f"{name}: no known licence ({text[:60]!r}, {kinds}); add its name to NAMES")
    return known[0]


def list_licences() -> list[dict[str, str]]:
    """Returns name, version and licence of every required package."""
    return [
        {"name": name, "version": importlib.metadata.version(name).partition("+")[0], "licence": licence_of(name)}
        for name in required_packages()
    ]


if __name__ == "__main__":
    LIST.write_text(json.dumps(list_licences(), indent=1) + "\n")
