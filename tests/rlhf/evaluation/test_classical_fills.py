"""Classical fills: what they see, what they keep, and what is said where their package is missing."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from small_parts import save_small_reward, small_prompts

from rlhf.errors import UserError
from rlhf.evaluation.classical_fills import fill_with_opencv, open_classical
from rlhf.evaluation.contestants import judge_fill
from rlhf.evaluation.judging import Jury
from rlhf.rewards.learned.reward_folder import load_reward


@pytest.mark.skipif(find_spec("cv2") is not None, reason="OpenCV is installed")
def test_a_fill_whose_package_is_missing_says_so() -> None:
    with pytest.raises(UserError, match=r"telea: needs OpenCV, .* pip install 'prefpaint-ray\[fillers\]'"):
        open_classical("telea")


@pytest.mark.skipif(find_spec("cv2") is None, reason="OpenCV is missing: pip install 'prefpaint-ray[fillers]'")
@pytest.mark.parametrize("method", ["telea", "navier-stokes"])
def test_opencv_keeps_known_pixels_and_continues_a_flat_colour(method: str) -> None:
    rgb, hole = np.full((16, 16, 3), (10, 200, 90), np.uint8), np.zeros((16, 16), bool)
    hole[5:11, 5:11] = True
    damaged = np.where(hole[..., None], np.uint8(128), rgb)
    filled = fill_with_opencv(damaged, hole, method)
    assert (filled == rgb)[~hole].all()
    assert np.abs(filled.astype(int) - rgb).max() <= 2, "Telea's rounds"


def test_a_fill_never_sees_the_original(tmp_path: Path) -> None:
    jury = Jury(reward=load_reward(save_small_reward(tmp_path)))
    judged = judge_fill(lambda rgb, hole: rgb, "copy")(small_prompts(2), jury)
    for prompt, picture in zip(small_prompts(2), judged.images, strict=True):
        assert (picture[0][:, prompt.mask[0] > 0.5] == 128).all()
    assert judged.known_pixels_differ == 0
