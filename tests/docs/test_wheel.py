"""The wheel holds all that its commands need: it is built, unpacked and run outside the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from small_photographs import picture

import rlhf

ROOT = Path(rlhf.__file__).parents[1]
DATA = (
    "rlhf/data/photographs",
    "rlhf/data/networks/weights",
    "rlhf/reports/templates",
    "rlhf/diffusion/builtin/tiny",
    "serve/static",
    "serve/templates",
    "rlhf/runs",
)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the unpacked wheel, far from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", folder, ROOT], check=True, capture_output=True, text=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def run_rlhf(unpacked: Path, cwd: Path, *arguments: object) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PYTHONPATH"] = str(unpacked)
    command = [sys.executable, "-m", "rlhf", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_data_of_the_packages(unpacked: Path) -> None:
    def files(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix not in (".py", ".pyc", "")}

    for name in DATA:
        source = ROOT / ("cluster/runs" if name == "rlhf/runs" else name)
        assert files(source) == files(unpacked / name), name


def test_commands_run_from_the_wheel_in_an_empty_folder(unpacked: Path, tmp_path: Path) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for seed in range(2):
        Image.fromarray(picture(seed, 96, 96)).save(photographs / f"{seed}.png")
    empty = tmp_path / "empty"
    empty.mkdir()
    where = subprocess.run(
        [sys.executable, "-c", "import rlhf; print(rlhf.__file__)"],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(unpacked)
    assert "photographs" in run_rlhf(unpacked, empty, "demo", "--help")
    run_rlhf(unpacked, empty, "prompts", "--images", photographs, "--out", "prompts")
    assert list((empty / "prompts").glob("*.parquet"))
