"""Candidates compared and taken on the page of the inpainting service, and its failures, in a real browser."""

import re
from pathlib import Path

import numpy as np
import pytest
import requests
from fastapi.responses import JSONResponse
from small_edit_service import ALIGNED, BASE, LOWER, SmallService, colour

pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")

from edit_browsing import (  # noqa: E402
    HEIGHT,
    PHOTOGRAPH,
    WIDTH,
    add_photograph,
    brush_px,
    encode,
    open_page,
    paint,
    paint_a_hole,
    pixels_of,
    stroke,
)
from playwright.sync_api import Page, expect  # noqa: E402

pytestmark = pytest.mark.browser


def test_candidates_stand_in_the_order_of_their_bounds(service: SmallService, page: Page):
    open_page(page, service)
    paint_a_hole(page)
    scores = page.locator(".card .score p").all_inner_texts()
    order = sorted(range(4), key=lambda sample: -LOWER[sample])
    assert scores == [f"Reward {LOWER[s] + 0.2:.2f} [{LOWER[s]:.2f}, {LOWER[s] + 0.5:.2f}]" for s in order]
    for place, sample in enumerate(order):
        shown = pixels_of(page, f".card:nth-child({place + 1}) img")
        assert tuple(shown[HEIGHT // 2, WIDTH // 2]) == colour("aligned", sample)
    expect(page.locator("#reading")).to_contain_text("bound at the reward model’s stated coverage")


def test_a_candidate_is_compared_with_the_base_models_from_the_same_noise(service: SmallService, page: Page):
    open_page(page, service)
    paint_a_hole(page)
    page.locator(".card .picture").nth(2).click()
    third = sorted(range(4), key=lambda sample: -LOWER[sample])[2]
    assert np.array_equal(pixels_of(page, "#left-picture"), PHOTOGRAPH)
    assert len(service.received) == 1, "the base model is not asked before it is wanted"
    page.click("text=Base model")
    expect(page.locator("#left-name")).to_have_text("Base model")
    ours, theirs = service.received
    assert (theirs.asked.model, theirs.asked.seed, theirs.asked.n) == ("tiny", ours.asked.seed, 4)
    assert np.array_equal(theirs.upload.hole, ours.upload.hole)
    for selector, model in (("#left-picture", "tiny"), ("#right-picture", "aligned")):
        assert tuple(pixels_of(page, selector)[HEIGHT // 2, WIDTH // 2]) == colour(model, third)
    page.keyboard.press("1")
    best = max(range(4), key=lambda sample: LOWER[sample])
    assert tuple(pixels_of(page, "#left-picture")[HEIGHT // 2, WIDTH // 2]) == colour("tiny", best)
    assert len(service.received) == 2


def test_the_line_stands_where_the_pointer_is(service: SmallService, page: Page):
    open_page(page, service)
    paint_a_hole(page)
    page.locator(".card .picture").first.click()
    box = page.locator(".pair-box").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2)
    line = page.locator("#line").bounding_box()
    assert line is not None
    assert line["x"] + 1 == pytest.approx(box["x"] + box["width"] * 0.8, abs=2)


def test_one_model_without_reward_and_further_fields_is_enough(service: SmallService, page: Page):
    service.models = [{k: BASE[k] for k in ("id", "object", "created", "owned_by")}]
    service.has_reward = False
    open_page(page, service)
    paint_a_hole(page)
    expect(page.locator(".card .score p")).to_have_count(0)
    expect(page.locator("#reading")).to_be_hidden()
    assert tuple(pixels_of(page, ".card:nth-child(1) img")[HEIGHT // 2, WIDTH // 2]) == colour("tiny", 0)
    page.locator(".card .picture").first.click()
    expect(page.locator("[name=against][value=base]")).to_be_disabled()
    expect(page.locator("#no-base")).to_have_text("One model is served alone, without its base model.")


def test_the_picture_that_is_taken_is_gone_on_from_and_the_former_one_comes_back(service: SmallService, page: Page):
    open_page(page, service, name="boat.png")
    paint_a_hole(page)
    page.locator(".card .picture").first.click()
    with page.expect_download() as download:
        page.click("text=Save as PNG")
    assert download.value.suggested_filename == "boat-inpainted-1.png"
    saved = Path(download.value.path()).read_bytes()
    page.click("text=Go on from this one")
    expect(page.locator("#paint")).to_be_disabled()
    stroke(page, (0.1, 0.1))
    paint(page)
    first, second = service.received
    assert second.image == saved, "the very bytes that the service answered"
    assert not second.upload.hole[first.upload.hole].any()
    page.click("text=Change the hole")
    page.click("text=Former picture")
    page.click("text=Change the hole")
    expect(page.locator("#former")).to_be_hidden()
    paint(page)
    assert service.received[2].image == first.image
    assert np.array_equal(service.received[2].upload.hole, first.upload.hole)


def test_what_the_service_refuses_is_said_in_its_words(service: SmallService, page: Page):
    open_page(page, service)
    page.fill("[name=left]", "4096")
    page.fill("[name=bottom]", "3")
    page.locator("[name=bottom]").blur()
    page.click("summary")
    page.fill("#steps", "500")
    page.click("#paint")
    expect(page.locator("#message")).to_contain_text("num_inference_steps: Input should be less than or equal to 100")
    page.click("#dismiss")
    expect(page.locator("#message")).to_be_hidden()
    page.fill("#steps", "")
    service.refusals = [JSONResponse("?", 502)]
    page.click("#paint")
    expect(page.locator("#message")).to_contain_text("The service answered 502")
    paint(page)
    expect(page.locator("#message")).to_be_hidden()


def test_a_busy_service_is_asked_again_or_given_up(service: SmallService, page: Page):
    busy = {"error": {"message": "too many requests", "type": "rate_limit_error", "param": None, "code": "overloaded"}}
    service.refusals = [JSONResponse(busy, 429, headers={"retry-after": "1"})]
    open_page(page, service)
    stroke(page, (0.5, 0.5))
    page.click("#paint")
    expect(page.locator("#status")).to_have_text("The service is busy (too many requests). Trying again in 1 s.")
    page.locator("#candidates .card").nth(3).wait_for()
    service.refusals = [JSONResponse(busy, 429, headers={"retry-after": "3000"})]
    page.click("#paint")
    expect(page.locator("#status")).to_contain_text("Trying again in 2999 s")
    page.click("#cancel")
    expect(page.locator("#cancel")).to_be_hidden()
    expect(page.locator("#paint")).to_be_enabled()
    assert len(service.received) == 1


def test_a_request_that_is_cancelled_leaves_the_hole_as_it_was(service: SmallService, page: Page):
    service.may_answer.clear()
    open_page(page, service)
    stroke(page, (0.5, 0.5))
    page.click("#paint")
    expect(page.locator("#status")).to_have_text("Painting four candidates …")
    page.click("#cancel")
    expect(page.locator("#status")).to_contain_text("hole")
    expect(page.locator("#stage")).to_be_visible()


def test_a_key_is_asked_for_once_and_forgotten_with_the_tab(service: SmallService, page: Page):
    service.key = "correct"
    page.goto(service.address)
    expect(page.locator("#key-reason")).to_contain_text("this key is not known")
    for key in ("wrong", "correct"):
        page.fill("#key", key)
        page.click("#key-form button.primary")
    expect(page.locator("#served")).to_have_text("aligned · policy 30-9f86d081")
    add_photograph(page, encode(PHOTOGRAPH))
    paint_a_hole(page)
    kept = page.evaluate("[JSON.stringify(sessionStorage), JSON.stringify(localStorage), document.cookie]")
    assert kept == ['{"api-key":"correct"}', "{}", ""]


def test_a_narrow_page_holds_every_control(service: SmallService, page: Page):
    page.set_viewport_size({"width": 380, "height": 760})
    open_page(page, service)
    stroke(page, (0.5, 0.5))
    paint(page)
    page.locator(".card .picture").first.click()
    for view in ("text=All four", "text=Change the hole", "summary"):
        assert page.evaluate("document.documentElement.scrollWidth") == 380
        page.click(view)
    controls = page.locator("button:visible, input:visible, select:visible, .handle:visible").all()
    boxes = [control.bounding_box() for control in controls]
    assert len(boxes) > 15
    assert all(box and box["x"] >= 0 and box["x"] + box["width"] <= 380 for box in boxes)


def test_every_control_has_a_name(service: SmallService, page: Page):
    open_page(page, service)
    stroke(page, (0.5, 0.5))
    page.click("summary")
    nameless = """(all) => all.filter((e) => !(e.getAttribute("aria-label") || e.innerText || e.labels?.length))"""
    for look in (lambda: paint(page), lambda: page.locator(".card .picture").first.click(), lambda: None):
        assert page.locator("button:visible, input:visible, select:visible").evaluate_all(nameless) == []
        look()


def test_the_page_runs_no_script_but_its_own_files(service: SmallService):
    answer = requests.get(service.address, timeout=10)
    assert answer.headers["content-security-policy"].startswith("default-src 'self';")
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=|https?://", answer.text)
    for name in re.findall(r'"(static/[^"]+)"', answer.text):
        assert requests.get(f"{service.address}/{name}", timeout=10).status_code == 200
    assert requests.get(f"{service.address}/static/..%2fedit_page.py", timeout=10).status_code == 404
    assert ALIGNED["id"] not in answer.text, "what is served is asked for, with a key where one is needed"


def test_candidates_are_seen_close_to_a_small_hole(service: SmallService, page: Page):
    open_page(page, service)
    diameter = brush_px(page)
    stroke(page, (0.25, 0.5))
    paint(page)
    page.click("text=Close to the hole")
    frame, picture = (page.locator(f".card:first-child {s}").bounding_box() for s in (".picture", "img"))
    assert frame is not None
    assert picture is not None
    assert frame["width"] / picture["width"] == pytest.approx(2 * diameter / WIDTH, rel=0.05)
    centre = frame["x"] + frame["width"] / 2
    assert (centre - picture["x"]) / picture["width"] == pytest.approx(0.25, abs=0.02)
    page.click("text=Change the hole")
    page.fill("[name=left]", "9")
    page.locator("[name=left]").blur()
    paint(page)
    expect(page.locator("#framing")).to_be_hidden()
