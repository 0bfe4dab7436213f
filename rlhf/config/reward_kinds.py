"""The table of the kinds of reward."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class RewardKind:
    """One kind of reward: the module that opens it, and the keys of an entry that it reads."""

    module: str
    """Module with `open_entry(entry, opening)`, imported when a reward of this kind is opened."""
    meaning: str
    """Source of the reward in a few words, for the documents."""
    reads: tuple[str, ...] = ()
    """Keys that mean something to this kind, besides `paths` and those of every kind."""
    paths: Mapping[str, str | None] = field(default_factory=dict)
    """Keys that may name a file or folder of this machine, with the place that a key without a value means."""
    needs: str | None = None
    """Key that an entry of this kind must set."""
    compares_texts: bool = False
    """Whether every image needs a text: its caption or the entry's `text`."""
    published_as: str | None = None
    """Name of a published score in tables; None for rewards of one's own."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys that mean something to this kind, besides those of every kind."""
        return (*self.reads, *self.paths)


KINDS = {
    "model": RewardKind(
        module="rlhf.rewards.learned.reward_folder",
        meaning="what `rlhf reward` trained, or PrefPaint's released reward",
        paths={"path": None},
    ),
    "clip_score": RewardKind(
        module="rlhf.rewards.clip_score",
        meaning="cosine of image and text by CLIP",
        reads=("text",),
        paths={"path": None},
        compares_texts=True,
        published_as="CLIP score",
    ),
    "image_reward": RewardKind(
        module="rlhf.rewards.image_reward",
        meaning="BLIP trained on people's rankings",
        reads=("text",),
        paths={"path": None},
        compares_texts=True,
        published_as="ImageReward",
    ),
    "aesthetic": RewardKind(
        module="rlhf.rewards.aesthetic",
        meaning="LAION's predictor on CLIP",
        paths={"path": None, "tower": None},
        published_as="aesthetic score",
    ),
    "pick_score": RewardKind(
        module="rlhf.rewards.pick_score",
        meaning="CLIP trained on people's choices",
        reads=("text",),
        paths={"path": None},
        compares_texts=True,
        published_as="PickScore",
    ),
    "hpsv2": RewardKind(
        module="rlhf.rewards.hpsv2",
        meaning="CLIP trained on people's preferences",
        reads=("text",),
        paths={"path": None},
        compares_texts=True,
        published_as="HPSv2",
    ),
    "seam": RewardKind(module="rlhf.rewards.seam", meaning="gradients across the hole's border"),
    "function": RewardKind(
        module="rlhf.rewards.python_function",
        meaning="a Python function",
        reads=("function", "text", "call_timeout_s"),
        paths={"path": "."},
        needs="function",
    ),
    "http": RewardKind(
        module="rlhf.rewards.remote_server",
        meaning="a server",
        reads=("url", "text", "timeout_s", "retries"),
        needs="url",
    ),
}
"""Kinds of reward by the name that configurations use. A new reward is one module and one line here."""
