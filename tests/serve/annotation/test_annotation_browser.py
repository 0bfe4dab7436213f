"""A person's path through the annotation page, in a real browser."""

import os
import signal
from pathlib import Path

import pytest
from small_study import start_command, start_server, write_evaluation, write_study

from rlhf.evaluation.blind_choices import BLIND_CHOICES
from rlhf.storage.tables import PAGE_ANNOTATIONS, read_table

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")

pytestmark = pytest.mark.browser


def enter(page: sync_api.Page, address: str, name: str) -> None:
    page.goto(address)
    page.fill("#name", name)
    page.click("text=Start")
    page.wait_for_selector(".card")


def progress(page: sync_api.Page, text: str) -> None:
    sync_api.expect(page.locator("#progress-text")).to_have_text(text)


def click_slider(page: sync_api.Page, card: int, name: str, value: float) -> None:
    """Clicks at the slider position of a value."""
    slider = page.locator(f'.card[data-position="{card}"] input[name={name}]')
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert box is not None
    thumb = 12
    page.mouse.click(box["x"] + thumb / 2 + (box["width"] - thumb) * value / 7, box["y"] + box["height"] / 2)


def test_from_the_page_to_the_parquet_file(tmp_path: Path, page: sync_api.Page) -> None:
    write_study(tmp_path / "candidates", prompts=3, samples=2)
    server, address = start_server(tmp_path, "--repeat", 0)
    try:
        enter(page, address, "Ann Example")
        progress(page, "All: 0 of 3 · you: 0")
        page.wait_for_function("[...document.querySelectorAll('.card img')].every((i) => i.naturalWidth === 32)")
        # Sliders with the mouse, the middle included, which is where an unset slider stands.
        for name, value in (("structure", 3.5), ("texture", 6), ("overall", 2.5)):
            click_slider(page, 0, name, value)
        sync_api.expect(page.locator(".card output").nth(0)).to_have_text("3.5")
        sync_api.expect(page.locator('[data-verb="finish"]')).to_be_disabled()
        # The same for all, then the next prompt by key.
        page.click('[data-verb="same"]')
        sync_api.expect(page.locator("#saved")).to_have_text("Saved")
        page.keyboard.press("Enter")
        progress(page, "All: 1 of 3 · you: 1")
        # Six digits, one of them made a half, an arrow back and down.
        for key in ("1", "2", ".", "3", "4", "5", "6", "ArrowLeft"):
            page.keyboard.press(key)
        outputs = page.locator(".card output").all_inner_texts()
        assert outputs == ["1", "2.5", "3", "4", "5", "5.5"]
        page.keyboard.press("Enter")
        progress(page, "All: 2 of 3 · you: 2")
        page.keyboard.press("s")
        sync_api.expect(page.locator("#finished-title")).to_have_text("Nothing left for you now")
        page.keyboard.press("u")
        page.wait_for_selector(".card")
        page.keyboard.press("u")
        sync_api.expect(page.locator(".card output").last).to_have_text("5.5")
        page.locator(".card input").first.focus()
        page.keyboard.press("7")
        page.keyboard.press("Enter")
        page.wait_for_selector(".card input.unset")
        page.click('[data-verb="export"]')
        sync_api.expect(page.locator("#message")).to_contain_text("4 judgements are in")
    finally:
        server.terminate()
        server.wait()
    rows = read_table(tmp_path / "out", PAGE_ANNOTATIONS)
    marks = sorted((r["structure"], r["texture"], r["overall"]) for r in rows)
    assert marks == [(3.5, 6, 2.5), (3.5, 6, 2.5), (4, 5, 5.5), (7, 2.5, 3)]
    assert {(r["annotator"], r["is_simulated"], r["round"]) for r in rows} == {("Ann Example", False, 0)}


def test_zoom_and_pixels_show_the_pictures_larger(tmp_path: Path, page: sync_api.Page) -> None:
    write_study(tmp_path / "candidates", prompts=1)
    server, address = start_server(tmp_path)
    try:
        enter(page, address, "Ann")
        page.locator(".card .picture").nth(1).click()
        sync_api.expect(page.locator("#zoom-name")).to_have_text("B")
        assert page.locator("#zoom-picture").bounding_box()["width"] > 400
        page.keyboard.press("ArrowRight")
        sync_api.expect(page.locator("#zoom-name")).to_have_text("C")
        page.keyboard.press("p")
        assert page.locator("#zoom-picture").evaluate("i => getComputedStyle(i).imageRendering") == "pixelated"
        page.keyboard.press("Escape")
        sync_api.expect(page.locator("#zoom")).to_be_hidden()
    finally:
        server.kill()
        server.wait()


def test_marks_given_while_the_server_is_dead_arrive_when_it_is_back(tmp_path: Path, page: sync_api.Page) -> None:
    write_study(tmp_path / "candidates", prompts=2, samples=2)
    server, address = start_server(tmp_path)
    try:
        enter(page, address, "Ann")
        for key in "123":
            page.keyboard.press(key)
        sync_api.expect(page.locator("#saved")).to_have_text("Saved")
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        for key in "456":
            page.keyboard.press(key)
        sync_api.expect(page.locator("#saved")).to_have_text("Not saved yet")
        server, _ = start_server(tmp_path, port=int(address.rsplit(":", 1)[1]))
        sync_api.expect(page.locator("#saved")).to_have_text("Saved")
        page.keyboard.press("Enter")
        progress(page, "All: 1 of 2 · you: 1")
    finally:
        server.terminate()
        server.wait()
    rows = read_table(tmp_path / "out", PAGE_ANNOTATIONS)
    assert sorted(r["overall"] for r in rows) == [3, 6]


def test_two_contestants_are_compared_by_a_key_or_a_click(tmp_path: Path, page: sync_api.Page) -> None:
    evaluation = write_evaluation(tmp_path / "evaluation", prompts=4)
    command = ["compare", "aligned", "base", "--evaluation", evaluation, "--prompts", evaluation / "prompts"]
    server, address = start_command(*command, "--out", tmp_path / "out", "--repeat", 0)
    is_idle = "() => !isBusy"  # keys pressed before the next pair is there choose nothing, not even for it
    try:
        enter(page, address, "Ann Example")
        for number, key in enumerate(("1", "0", "2"), 1):
            page.wait_for_function(is_idle)
            page.keyboard.press(key)
            progress(page, f"All: {number} of 4 · you: {number}")
        page.wait_for_function(is_idle)
        page.keyboard.press("u")
        progress(page, "All: 2 of 4 · you: 2")
        page.wait_for_function(is_idle)
        page.keyboard.press("7")  # sets a slider on the page where candidates are scored
        page.click('[data-choice="1"]')
        progress(page, "All: 3 of 4 · you: 3")
        page.wait_for_function(is_idle)
        page.click("[data-choice=none]")
        sync_api.expect(page.locator("#finished-title")).to_have_text("All prompts are judged")
    finally:
        server.terminate()
        server.wait()
    rows = read_table(tmp_path / "out" / "preferences.parquet", BLIND_CHOICES)
    assert sorted(row["preferred"] is None for row in rows) == [False, False, True, True]
