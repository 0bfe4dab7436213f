"""Rows of the tables of judged samples, by column."""

from collections.abc import Iterator, Sequence
from typing import TypedDict

from rlhf.data.prompts import Prompt
from rlhf.evaluation.judging import Judged, encode_picture
from rlhf.storage.tables import ImageCell, image_cell


class EvaluationRow(TypedDict):
    """A row of `samples.parquet`: one sample of the base or the aligned model."""

    prompt_id: str
    sample_index: int
    photograph: str
    hole: str
    policy: str
    """`base` or `aligned`."""
    image: ImageCell
    reward: float
    uncertainty: float
    gold: float
    sharpness: float


class CurveRow(TypedDict):
    """A row of `curve/samples.parquet`: one sample of a saved policy, without its image."""

    prompt_id: str
    sample_index: int
    photograph: str
    policy_version: int
    reward: float
    gold: float


def evaluation_rows(name: str, judged: Judged, prompts: Sequence[Prompt]) -> Iterator[EvaluationRow]:
    """Yields the samples of the policy `name`, prompt by prompt."""
    for p, prompt in enumerate(prompts):
        for s in range(judged.reward.shape[1]):
            path = f"{prompt.prompt_id}_{s}_{name}.png"
            yield {
                "prompt_id": prompt.prompt_id,
                "sample_index": s,
                "photograph": prompt.photograph,
                "hole": prompt.hole,
                "policy": name,
                "image": image_cell(encode_picture(judged.images[p][s]), path),
                "reward": judged.reward[p, s],
                "uncertainty": judged.uncertainty[p, s],
                "gold": judged.gold[p, s],
                "sharpness": judged.sharpness[p, s],
            }


def curve_rows(version: int, judged: Judged, prompts: Sequence[Prompt]) -> Iterator[CurveRow]:
    """Yields the samples of a policy version, prompt by prompt."""
    for p, prompt in enumerate(prompts):
        for s in range(judged.reward.shape[1]):
            yield {
                "prompt_id": prompt.prompt_id,
                "sample_index": s,
                "photograph": prompt.photograph,
                "policy_version": version,
                "reward": judged.reward[p, s],
                "gold": judged.gold[p, s],
            }
