"""The service as its clients see it: HTTP in, HTTP out, on Ray started for this file alone."""

import base64
import concurrent.futures
import io
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from listening import beyond_loopback, listening, status_of_call
from PIL import Image
from small_service import (
    HEIGHT,
    HOLE,
    IMAGE,
    MASK,
    PHOTOGRAPH,
    WIDTH,
    images_of,
    png,
    post,
    running_service,
    save_models,
)

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_service(save_models(tmp_path_factory.mktemp("served"))) as started:
        yield started


def test_answer_keeps_size_and_known_pixels_and_repaints_the_hole(address: str):
    response = post(address, seed=3)
    (image,) = images_of(response)
    assert image.shape == PHOTOGRAPH.shape
    assert np.array_equal(image[~HOLE], PHOTOGRAPH[~HOLE])
    assert (image[HOLE] != PHOTOGRAPH[HOLE]).any(axis=1).mean() > 0.9
    assert (response.headers["x-policy-version"], response.headers["x-seed"]) == ("0", "3")


def test_transparent_part_of_the_image_is_the_hole_without_a_mask(address: str):
    (with_mask,), (without,) = images_of(post(address, seed=3)), images_of(post(address, image=MASK, mask=None, seed=3))
    assert np.array_equal(without[~HOLE], with_mask[~HOLE])
    assert without.shape == PHOTOGRAPH.shape


def test_same_seed_gives_the_same_bytes_and_the_answered_seed_repeats_them(address: str):
    first = post(address, n=2)
    again = post(address, n=2, seed=first.headers["x-seed"])
    assert first.json()["data"] == again.json()["data"]
    one, two = images_of(first)
    assert not np.array_equal(one[HOLE], two[HOLE])


def test_other_seeds_give_otherimages_of(address: str):
    (one,), (two,) = images_of(post(address, seed=1)), images_of(post(address, seed=2))
    assert not np.array_equal(one[HOLE], two[HOLE])


def test_reward_lies_within_its_bounds(address: str):
    for scored in post(address, n=2).json()["data"]:
        assert scored["lower"] <= scored["reward"] <= scored["upper"]


def test_requests_at_once_are_answered_as_if_alone(address: str):
    requested = [(seed, 1 + seed % 2) for seed in range(6)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda r: images_of(post(address, seed=r[0], n=r[1])), requested))
    for (seed, n), images in zip(requested, together, strict=True):
        for image, expected in zip(images, images_of(post(address, seed=seed, n=n)), strict=True):
            rounding = 1
            assert np.abs(image.astype(int) - expected).max() <= rounding


def test_any_size_and_hole_is_answered(address: str):
    for height, width, hole in [(2, 3, np.s_[0, 0]), (40, 600, np.s_[5:9, :]), (700, 500, np.s_[100:650, 20:30])]:
        pixels = np.full((height, width, 4), 90, np.uint8)
        pixels[..., 3] = 255
        pixels[(*(hole if isinstance(hole, tuple) else (hole,)), 3)] = 0
        (image,) = images_of(post(address, image=png(pixels), mask=None))
        assert image.shape == (height, width, 3)
        assert (image[pixels[..., 3] == 255] == 90).all()


def test_models_and_health(address: str):
    models = requests.get(f"{address}/v1/models", timeout=30).json()
    assert (models["object"], models["data"][0]["id"]) == ("list", "model")
    assert requests.get(f"{address}/healthz", timeout=30).json() == {"status": "ok"}
    versions = requests.get(f"{address}/readyz", timeout=30).json()["models"]
    assert [version.partition("-")[0] for version in versions.values()] == ["0", "1", "2"]


def test_a_white_mask_marks_what_a_transparent_one_does(address: str):
    white = png(np.where(HOLE, 255, 0).astype(np.uint8))
    for form in ({"seed": 3}, {"seed": 3, "n": 2}):
        theirs = post(address, mask=white, mask_convention="white", **form).json()["data"]
        assert theirs == post(address, **form).json()["data"]


def test_an_extension_is_painted_around_known_pixels(address: str):
    (image,) = images_of(post(address, mask=None, expand="5,0,40,10", seed=1))
    assert image.shape == (HEIGHT + 10, WIDTH + 45, 3)
    assert np.array_equal(image[:HEIGHT, 5 : 5 + WIDTH], PHOTOGRAPH)
    assert image[:, :5].std() > 0, "and not left blank"


def test_the_best_of_some_samples_are_those_with_the_highest_lower_bound(address: str):
    every = post(address, n=4, seed=9).json()["data"]
    best = post(address, n=2, best_of=4, seed=9).json()["data"]
    assert best == sorted(every, key=lambda scored: scored["lower"], reverse=True)[:2]


def test_json_with_base64_is_answered_as_a_form(address: str):
    form = post(address, seed=4).json()["data"]
    record = {"image": base64.b64encode(IMAGE).decode(), "num_inference_steps": 2, "seed": 4, "quality": None}
    record["mask"] = ["data:image/png;base64," + base64.encodebytes(MASK).decode()]
    response = requests.post(f"{address}/v1/images/edits", json=record, timeout=120)
    assert response.status_code == 200, response.text
    assert response.json()["data"] == form
    assert response.json()["size"] == f"{WIDTH}x{HEIGHT}"


def test_answers_are_scaled_to_a_size_of_the_same_shape(address: str):
    (image,) = images_of(post(address, size="100x65"))
    assert image.shape == (65, 100, 3)


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_other_formats_are_answered_when_asked_for(address: str, output_format: str):
    data = base64.b64decode(post(address, output_format=output_format).json()["data"][0]["b64_json"])
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == (output_format.upper(), (WIDTH, HEIGHT))


def test_the_document_names_every_field(address: str):
    document = requests.get(f"{address}/openapi.json", timeout=30).json()
    content = document["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json"}
    for body in content.values():
        assert {"image", "mask", "n", "expand", "best_of", "seed"} <= set(body["schema"]["properties"])
    page = requests.get(f"{address}/docs", timeout=30).text
    assert all(f"<code>{name}</code>" in page for name in body["schema"]["properties"])
    assert "//" not in page


BAD_REQUESTS = {
    "no image": ({"image": None}, 400, "image"),
    "not an image": ({"image": b"nonsense"}, 400, "image"),
    "no hole": ({"mask": None}, 400, "image"),
    "mask of another size": ({"mask": MASK, "image": png(PHOTOGRAPH[1:])}, 400, "mask"),
    "n of 0": ({"n": 0}, 400, "n"),
    "n of 9": ({"n": 9}, 400, "n"),
    "n is a word": ({"n": "many"}, 400, "n"),
    "negative seed": ({"seed": -1}, 400, "seed"),
    "no steps": ({"num_inference_steps": 0}, 400, "num_inference_steps"),
    "another answer": ({"response_format": "bytes"}, 400, "response_format"),
    "guidance without end": ({"guidance_scale": "inf"}, 400, "guidance_scale"),
    "too many estimates": ({"stream": True, "partial_images": 9}, 400, "partial_images"),
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
    response = post(address, **fields)
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


def test_a_service_and_its_ray_listen_on_loopback_alone(address: str):
    found = listening()
    assert any(command.startswith("ray::ServeReplica") for command in found.values())
    assert int(address.rpartition(":")[2]) in {port for _, port in found}
    # Ray Serve binds the servers through which its replicas call each other to all interfaces; they ask for the token.
    reachable = beyond_loopback(found)
    assert {command.split(":")[2] for command in reachable.values()} <= {"ServeReplica"}
    for _, port in reachable:
        for token in (None, "0" * 64):
            assert status_of_call(port, "ray.serve.ASGIService/HandleRequest", token) == "UNAUTHENTICATED"


def test_incomplete_folders_and_taken_ports_are_named_before_ray_starts(tmp_path: Path):
    from rlhf.errors import UserError
    from serve.application import check_before_start, to_settings

    (tmp_path / "empty").mkdir()
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
                check_before_start(to_settings(arguments), "127.0.0.1", port)
        with pytest.raises(UserError, match="no API keys"):
            check_before_start(to_settings({}), "0.0.0.0", port)


def test_unknown_argument_of_build_is_refused_and_the_known_ones_are_listed():
    from rlhf.errors import UserError
    from serve.application import build

    with pytest.raises(UserError, match="modle.*known arguments: .*models"):
        build({"modle": "tiny"})
    with pytest.raises(UserError, match="max_replicas"):
        build({"replicas": 3, "max_replicas": 2})
