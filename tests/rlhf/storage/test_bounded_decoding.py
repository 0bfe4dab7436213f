"""Pictures that would hold a command up: they are decoded in another process, with limits."""

import base64
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlhf.config.run_config import PromptsConfig
from rlhf.data.prompt_cutting import make_prompts
from rlhf.rewards.wire import RewardRequest, decode_request
from rlhf.storage.bounded_decoding import CHEAP_PX, PROCESS, decode_image
from rlhf.storage.decoding import decode_layers

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue()


def slow_png() -> bytes:
    """A picture of 2,000 pixels and 24 MB, whose head alone takes many seconds: it has two million empty chunks."""
    data = png(PIXELS)
    empty = struct.pack(">I", 0) + b"prVt" + struct.pack(">I", zlib.crc32(b"prVt"))
    return data[:33] + empty * 2_000_000 + data[33:]


def test_large_pictures_are_decoded_in_another_process_to_the_same_pixels(tmp_path: Path) -> None:
    PROCESS.close()
    decode_image(png(PIXELS))
    assert PROCESS.pid is None, "what is cheap needs no process"
    large = png(np.random.default_rng(0).integers(0, 256, (1000, CHEAP_PX // 1000 + 1, 3), dtype=np.uint8))
    (tmp_path / "x.png").write_bytes(large)
    decoded = np.asarray(decode_image(tmp_path / "x.png"))
    assert PROCESS.pid is not None
    assert np.array_equal(decoded, decode_layers(large, name="x"))


def test_a_photograph_that_would_stall_a_command_is_left_out_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "hostile.png").write_bytes(slow_png())
    (tmp_path / "images" / "usual.png").write_bytes(png(PIXELS.repeat(3, 0).repeat(3, 1)))
    assert make_prompts(tmp_path / "images", tmp_path / "prompts", PromptsConfig(size_px=64), seed=0) > 0
    [skipped] = json.loads((tmp_path / "prompts" / "skipped.json").read_text())
    assert skipped["file"] == "hostile.png"
    assert "hostile.png: decoding takes more than 0.7 s of processor time" in skipped["reason"]
    assert "prompts: 1 of 2 photographs are left out" in capsys.readouterr().err


def test_pictures_sent_to_a_reward_server_are_decoded_in_another_process() -> None:
    PROCESS.close()
    mask = np.zeros((40, 50), np.uint8)
    mask[:20] = 255
    image, hole = (base64.b64encode(png(pixels)).decode() for pixels in (PIXELS, mask))
    images, _ = decode_request(RewardRequest(images=[image], masks=[hole], captions=[""]))
    assert images.shape == (1, 3, 40, 50)
    assert PROCESS.pid is not None
