"""Writes a self-contained HTML page about a reward model, on photographs that it has never seen."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.data.annotated_images import AnnotatedImages
from rlhf.reports.pages import MAX_PICTURE_PX, picture_uri, show_hole, write_page
from rlhf.rewards.learned.reward_charts import reward_charts
from rlhf.rewards.learned.reward_report import RankedCandidate, RewardReport
from rlhf.storage.images import tensor_to_image


def write_reward_page(out: Path, report: RewardReport, data: AnnotatedImages) -> Path:
    """Writes `out/report.html`, which loads nothing from elsewhere; returns its path.

    `data` is the part that the report was measured on, and gives the pictures.
    The page quotes the configuration in `out/config.yaml` if there is one.
    """
    configuration = out / "config.yaml"
    return write_page(
        "reward.html",
        out / "report.html",
        name=out.resolve().name,
        reward=report,
        charts=reward_charts(report),
        levels={row.level: row for row in report.coverage_by_level},
        trusted={
            "most": list(_with_pictures(report.trusted.most, data)),
            "least": list(_with_pictures(report.trusted.least, data)),
        },
        configuration=configuration.read_text(encoding="utf-8") if configuration.is_file() else None,
    )


@dataclass(frozen=True, kw_only=True)
class PicturedCandidate(RankedCandidate):
    """Candidate as the page shows it."""

    pictures: dict[str, str]
    """Data URIs of the candidate, and of the candidate with a transparent hole, by title."""
    is_small: bool


def _with_pictures(rows: Sequence[RankedCandidate], data: AnnotatedImages) -> Iterator[PicturedCandidate]:
    places = {key: place for place, key in enumerate(data.keys)}
    for row in rows:
        place = places[row.prompt_id, row.sample_index]
        images, masks = data.pictures.show([data.keys[place]])
        candidate, hole = tensor_to_image(images[0]), masks[0, 0].numpy() > 0.5
        pictures = {"masked": picture_uri(show_hole(candidate, hole)), "candidate": picture_uri(candidate)}
        yield PicturedCandidate(**vars(row), pictures=pictures, is_small=max(hole.shape) <= MAX_PICTURE_PX // 2)
