"""Names under which a service answers, and those of its deployments."""

from pathlib import Path

import pytest

from rlhf.errors import UserError
from serve.application import deployment_names
from serve.settings import ServiceSettings, name_models


def folders(place: Path) -> list[Path]:
    """Two model folders of one last name."""
    made = [place / owner / "model" for owner in ("a", "b")]
    for folder in made:
        folder.mkdir(parents=True)
        (folder / "model_index.json").write_text("{}")
    return made


def test_folders_of_one_last_name_are_served_under_the_names_that_they_are_given(tmp_path: Path) -> None:
    first, second = folders(tmp_path)
    found = name_models(ServiceSettings(models=[f"one={first}", f"two={second}"])).models
    assert {name: served.base for name, served in found.items()} == {
        "one": str(first),
        "two": str(second),
        "model": str(first),
    }
    assert list(deployment_names([str(first), "tiny", str(second)]).values()) == [
        "Inpainter-model",
        "Inpainter-tiny",
        "Inpainter-model-2",
    ]


def test_without_names_they_are_refused_with_the_way_to_give_them(tmp_path: Path) -> None:
    first, second = folders(tmp_path)
    with pytest.raises(UserError, match=f"two models are called model; give them names as NAME={second}"):
        name_models(ServiceSettings(models=[str(first), str(second)]))
