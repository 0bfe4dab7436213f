"""The actions of a person on the page of the inpainting service, and the state of the page."""

import base64
import io

import numpy as np
from PIL import Image
from playwright.sync_api import Page, expect
from small_edit_service import SmallService, make_photograph

WIDTH, HEIGHT = 240, 160
PHOTOGRAPH = make_photograph(WIDTH, HEIGHT)


def encode(pixels: np.ndarray, file_format: str = "png", orientation: int = 1, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format, exif=exif, **options)
    return buffer.getvalue()


def open_page(page: Page, service: SmallService, data: bytes | None = None, name: str = "photograph.png") -> None:
    page.goto(service.address)
    expect(page.locator("#served")).not_to_be_empty()
    add_photograph(page, encode(PHOTOGRAPH) if data is None else data, name)


def add_photograph(page: Page, data: bytes, name: str = "photograph.png") -> None:
    mime_type = f"image/{name.rpartition('.')[2]}"
    page.set_input_files("#file", {"name": name, "mimeType": mime_type, "buffer": data})
    expect(page.locator("#photo")).to_have_attribute("alt", name)


def at(page: Page, x: float, y: float) -> tuple[float, float]:
    """Returns the place on the page of a point in shares of the photograph's width and height."""
    box = page.locator("#hole").bounding_box()
    assert box is not None
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def stroke(page: Page, *points: tuple[float, float]) -> None:
    page.mouse.move(*at(page, *points[0]))
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*at(page, *point))
    page.mouse.up()


def paint(page: Page) -> None:
    page.click("#paint")
    page.locator("#candidates .card").nth(3).wait_for()


def paint_a_hole(page: Page) -> None:
    stroke(page, (0.4, 0.5), (0.6, 0.5))
    paint(page)


def brush_px(page: Page) -> int:
    return int(page.locator("#size-text").inner_text().removesuffix(" px"))


def disk(x: float, y: float, diameter: float, shape: tuple[int, ...] = (HEIGHT, WIDTH)) -> np.ndarray:
    """Pixels around a point given in shares, bool [H, W]."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    return np.hypot(columns - x * shape[1], rows - y * shape[0]) <= diameter / 2


def is_painted_there(hole: np.ndarray, x: float, y: float, diameter: float) -> bool:
    """Whether the hole is the disk around a point, but for pixels on its rim."""
    inner, outer = (disk(x, y, diameter + rim, hole.shape) for rim in (-4, 4))
    return bool(hole[inner].all() and not hole[~outer].any())


def pixels_of(page: Page, selector: str) -> np.ndarray:
    """Uint8 [H, W, 3] of a picture that the page shows."""
    address = page.locator(selector).evaluate("""async (image) => {
      await image.decode();
      const [width, height] = [image.naturalWidth, image.naturalHeight];
      const canvas = Object.assign(document.createElement("canvas"), { width, height });
      canvas.getContext("2d").drawImage(image, 0, 0);
      return canvas.toDataURL();
    }""")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"))
