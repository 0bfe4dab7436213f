"""Photographs opened, painted and extended on the page of the inpainting service, in a real browser."""

import base64
import io
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageOps
from small_edit_service import SmallService, make_photograph

pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")

from edit_browsing import (  # noqa: E402
    HEIGHT,
    PHOTOGRAPH,
    WIDTH,
    add_photograph,
    at,
    brush_px,
    disk,
    encode,
    is_painted_there,
    open_page,
    paint,
    pixels_of,
    stroke,
)
from playwright.sync_api import Page, expect  # noqa: E402

pytestmark = pytest.mark.browser


def test_a_painted_hole_arrives_at_its_pixels_with_the_file_as_it_was(service: SmallService, page: Page):
    data = encode(PHOTOGRAPH)
    open_page(page, service, data)
    expect(page.locator("#paint")).to_be_disabled()
    stroke(page, (0.25, 0.75))
    paint(page)
    (sent,) = service.received
    assert sent.image == data
    assert is_painted_there(sent.upload.hole, 0.25, 0.75, brush_px(page))
    assert (sent.asked.n, sent.asked.model, sent.asked.output_format) == (4, "aligned", "png")


@pytest.mark.parametrize(("file_format", "orientation"), [("jpeg", 6), ("png", 8), ("webp", 6)])
def test_a_turned_photograph_is_painted_where_it_is_seen(
    service: SmallService, page: Page, file_format: str, orientation: int
):
    data = encode(PHOTOGRAPH, file_format, orientation)
    open_page(page, service, data, f"photograph.{file_format}")
    stroke(page, (0.2, 0.7))
    shown = pixels_of(page, "#photo").astype(int)
    paint(page)
    (sent,) = service.received
    assert sent.upload.rgb.shape == shown.shape, "the service sees it as the browser does"
    assert np.abs(sent.upload.rgb.astype(int) - shown).mean() < 3
    assert is_painted_there(sent.upload.hole, 0.2, 0.7, brush_px(page))
    if file_format != "webp":
        assert sent.image == data
        upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
        assert upright.shape == shown.shape


def test_a_mask_is_as_large_as_a_large_photograph(service: SmallService, page: Page):
    large = make_photograph(4000, 3000)
    open_page(page, service, encode(large, "jpeg"), "large.jpeg")
    box = page.locator("#hole").bounding_box()
    assert box is not None
    assert box["width"] < 1000
    stroke(page, (0.5, 0.5), (0.75, 0.5))
    paint(page)
    hole = service.received[0].upload.hole
    diameter = brush_px(page)
    assert hole.shape == (3000, 4000)
    assert abs(hole[:, 2500].sum() - diameter) <= 2
    assert abs(hole[1500].sum() - 1000 - diameter) <= 12, "as wide as the way of the mouse and the brush"


def test_eraser_undo_and_clear_change_the_hole(service: SmallService, page: Page):
    open_page(page, service)
    diameter = brush_px(page)
    stroke(page, (0.3, 0.5))
    stroke(page, (0.7, 0.5))
    page.keyboard.press("e")
    stroke(page, (0.3, 0.5))
    stroke(page, (0.7, 0.5))
    page.keyboard.press("Control+z")
    paint(page)
    hole = service.received[0].upload.hole
    assert is_painted_there(hole, 0.7, 0.5, diameter)
    page.click("text=Change the hole")
    page.click("#clear")
    expect(page.locator("#paint")).to_be_disabled()


def test_the_hole_is_painted_by_finger_and_by_keyboard(service: SmallService, page: Page):
    open_page(page, service)
    diameter = brush_px(page)
    x, y = at(page, 0.25, 0.5)
    fingers = page.context.new_cdp_session(page)
    for kind, points in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    expect(page.locator("#undo")).to_be_enabled()
    page.locator("#hole").focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    paint(page)
    hole = service.received[0].upload.hole
    by_keys = 0.5 + 3 * diameter / WIDTH
    inner = disk(0.25, 0.5, diameter - 4) | disk(by_keys, 0.5, diameter - 4)
    outer = disk(0.25, 0.5, diameter + 4) | disk(by_keys, 0.5, diameter + 4)
    assert hole[inner].all()
    assert not hole[~outer].any()


def test_borders_are_dragged_outwards_typed_and_moved_by_keys(service: SmallService, page: Page):
    open_page(page, service)
    handle = page.locator(".handle[data-side=right]")
    box, hole = handle.bounding_box(), page.locator("#hole").bounding_box()
    assert box is not None
    assert hole is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + hole["width"] / 4, y)
    page.mouse.up()
    expect(page.locator("[name=right]")).to_have_value(str(WIDTH // 4))
    page.fill("[name=top]", "7")
    page.set_viewport_size({"width": 1300, "height": 880})
    page.wait_for_function("document.querySelector('#stage').clientWidth > 940")
    page.locator(".handle[data-side=left]").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#status")).to_contain_text(f"{WIDTH + WIDTH // 4 + 16} × {HEIGHT + 7}")
    paint(page)
    (sent,) = service.received
    assert sent.asked.expand == (16, 7, WIDTH // 4, 0)
    assert (~sent.upload.hole).sum() == WIDTH * HEIGHT, "and nothing inside"
    page.locator(".card .picture").first.click()
    left, frame = (page.locator(s).bounding_box() for s in ("#left-picture", ".pair-box"))
    assert left is not None
    assert frame is not None
    assert left["x"] - frame["x"] == pytest.approx(frame["width"] * 16 / sent.upload.hole.shape[1], abs=1)


def test_a_photograph_is_dropped_or_pasted(service: SmallService, page: Page):
    page.goto(service.address)
    for name, event in (("dropped.png", "drop"), ("pasted.png", "paste")):
        page.evaluate(
            """([data, name, type]) => {
              const files = new DataTransfer();
              const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
              files.items.add(new File([bytes], name, { type: "image/png" }));
              const options = { bubbles: true, dataTransfer: files, clipboardData: files };
              document.body.dispatchEvent(new (type === "drop" ? DragEvent : ClipboardEvent)(type, options));
            }""",
            [base64.b64encode(encode(PHOTOGRAPH)).decode(), name, event],
        )
        expect(page.locator("#photo")).to_have_attribute("alt", name)


def test_a_file_that_is_no_photograph_is_named(service: SmallService, page: Page):
    page.goto(service.address)
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"?"})
    expect(page.locator("#message")).to_contain_text("notes.txt: this browser cannot read it")
    expect(page.locator("#empty")).to_be_visible()


def test_a_transparent_part_is_the_hole_where_none_is_painted(service: SmallService, page: Page):
    hole = disk(0.5, 0.5, 60)
    open_page(page, service, encode(np.dstack([PHOTOGRAPH, np.where(hole, 0, 255).astype(np.uint8)])))
    expect(page.locator("#status")).to_contain_text("its transparent part is painted")
    paint(page)
    assert np.array_equal(service.received[0].upload.hole, hole)


def test_a_file_that_is_too_large_is_sent_smaller_and_that_is_said(service: SmallService, page: Page):
    noise = np.random.default_rng(0).integers(0, 256, PHOTOGRAPH.shape).astype(np.uint8)
    page.goto(service.address)
    page.evaluate("document.body.dataset.maxUploadBytes = 60000")
    add_photograph(page, encode(noise))
    stroke(page, (0.5, 0.5))
    paint(page)
    (sent,) = service.received
    assert len(sent.image) <= 60_000
    assert sent.upload.hole.shape == (HEIGHT, WIDTH)
    expect(page.locator("#facts")).to_contain_text("so it was sent as JPEG")


@pytest.fixture
def real_address() -> Iterator[str]:
    """`rlhf serve` of the built-in model."""
    environment = os.environ | {"RAY_worker_niceness": "0"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "rlhf", "serve", "--port", port]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        yield next(word for word in process.stdout.readline().split() if word.startswith("http"))
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.ray
def test_a_hole_is_painted_by_the_built_in_model_and_gone_on_from(real_address: str, page: Page):
    page.goto(real_address)
    add_photograph(page, encode(PHOTOGRAPH))
    stroke(page, (0.4, 0.5))
    diameter = brush_px(page)
    page.click("summary")
    page.fill("#steps", "2")
    page.fill("#seed", "5")
    paint(page)
    painted = [pixels_of(page, f".card:nth-child({place}) img") for place in (1, 2, 3, 4)]
    rim = disk(0.4, 0.5, diameter + 4)
    assert all(np.array_equal(picture[~rim], PHOTOGRAPH[~rim]) for picture in painted)
    inside = disk(0.4, 0.5, diameter - 4)
    assert len({picture[inside].tobytes() for picture in [*painted, PHOTOGRAPH]}) == 5
    expect(page.locator("#facts")).to_contain_text("5")
    page.locator(".card .picture").nth(3).click()
    page.click("text=Go on from this one")
    page.fill("[name=right]", "40")
    page.locator("[name=right]").blur()
    paint(page)
    extended = pixels_of(page, ".card:nth-child(1) img")
    assert extended.shape == (HEIGHT, WIDTH + 40, 3)
    assert np.array_equal(extended[:, :WIDTH], painted[3])
