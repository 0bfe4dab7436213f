"""Writes a self-contained HTML page about a reward model, on photographs that it has never seen."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf.data.annotated_images import AnnotatedImages
from rlhf.reports.pages import MAX_PICTURE_PX, picture_uri, show_hole, write_page
from rlhf.rewards.learned.reward_charts import reward_charts
from rlhf.storage.images import tensor_to_image


def write_reward_page(out: Path, figures: dict[str, Any], data: AnnotatedImages) -> Path:
    """Writes `out/report.html`, which loads nothing from elsewhere; returns its path.

    `figures` are those of `out/report.json`; `data` is the part that they were measured on, and gives the pictures.
    The page quotes the configuration in `out/config.yaml` if there is one.
    """
    configuration = out / "config.yaml"
    return write_page(
        "reward.html",
        out / "report.html",
        name=out.resolve().name,
        reward=figures,
        charts=reward_charts(figures),
        levels={row["level"]: row for row in figures["coverage_by_level"]},
        trusted={end: list(_with_pictures(rows, data)) for end, rows in figures["trusted"].items()},
        configuration=configuration.read_text(encoding="utf-8") if configuration.is_file() else None,
    )


def _with_pictures(rows: list[dict[str, Any]], data: AnnotatedImages) -> Iterator[dict[str, Any]]:
    """Adds to each candidate its picture, and the picture with a transparent hole."""
    places = {key: place for place, key in enumerate(data.keys)}
    for row in rows:
        place = places[row["prompt_id"], row["sample_index"]]
        candidate, hole = tensor_to_image(data.images[place]), data.masks[place, 0].numpy() > 0.5
        pictures = {"masked": picture_uri(show_hole(candidate, hole)), "candidate": picture_uri(candidate)}
        yield row | {"pictures": pictures, "is_small": max(hole.shape) <= MAX_PICTURE_PX // 2}
