"""The service as its clients see it: HTTP in, HTTP out, on Ray started for this file alone."""

import base64
import concurrent.futures
import io
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image
from small_parts import save_moved_policy

from rlhf.catalogue import Catalogue, write_catalogue

pytestmark = pytest.mark.ray

WIDTH, HEIGHT = 200, 130
RNG = np.random.default_rng(0)
PHOTOGRAPH = np.dstack(
    [np.linspace(0, 255, WIDTH)[None].repeat(HEIGHT, 0), *RNG.integers(0, 256, (2, HEIGHT, WIDTH))]
).astype(np.uint8)
HOLE = np.zeros((HEIGHT, WIDTH), bool)
HOLE[40:80, 120:150] = True


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


IMAGE = _png(PHOTOGRAPH)
MASK = _png(np.dstack([PHOTOGRAPH, np.where(HOLE, 0, 255).astype(np.uint8)]))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service of an untrained tiny pipeline and an unfitted reward model."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray
    from ray import serve as ray_serve

    from rlhf.tiny_model import build_pipeline
    from serve.application import start, to_settings

    folder = tmp_path_factory.mktemp("served")
    build_pipeline().save_pretrained(folder / "model")
    _save_reward(folder / "reward")
    for version, kind in ((1, "lora"), (2, "full"), (3, "lora")):
        save_moved_policy(folder / "model", folder / f"policy-{version}", version=version, trainable=kind)
    write_catalogue(Catalogue(), folder / "names.json")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        yield start(to_settings(served(folder)), "127.0.0.1", port)
    finally:
        ray_serve.shutdown()
        ray.shutdown()


def served(folder: Path) -> dict[str, object]:
    """Three models on one base, and whatever a test writes into the catalogue."""
    return {
        "models": [str(folder / "model"), f"aligned={folder / 'policy-1'}", f"whole={folder / 'policy-2'}"],
        "catalogue": folder / "names.json",
        "reward": folder / "reward",
        "store": folder / "store",
        "upload_timeout_s": 3,
    }


def _save_reward(folder: Path) -> None:
    import torch

    from rlhf.bound import RidgeHead
    from rlhf.reward_model import Calibration, FeatureNetwork, RewardModel, SmallBackbone

    folder.mkdir()
    fields = dict.fromkeys(Calibration.__dataclass_fields__, 1.0)
    RewardModel(
        network=FeatureNetwork(SmallBackbone(), 4).eval(),
        head=RidgeHead(weight=torch.ones(5).double(), cholesky=torch.eye(5).double(), ridge=1.0),
        calibration=Calibration(**fields),
        backbone="small",
        feature_dim=4,
    ).save(folder)


def _post(address: str, image: bytes | None = IMAGE, mask: bytes | None = MASK, **form: object) -> requests.Response:
    files = {k: (f"{k}.png", v, "image/png") for k, v in {"image": image, "mask": mask}.items() if v is not None}
    form = {"num_inference_steps": 2, **form}
    return requests.post(f"{address}/v1/images/edits", files=files, data=form, timeout=120)


def _images(response: requests.Response) -> list[np.ndarray]:
    assert response.status_code == 200, response.text
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(d["b64_json"])))) for d in response.json()["data"]]


def test_answer_keeps_size_and_known_pixels_and_repaints_the_hole(address: str):
    response = _post(address, seed=3)
    (image,) = _images(response)
    assert image.shape == PHOTOGRAPH.shape
    assert np.array_equal(image[~HOLE], PHOTOGRAPH[~HOLE])
    assert (image[HOLE] != PHOTOGRAPH[HOLE]).any(axis=1).mean() > 0.9
    assert (response.headers["x-policy-version"], response.headers["x-seed"]) == ("0", "3")


def test_transparent_part_of_the_image_is_the_hole_without_a_mask(address: str):
    (with_mask,), (without,) = _images(_post(address, seed=3)), _images(_post(address, image=MASK, mask=None, seed=3))
    assert np.array_equal(without[~HOLE], with_mask[~HOLE])
    assert without.shape == PHOTOGRAPH.shape


def test_same_seed_gives_the_same_bytes_and_the_answered_seed_repeats_them(address: str):
    first = _post(address, n=2)
    again = _post(address, n=2, seed=first.headers["x-seed"])
    assert first.json()["data"] == again.json()["data"]
    one, two = _images(first)
    assert not np.array_equal(one[HOLE], two[HOLE])


def test_other_seeds_give_other_images(address: str):
    (one,), (two,) = _images(_post(address, seed=1)), _images(_post(address, seed=2))
    assert not np.array_equal(one[HOLE], two[HOLE])


def test_reward_lies_within_its_bounds(address: str):
    for scored in _post(address, n=2).json()["data"]:
        assert scored["lower"] <= scored["reward"] <= scored["upper"]


def test_requests_at_once_are_answered_as_if_alone(address: str):
    requested = [(seed, 1 + seed % 2) for seed in range(6)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda r: _images(_post(address, seed=r[0], n=r[1])), requested))
    for (seed, n), images in zip(requested, together, strict=True):
        for image, expected in zip(images, _images(_post(address, seed=seed, n=n)), strict=True):
            rounding = 1
            assert np.abs(image.astype(int) - expected).max() <= rounding


def test_any_size_and_hole_is_answered(address: str):
    for height, width, hole in [(2, 3, np.s_[0, 0]), (40, 600, np.s_[5:9, :]), (700, 500, np.s_[100:650, 20:30])]:
        pixels = np.full((height, width, 4), 90, np.uint8)
        pixels[..., 3] = 255
        pixels[(*(hole if isinstance(hole, tuple) else (hole,)), 3)] = 0
        (image,) = _images(_post(address, image=_png(pixels), mask=None))
        assert image.shape == (height, width, 3)
        assert (image[pixels[..., 3] == 255] == 90).all()


def test_models_and_health(address: str):
    models = requests.get(f"{address}/v1/models", timeout=30).json()
    assert (models["object"], models["data"][0]["id"]) == ("list", "model")
    assert requests.get(f"{address}/healthz", timeout=30).json() == {"status": "ok"}
    assert requests.get(f"{address}/readyz", timeout=30).json()["models"] == {"model": "0"}


def test_a_white_mask_marks_what_a_transparent_one_does(address: str):
    white = _png(np.where(HOLE, 255, 0).astype(np.uint8))
    for form in ({"seed": 3}, {"seed": 3, "n": 2}):
        theirs = _post(address, mask=white, mask_convention="white", **form).json()["data"]
        assert theirs == _post(address, **form).json()["data"]


def test_an_extension_is_painted_around_known_pixels(address: str):
    (image,) = _images(_post(address, mask=None, expand="5,0,40,10", seed=1))
    assert image.shape == (HEIGHT + 10, WIDTH + 45, 3)
    assert np.array_equal(image[:HEIGHT, 5 : 5 + WIDTH], PHOTOGRAPH)
    assert image[:, :5].std() > 0, "and not left blank"


def test_the_best_of_some_samples_are_those_with_the_highest_lower_bound(address: str):
    every = _post(address, n=4, seed=9).json()["data"]
    best = _post(address, n=2, best_of=4, seed=9).json()["data"]
    assert best == sorted(every, key=lambda scored: scored["lower"], reverse=True)[:2]


def test_json_with_base64_is_answered_as_a_form(address: str):
    form = _post(address, seed=4).json()["data"]
    record = {"image": base64.b64encode(IMAGE).decode(), "num_inference_steps": 2, "seed": 4, "quality": None}
    record["mask"] = "data:image/png;base64," + base64.encodebytes(MASK).decode()
    response = requests.post(f"{address}/v1/images/edits", json=record, timeout=120)
    assert response.status_code == 200, response.text
    assert response.json()["data"] == form
    assert response.json()["size"] == f"{WIDTH}x{HEIGHT}"


def test_answers_are_scaled_to_a_size_of_the_same_shape(address: str):
    (image,) = _images(_post(address, size="100x65"))
    assert image.shape == (65, 100, 3)


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_other_formats_are_answered_when_asked_for(address: str, output_format: str):
    data = base64.b64decode(_post(address, output_format=output_format).json()["data"][0]["b64_json"])
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == (output_format.upper(), (WIDTH, HEIGHT))


def test_the_document_names_every_field(address: str):
    document = requests.get(f"{address}/openapi.json", timeout=30).json()
    content = document["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json"}
    for body in content.values():
        assert {"image", "mask", "n", "expand", "best_of", "seed"} <= set(body["schema"]["properties"])


BAD_REQUESTS = {
    "no image": ({"image": None}, 400, "image"),
    "not an image": ({"image": b"nonsense"}, 400, "image"),
    "no hole": ({"mask": None}, 400, "image"),
    "mask of another size": ({"mask": MASK, "image": _png(PHOTOGRAPH[1:])}, 400, "mask"),
    "n of 0": ({"n": 0}, 400, "n"),
    "n of 9": ({"n": 9}, 400, "n"),
    "n is a word": ({"n": "many"}, 400, "n"),
    "negative seed": ({"seed": -1}, 400, "seed"),
    "no steps": ({"num_inference_steps": 0}, 400, "num_inference_steps"),
    "url": ({"response_format": "url"}, 400, "response_format"),
    "best of fewer": ({"n": 3, "best_of": 2}, 400, "best_of"),
    "negative extension": ({"expand": "0,0,-1,0"}, 400, "expand"),
    "three sides": ({"expand": "1,2,3"}, 400, "expand"),
    "no word of numbers": ({"expand": "a,b,c,d"}, 400, "expand"),
    "another format": ({"output_format": "gif"}, 400, "output_format"),
    "another shape": ({"size": "256x256"}, 400, "size"),
    "size of a word": ({"size": "large"}, 400, "size"),
    "NaN": ({"num_inference_steps": "nan"}, 400, "num_inference_steps"),
    "a megabyte of prompt": ({"prompt": "x" * 2**20}, 400, "prompt"),
    "another policy": ({"policy_version": 7}, 404, "policy_version"),
    "two images": ({"image[]": "x", "image": None}, 400, "image"),
    "another model": ({"model": "dall-e-2"}, 404, "model"),
    "26 MB": ({"image": b"x" * 26_000_000}, 413, "image"),
    "70 MB": ({"image": b"x" * 70_000_000}, 413, None),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests_are_refused_in_openais_form(address: str, name: str):
    fields, status, param = BAD_REQUESTS[name]
    response = _post(address, **fields)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


def test_a_body_that_is_no_form_is_refused_in_openais_form(address: str):
    url = f"{address}/v1/images/edits"
    broken = {"content-type": "multipart/form-data"}
    bodies = [{"json": record} for record in ({"image": 1}, {"image": "?"}, [], "x", None)]
    json_type = {"content-type": "application/json"}
    bodies += [{"data": data, "headers": json_type} for data in (b"{", b'{"n": Infinity}', b"\xff", b"[" * 100_000)]
    for options in (*bodies, {"data": b"--x", "headers": broken}, {"data": {"image": "text"}}):
        response = requests.post(url, timeout=30, **options)
        assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
    assert requests.get(f"{address}/v1/nothing", timeout=30).json()["error"]["message"] == "Not Found"
    assert requests.get(url, timeout=30).status_code == 405


def test_incomplete_folders_and_taken_ports_are_named_before_ray_starts(tmp_path: Path):
    import ray

    from rlhf.errors import UserError
    from serve.application import run, to_settings

    (tmp_path / "empty").mkdir()
    was_initialized = ray.is_initialized()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = {
            f"{port}: cannot be listened on": {},
            "no complete policy": {"models": [str(tmp_path / "empty")]},
            "no such folder": {"models": [str(tmp_path / "nothing")]},
            "reward.json": {"reward": tmp_path},
            "two models are called x": {"models": ["x=tiny", "x=org/other"]},
            "names take letters": {"models": ["a b=tiny"]},
            "names.json": {"catalogue": tmp_path / "names.json"},
            "keys": {"api_keys": tmp_path / "keys"},
        }
        for message, arguments in refused.items():
            with pytest.raises(UserError, match=message):
                run(to_settings(arguments), "127.0.0.1", port)
        with pytest.raises(UserError, match="no API keys"):
            run(to_settings({}), "0.0.0.0", port)
    assert ray.is_initialized() == was_initialized


def test_unknown_argument_of_build_is_refused_and_the_known_ones_are_listed():
    from rlhf.errors import UserError
    from serve.application import build

    with pytest.raises(UserError, match="modle.*known arguments: .*models"):
        build({"modle": "tiny"})
    with pytest.raises(UserError, match="max_replicas"):
        build({"replicas": 3, "max_replicas": 2})
