"""Depth from files, disparity and estimators; and what is said about bad ones."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlhf.errors import UserError
from rlhf.views.depth import DepthSource, depth_to_disparity, disparity_to_depth, read_depth

SIZE = (6, 4)
PLAIN = DepthSource()


def ramp() -> np.ndarray:
    return np.linspace(1, 2, 24).reshape(4, 6).astype(np.float32)


def write_pfm(path: Path, values: np.ndarray, *, scale: float = -1.0) -> Path:
    kind = "<f4" if scale < 0 else ">f4"
    header = f"Pf\n{values.shape[1]} {values.shape[0]}\n{scale}\n".encode()
    path.write_bytes(header + values[::-1].astype(kind).tobytes())
    return path


def test_depth_of_every_kind_of_file(tmp_path: Path):
    np.save(tmp_path / "d.npy", ramp())
    np.savez(tmp_path / "d.npz", ramp())
    np.savez(tmp_path / "two.npz", other=ramp() + 1, depth=ramp())
    files = [tmp_path / name for name in ("d.npy", "d.npz", "two.npz")]
    files += [write_pfm(tmp_path / "d.pfm", ramp()), write_pfm(tmp_path / "big.pfm", ramp(), scale=1.0)]
    for file in files:
        assert np.array_equal(read_depth(file, SIZE, PLAIN), ramp()), file
    millimetres = (ramp() * 10_000).round().astype(np.uint16)
    Image.fromarray(millimetres).save(tmp_path / "d.png")
    assert np.array_equal(read_depth(tmp_path / "d.png", SIZE, PLAIN), millimetres)


def test_disparity_is_focal_times_baseline_over_depth(tmp_path: Path):
    depth = np.array([[1.0, 2.0], [4.0, 8.0]])
    disparity = depth_to_disparity(depth, focal_px=100, baseline=0.2, offset_px=1.5)
    assert disparity[0, 0] == pytest.approx(18.5)
    assert np.allclose(disparity_to_depth(disparity, focal_px=100, baseline=0.2, offset_px=1.5), depth)
    np.save(tmp_path / "d.npy", disparity)
    source = DepthSource(kind="disparity", focal_px=100, baseline=0.2, offset_px=1.5)
    assert np.allclose(read_depth(tmp_path / "d.npy", (2, 2), source), depth)


@pytest.mark.parametrize(
    ("value", "words"),
    [(np.nan, "depth nan"), (0.0, "depth 0.0"), (-2.0, "depth -2.0"), (np.inf, "depth inf")],
)
def test_values_that_are_no_depth_are_named_or_mended(tmp_path: Path, value: float, words: str):
    values = np.full((4, 6), 3.0)
    values[2, 1] = value
    np.save(tmp_path / "d.npy", values)
    with pytest.raises(UserError, match=f"1 of 24 pixels.*row 2, column 1.*{words}.*--mend-depth"):
        read_depth(tmp_path / "d.npy", SIZE, PLAIN)
    assert np.allclose(read_depth(tmp_path / "d.npy", SIZE, DepthSource(is_mended=True)), 3.0)


def test_files_that_are_no_depth_map_are_refused(tmp_path: Path):
    np.save(tmp_path / "small.npy", ramp()[:2])
    np.save(tmp_path / "three.npy", np.ones((4, 6, 3)))
    np.save(tmp_path / "words.npy", np.full((4, 6), "far"))
    np.save(tmp_path / "none.npy", np.zeros((4, 6)))
    np.savez(tmp_path / "two.npz", a=ramp(), b=ramp())
    Image.new("RGB", SIZE).save(tmp_path / "colour.png")
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    (tmp_path / "broken.npy").write_bytes(b"nothing")
    (tmp_path / "broken.pfm").write_bytes(b"Pf\n6 4\n-1\nshort")
    (tmp_path / "colour.pfm").write_bytes(b"PF\n6 4\n-1\n")
    (tmp_path / "depth.exr").write_bytes(b"")
    expected = {
        "small.npy": "6x2, image is 6x4",
        "three.npy": "height, width",
        "words.npy": "numbers",
        "two.npz": "name one of them depth",
        "colour.png": "colours",
        "broken.npz": "not a readable",
        "broken.npy": "not a readable",
        "broken.pfm": "not a readable",
        "colour.pfm": "three channels",
        "depth.exr": "is one of .npy",
        "absent.npy": "no readable file",
    }
    for name, words in expected.items():
        with pytest.raises(UserError, match=words):
            read_depth(tmp_path / name, SIZE, PLAIN)
    with pytest.raises(UserError, match="no pixel has a depth"):
        read_depth(tmp_path / "none.npy", SIZE, DepthSource(is_mended=True))


def save_small_estimator(folder: Path, *, with_weights: bool = True) -> Path:
    import torch
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    torch.manual_seed(0)
    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        is_hybrid=False,
    )
    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    if with_weights:
        DPTForDepthEstimation(config).save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    return folder


def test_an_estimator_of_transformers_gives_depth_of_the_pictures_size(tmp_path: Path):
    from rlhf.views.depth_estimation import FARTHEST, NEAREST, estimate_depth

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    depth = estimate_depth(picture, str(save_small_estimator(tmp_path / "dpt")), device="cpu")
    assert depth.shape == (40, 50)
    assert depth.min() >= NEAREST - 1e-9
    assert depth.max() <= FARTHEST + 1e-9
    assert depth.std() > 0


def test_an_estimator_without_weights_is_refused(tmp_path: Path):
    from rlhf.views.depth_estimation import estimate_depth

    empty = save_small_estimator(tmp_path / "empty", with_weights=False)
    for name in (str(empty), str(tmp_path / "nowhere")):
        with pytest.raises(UserError, match="not a depth estimator with its weights"):
            estimate_depth(Image.new("RGB", (32, 32)), name, device="cpu")


def test_an_estimator_with_half_its_weights_is_refused(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    from rlhf.views.depth_estimation import estimate_depth

    folder = save_small_estimator(tmp_path / "half")
    tensors = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("head")}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="not a depth estimator with its weights .*tensors are missing"):
        estimate_depth(Image.new("RGB", (32, 32)), str(folder), device="cpu")
