"""A running service for tests: small models, Ray on this machine, HTTP on a free port."""

import base64
import io
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import requests
from PIL import Image
from small_parts import save_moved_policy

from rlhf.promotion.catalogue import Catalogue, write_catalogue

WIDTH, HEIGHT = 200, 130
RNG = np.random.default_rng(0)
PHOTOGRAPH = np.dstack(
    [np.linspace(0, 255, WIDTH)[None].repeat(HEIGHT, 0), *RNG.integers(0, 256, (2, HEIGHT, WIDTH))]
).astype(np.uint8)
HOLE = np.zeros((HEIGHT, WIDTH), bool)
HOLE[40:80, 120:150] = True


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


IMAGE = png(PHOTOGRAPH)
MASK = png(np.dstack([PHOTOGRAPH, np.where(HOLE, 0, 255).astype(np.uint8)]))


def save_models(folder: Path) -> dict[str, object]:
    """An untrained tiny pipeline, three policies on it and an unfitted reward; returns the settings to serve them."""
    from small_networks import build_pipeline

    build_pipeline().save_pretrained(folder / "model")
    _save_reward(folder / "reward")
    for version, kind in ((1, "lora"), (2, "full"), (3, "lora")):
        save_moved_policy(folder / "model", folder / f"policy-{version}", version=version, trainable=kind)
    write_catalogue(Catalogue(), folder / "names.json")
    return {
        "models": [str(folder / "model"), f"aligned={folder / 'policy-1'}", f"whole={folder / 'policy-2'}"],
        "catalogue": folder / "names.json",
        "reward": folder / "reward",
        "store": folder / "store",
    }


@contextmanager
def running_service(settings: dict[str, object], num_cpus: int = 2) -> Iterator[str]:
    """The address of a service on a Ray of its own."""
    from ray import serve as ray_serve

    from actors.session.ray_session import ray_session
    from serve.application import start, to_settings

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ray_session(num_cpus=num_cpus):
        try:
            yield start(to_settings(settings), "127.0.0.1", port)
        finally:
            ray_serve.shutdown()


def _save_reward(folder: Path) -> None:
    import torch

    from rlhf.rewards.learned.bound import RidgeHead
    from rlhf.rewards.learned.feature_network import FeatureNetwork, SmallBackbone
    from rlhf.rewards.learned.reward_model import Calibration, RewardModel

    folder.mkdir()
    fields = dict.fromkeys(Calibration.__dataclass_fields__, 1.0)
    RewardModel(
        network=FeatureNetwork(SmallBackbone(), 4).eval(),
        head=RidgeHead(weight=torch.ones(5).double(), cholesky=torch.eye(5).double(), ridge=1.0),
        calibration=Calibration(**fields),
        backbone="small",
        feature_dim=4,
    ).save(folder)


def post(address: str, image: bytes | None = IMAGE, mask: bytes | None = MASK, **form: object) -> requests.Response:
    """An edit of two steps."""
    files = {k: (f"{k}.png", v, "image/png") for k, v in {"image": image, "mask": mask}.items() if v is not None}
    form = {"num_inference_steps": 2, **form}
    return requests.post(f"{address}/v1/images/edits", files=files, data=form, timeout=120)


def decode(data: str) -> np.ndarray:
    """An image of an answer."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def images_of(response: requests.Response) -> list[np.ndarray]:
    """All images of an answer."""
    assert response.status_code == 200, response.text
    return [decode(record["b64_json"]) for record in response.json()["data"]]
