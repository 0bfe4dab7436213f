"""The page of a comparison in a real browser: it loads nothing, and its gallery is filtered and sorted."""

import json
from pathlib import Path

import pytest
from small_comparison import ATTACK, evaluate, prepare

pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")

from playwright.sync_api import Page, expect  # noqa: E402

pytestmark = pytest.mark.browser
SHOWN = "#gallery figure:visible"


@pytest.fixture(scope="module")
def comparison_page(small_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = prepare(tmp_path_factory.mktemp("parts"), small_pipeline)
    out = tmp_path_factory.mktemp("comparison")
    contestants = ["--contestant", "smooth=biharmonic", "--contestant", f"mirror=images:{parts['images']}"]
    done = evaluate(parts, small_pipeline, out, "--run", str(parts["run"]), *contestants)
    assert done.exit_code == 0, done.output
    return out / "comparison.html"


@pytest.fixture
def gallery(comparison_page: Path, page: Page) -> Page:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(comparison_page.as_uri())
    assert {url.split(":")[0] for url in requests} <= {"file", "data"}
    assert sum(url.startswith("file") for url in requests) == 1
    return page


def keys_of(page: Page, contestant: str, key: str) -> list[float]:
    """What the visible cards are sorted by, from top to bottom."""
    texts = page.locator(SHOWN).evaluate_all("nodes => nodes.map((node) => node.dataset.keys)")
    return [json.loads(text)[contestant][key] for text in texts]


def test_all_prompts_are_there_best_by_the_gold_judge_first(gallery: Page) -> None:
    expect(gallery.locator(SHOWN)).to_have_count(16)
    found = keys_of(gallery, "aligned", "gold")
    assert found == sorted(found, reverse=True)
    assert gallery.locator("#gallery img").evaluate_all("images => images.every((i) => i.naturalWidth === 32)")


def test_families_photographs_and_contestants_are_filtered(gallery: Page) -> None:
    gallery.select_option("#family", "box")
    expect(gallery.locator(SHOWN)).to_have_count(3)
    assert set(gallery.locator(SHOWN).evaluate_all("nodes => nodes.map((n) => n.dataset.family)")) == {"box"}
    expect(gallery.locator("#count")).to_have_text("3 prompts")
    gallery.select_option("#family", "")
    gallery.select_option("#photograph", ATTACK)
    expect(gallery.locator(SHOWN)).to_have_count(2)
    gallery.get_by_role("checkbox", name="smooth").uncheck()
    expect(gallery.locator("[data-contestant=smooth]:visible")).to_have_count(0)
    expect(gallery.locator("[data-contestant=mirror]:visible")).to_have_count(2)


def test_fills_are_sorted_by_worst_and_by_what_judges_disagree_on(gallery: Page) -> None:
    gallery.select_option("#contestant", "mirror")
    gallery.select_option("#judge", "reward")
    gallery.select_option("#order", "worst")
    found = keys_of(gallery, "mirror", "reward")
    assert found == sorted(found)
    assert len(set(found)) > 1
    gallery.select_option("#order", "disagreement")
    found = keys_of(gallery, "mirror", "disagreement")
    assert found == sorted(found, reverse=True)
    assert 0 <= found[-1] < found[0] <= 1
    expect(gallery.locator(SHOWN).first).to_contain_text("mirror: judges disagree by")


def test_the_page_fits_a_narrow_screen(gallery: Page) -> None:
    gallery.set_viewport_size({"width": 400, "height": 800})
    assert gallery.evaluate("document.documentElement.scrollWidth") <= 400
