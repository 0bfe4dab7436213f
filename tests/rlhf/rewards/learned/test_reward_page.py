"""The page that `rlhf reward` leaves: whole, self-contained, and unbroken by what could not be measured."""

import base64
import html
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from math import nan
from pathlib import Path

import pytest
from PIL import Image
from small_annotations import make_world

from rlhf.config.run_config import RewardConfig
from rlhf.data.annotated_images import AnnotatedImages, join_annotations
from rlhf.errors import UserError
from rlhf.reports.intervals import Estimate
from rlhf.rewards.learned.reward_folder import load_reward
from rlhf.rewards.learned.reward_page import write_reward_page
from rlhf.rewards.learned.reward_report import LevelCoverage, RewardReport, TrustEnds
from rlhf.rewards.learned.reward_training import describe_doubts, train_reward

MALICIOUS = '<script>alert("x")</script>'
CONFIG = RewardConfig(feature_dim=12, epochs=4, decorrelation=1.0, ridge=30.0)


def world(photographs: int) -> tuple:
    """Photographs of a hostile name."""
    prompts, candidates, annotations = make_world(photographs)
    hostile = {name: replace(prompt, photograph=MALICIOUS + prompt.photograph) for name, prompt in prompts.items()}
    return hostile, candidates, annotations


class Page(HTMLParser):
    """Tags and the values of attributes that make a browser load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for key, value in attributes if key in ("src", "srcset", "href", "data", "poster")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RewardReport, AnnotatedImages]:
    """A reward folder, its figures, and part D."""
    out = tmp_path_factory.mktemp("page") / "reward"
    out.mkdir()
    (out / "config.yaml").write_text("seed: 0\nreward:\n  epochs: 4\n")
    inputs = world(12)
    report = train_reward(*inputs, out, CONFIG, seed=0, command="rlhf reward a b c --out 'my reward'")
    return out, report, join_annotations(*inputs).of(set(report.parts[3]))


@pytest.fixture(scope="module")
def text(trained: tuple[Path, RewardReport, AnnotatedImages]) -> str:
    return (trained[0] / "report.html").read_text(encoding="utf-8")


def words(text: str) -> str:
    """What a reader sees, in one line."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", text[text.index("<main>") :])))


def test_page_loads_nothing_from_elsewhere(text: str) -> None:
    page = Page(text)
    assert all(value.startswith("data:") for value in page.loaded)
    assert "script" not in page.tags
    assert not re.search(r"@import|url\(", text)


def test_every_chart_and_picture_decodes(text: str) -> None:
    pictures = charts = 0
    for value in Page(text).loaded:
        if value.startswith("data:image/png"):
            Image.open(io.BytesIO(base64.b64decode(value.split(",")[1], validate=True))).load()
            pictures += 1
        elif value != "data:,":
            assert base64.b64decode(value.split(",")[1], validate=True).rstrip().endswith(b"</svg>")
            charts += 1
    assert (pictures, charts) == (2 * 16, 2 * 7)


def test_names_are_escaped(text: str) -> None:
    assert MALICIOUS not in text
    assert "&lt;script&gt;" in text


def test_page_says_what_it_rests_on(text: str) -> None:
    seen = words(text)
    assert "All annotations are simulated." in seen
    assert "2 photographs are few." in seen
    assert "rlhf reward a b c --out 'my reward'" in seen
    assert "epochs: 4" in seen
    for heading in ("Hole family", "Risk and coverage", "Spectrum of Z′Z", "Learning curve", "The theorem’s constants"):
        assert heading in seen


def test_a_page_of_peoples_annotations_does_not_call_them_simulated(
    trained: tuple[Path, RewardReport, AnnotatedImages], tmp_path: Path
) -> None:
    figures = replace(trained[1], is_simulated=False, simulated_annotations=0)
    assert "simulated" not in words(write_reward_page(tmp_path, figures, trained[2]).read_text())
    figures = replace(trained[1], simulated_annotations=7, annotations=50)
    assert "7 of 50 annotations are simulated" in words(write_reward_page(tmp_path, figures, trained[2]).read_text())


def test_what_could_not_be_measured_does_not_break_the_page(
    trained: tuple[Path, RewardReport, AnnotatedImages], tmp_path: Path
) -> None:
    nothing = Estimate(value=nan, low=nan, high=nan, clusters=2)
    figures = replace(
        trained[1],
        rank_correlation_reward_score=nothing,
        rank_correlation_error_uncertainty=nothing,
        pair_accuracy=None,
        pair_accuracy_interval=None,
        learning_curve=[],
        command=None,
        trusted=TrustEnds(most=[], least=[]),
        coverage_by_level=[LevelCoverage(level=row.level) for row in trained[1].coverage_by_level],
    )
    seen = words(write_reward_page(tmp_path, figures, trained[2]).read_text())
    assert "n/a" in seen
    assert "too few annotations to calibrate it" in seen
    assert "Learning curve" not in seen
    assert not re.search(r"\b(nan|None)\b", seen)


def test_one_annotator_one_family_and_one_photograph_to_report_on_are_enough(tmp_path: Path) -> None:
    prompts, candidates, annotations = world(16)
    boxes = {name for name, prompt in prompts.items() if prompt.hole == "box"}
    rows = [row for row in annotations if row["annotator"] == "simulated-0" and row["prompt_id"] in boxes]
    config = CONFIG.model_copy(update={"parts": (0.4, 0.25, 0.2, 0.01)})
    report = train_reward(prompts, candidates, rows, tmp_path, config, seed=0)
    assert report.photographs_per_part[3] == 1
    assert [row.name for row in report.error_by_hole] == ["box"]
    assert report.is_noise_measured is False
    assert report.calibration.noise > 0, "from the residuals of the head"
    seen = words((tmp_path / "report.html").read_text())
    assert "1 photograph is few. Intervals are over photographs; of fewer than 6 there are none." in seen
    assert "The noise B is not measured" in seen
    assert "One annotator gave all scores" in seen
    assert [doubt.split(":")[0] for doubt in describe_doubts(report)] == [
        "one annotator gave all scores",
        "hardly an image was annotated twice",
    ]
    assert not re.search(r"\b(nan|None)\b", seen)


def test_a_folder_whose_page_could_not_be_written_is_no_reward(tmp_path: Path) -> None:
    (tmp_path / "report.html" / "in the way").mkdir(parents=True)
    (tmp_path / "reward.json").write_text("{}")
    with pytest.raises(UserError, match=r"report\.html: cannot be written"):
        train_reward(*world(12), tmp_path, CONFIG, seed=0)
    assert not (tmp_path / "reward.json").exists(), "an earlier one is gone as well"
    with pytest.raises(UserError, match="not a complete reward folder"):
        load_reward(tmp_path)
