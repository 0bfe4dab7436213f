"""Measures the cost of a reward and its bound, on 64 images at once and one by one through PIL."""

from pathlib import Path

import torch

from benchmarks.measure import Figures, interleave, spread
from rlhf.data.prompts import load_prompts
from rlhf.rewards.learned.reward_folder import load_reward
from rlhf.rewards.learned.reward_model import RewardModel
from rlhf.storage.images import decode_image, encode_png, image_to_tensor, tensor_to_image

IMAGES = 64


def measure(run: Path, rounds: int) -> Figures:
    """Measures images per second, and the bound's share of the time of scoring a batch."""
    reward = load_reward(run / "reward")
    assert isinstance(reward, RewardModel)
    prompts = load_prompts(run / "held_out_prompts")[:IMAGES]
    images, masks = torch.stack([p.image for p in prompts]), torch.stack([p.mask for p in prompts])
    files = [encode_png(tensor_to_image(image)) for image in images]

    def one_by_one() -> None:
        for file, mask in zip(files, masks, strict=True):
            reward.score(image_to_tensor(decode_image(file))[None], mask[None])

    with torch.no_grad():
        features = reward.network(images, masks)
        seconds = interleave(
            {
                "batched": lambda: reward.score(images, masks),
                "one by one, from PNG": one_by_one,
                "the bound alone": lambda: reward.head.uncertainty(features),
            },
            rounds,
        )
    bound = [b / s for b, s in zip(seconds["the bound alone"], seconds["batched"], strict=True)]
    rates = {name: spread([len(images) / s for s in found]) for name, found in seconds.items() if "bound" not in name}
    return {"images_per_s": rates, "bound_share": spread(bound)}
