"""What the documents name exists: links, anchors, files, commands; the configuration page is current."""

import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.main import get_command

import rlhf
from rlhf.commands.cli import app
from rlhf.commands.cluster_shell import Checkout, command_problems

ROOT = Path(rlhf.__file__).parents[1]
CHECKOUT = Checkout(root=ROOT, rlhf=get_command(app))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SOURCE_FILE = re.compile(r"`((?:rlhf|actors|serve|cluster|benchmarks|tests|docs)/[\w./-]+\.\w+)(?:::?[\w.]+)?`")
of_each_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


def anchors(page: Path) -> set[str]:
    """Anchors that a forge gives the headings of a page."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in HEADING.findall(page.read_text())}


def commands(page: Path) -> list[str]:
    """Commands in fenced and indented blocks, without comment and redirection; continued lines are joined."""
    text = re.sub(r"\\\n\s*", "", page.read_text())
    lines, is_fenced = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            is_fenced = not is_fenced
        elif is_fenced or line.startswith("    "):
            lines.append(re.split(r"\s(?:#|>)|^#", line.strip())[0].strip())
    return [line for line in lines if re.match(r"(rlhf|ray|python|make)\b", line)]


@of_each_page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for link in LINK.findall(page.read_text()):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@of_each_page
def test_source_files_that_a_page_names_exist(page: Path) -> None:
    assert [name for name in SOURCE_FILE.findall(page.read_text()) if not (ROOT / name).exists()] == []


@of_each_page
def test_commands_of_a_page_are_understood(page: Path) -> None:
    assert [problem for line in commands(page) for problem in problems_of(line)] == []


def test_documents_hold_commands_of_every_kind() -> None:
    found = [line for page in PAGES for line in commands(page)]
    for start, least in (("rlhf ", 30), ("python -m benchmarks.studies.", 6), ("make ", 4), ("ray ", 3)):
        assert len([line for line in found if line.startswith(start)]) >= least, start


@pytest.mark.parametrize(
    "line",
    [
        "rlhf align --no-such-option",
        "make no-such-target",
        "python -m benchmarks.studies.absent",
        "python -m benchmarks.studies.bound prompts --out study",
        "python -m benchmarks.scaling --no-such-option 8",
    ],
)
def test_a_command_that_does_not_exist_is_found(line: str) -> None:
    assert problems_of(line)


def problems_of(line: str) -> list[str]:
    """What is wrong with a command of `rlhf`, `ray`, `make` or `python`."""
    words = shlex.split(line)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        named = [word for word in words[1:] if "=" not in word]
        return [f"{line}: make has no target {word}" for word in named if word not in targets]
    if words[0] == "python" and words[1:3] != ["-m", "rlhf"]:
        return python_problems(line, words[1:])
    return command_problems(line, CHECKOUT)


def python_problems(line: str, words: list[str]) -> list[str]:
    """Module or file, and its options: parsed for studies, sought in the source for other programs."""
    if words[0] != "-m":
        return [] if (ROOT / words[0]).is_file() else [f"{line}: no file {words[0]}"]
    name = words[1] if importlib.util.find_spec(words[1]) else None
    if name is None:
        return [f"{line}: no module {words[1]}"]
    if name.startswith("benchmarks.studies."):
        return study_problems(line, name, words[2:])
    found = importlib.util.find_spec(name)
    package = found is not None and found.submodule_search_locations
    source = (
        ROOT / name.replace(".", "/") / "__main__.py" if package else ROOT / f"{name.replace('.', '/')}.py"
    ).read_text()
    options = [word.partition("=")[0] for word in words[2:] if word.startswith("--")]
    return [f"{line}: no option {option}" for option in options if f'"{option}"' not in source]


def study_problems(line: str, name: str, words: list[str]) -> list[str]:
    program = typer.Typer()
    program.command()(importlib.import_module(name).main)
    try:
        get_command(program).make_context(name, list(words))
    except typer.BadParameter.__base__ as error:  # type: ignore[misc]
        return [f"{line}: {error}"]
    return []


def test_the_configuration_page_is_current() -> None:
    path = ROOT / "docs" / "generate_configuration.py"
    found = importlib.util.spec_from_file_location("generate_configuration", path)
    assert found is not None
    assert found.loader is not None
    generator = importlib.util.module_from_spec(found)
    found.loader.exec_module(generator)
    assert generator.PAGE.read_text() == generator.render(), "run: python docs/generate_configuration.py"


def test_the_cluster_page_names_every_file_of_the_folder() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    files = [path for path in (ROOT / "cluster").rglob("*") if path.is_file()]
    assert [path.name for path in files if path.name not in page and path.stem not in page] == []


def test_the_readme_fits_two_screens() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110
