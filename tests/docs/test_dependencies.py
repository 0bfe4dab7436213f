"""The pinned packages: each with hashes, and required ones under licences without copyleft."""

import importlib.util
import json
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
specification = importlib.util.spec_from_file_location("generate_licences", ROOT / "docs" / "generate_licences.py")
assert specification is not None
assert specification.loader is not None
licences = importlib.util.module_from_spec(specification)
specification.loader.exec_module(licences)

GPL = re.compile(r"\b[AL]?GPL")
COPYLEFT = re.compile(r"GPL|MPL|EPL|CDDL|EUPL|OSL|CC-BY-SA|Sleepycat")
OF_ITS_OWN_FILES = {"certifi", "tqdm"}
"""Packages under MPL-2.0, which binds changes of their own files alone."""


def locked(name: str) -> dict[str, tuple[str, int]]:
    """Version and number of hashes of each package in a lock file."""
    entries = re.split(r"^(?=\S)", (ROOT / name).read_text(), flags=re.MULTILINE)[1:]
    pinned = [re.match(r"([\w.-]+)==(\S+)", entry) for entry in entries]
    assert all(pinned), "every entry names one version"
    return {
        match[1]: (match[2], len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry)))
        for match, entry in zip(pinned, entries, strict=True)
        if match
    }


def listed() -> dict[str, dict[str, str]]:
    return {entry["name"]: entry for entry in json.loads(licences.LIST.read_text())}


def torch_version() -> str:
    (line,) = (ROOT / "requirements-torch.txt").read_text().split()
    return line.removeprefix("torch==")


def test_every_locked_package_has_hashes() -> None:
    for name in ("requirements.lock", "requirements-build.lock"):
        assert [package for package, (_, hashes) in locked(name).items() if hashes == 0] == []
    assert "torch" not in locked("requirements.lock"), "its builds differ between indexes"
    assert torch_version()


def test_the_lock_holds_every_required_package_and_the_build_tools() -> None:
    assert set(licences.required_packages()) - locked("requirements.lock").keys() == {"torch"}
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    build = locked("requirements-build.lock")
    assert {re.split(r"\W", name)[0] for name in wanted} | {"setuptools", "wheel", "editables"} <= build.keys()


def test_the_list_of_licences_is_that_of_the_locked_versions() -> None:
    versions = {name: version for name, (version, _) in locked("requirements.lock").items()}
    versions["torch"] = torch_version()
    assert {name: entry["version"] for name, entry in listed().items()} == {name: versions[name] for name in listed()}
    assert set(licences.required_packages()) <= listed().keys()
    assert all(entry["licence"] for entry in listed().values())


def test_no_required_package_but_rays_own_is_under_a_copyleft_licence() -> None:
    bound = {name for name, entry in listed().items() if COPYLEFT.search(entry["licence"])}
    through_ray = {name for name in bound if GPL.search(listed()[name]["licence"])}
    assert bound - through_ray == OF_ITS_OWN_FILES
    assert through_ray.isdisjoint(licences.required_packages(without=frozenset({"ray"})))
    document = (ROOT / "README.md").read_text()
    assert all(name in document for name in bound), "the README names them"


def test_nothing_is_installed_without_its_hash_but_torch() -> None:
    for name in ("Makefile", "cluster/Dockerfile"):
        text = (ROOT / name).read_text()
        for file in ("requirements.lock", "requirements-build.lock"):
            (line,) = (line for line in text.splitlines() if re.search(rf"(install|PIP).* -r {file}", line))
            assert "--require-hashes" in line
        assert "--no-build-isolation" in text, "build tools come from requirements-build.lock"
