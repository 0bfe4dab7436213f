"""The table of the kinds of reward."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RewardKind:
    """One kind of reward: the module that opens it, and the keys of an entry that it reads."""

    module: str
    """Module with `open_entry(entry, device)`, imported when a reward of this kind is opened. The module of `model` has
    `load_reward`, since a reward folder may come from --reward and takes the kind of trust weight."""
    reads: tuple[str, ...] = ()
    """Keys that mean something to this kind, besides those of every kind."""
    needs: str | None = None
    """Key that an entry of this kind must set."""
    compares_texts: bool = False
    """Whether every image needs a text: its caption or the entry's `text`."""
    published_as: str | None = None
    """Name of a published score in tables; None for rewards of one's own."""


KINDS = {
    "model": RewardKind(module="rlhf.rewards.learned.reward_folder", reads=("path",)),
    "clip_score": RewardKind(
        module="rlhf.rewards.clip_score", reads=("path", "text"), compares_texts=True, published_as="CLIP score"
    ),
    "image_reward": RewardKind(
        module="rlhf.rewards.image_reward", reads=("path", "text"), compares_texts=True, published_as="ImageReward"
    ),
    "aesthetic": RewardKind(module="rlhf.rewards.aesthetic", reads=("path", "tower"), published_as="aesthetic score"),
    "pick_score": RewardKind(
        module="rlhf.rewards.pick_score", reads=("path", "text"), compares_texts=True, published_as="PickScore"
    ),
    "hpsv2": RewardKind(module="rlhf.rewards.hpsv2", reads=("path", "text"), compares_texts=True, published_as="HPSv2"),
    "seam": RewardKind(module="rlhf.rewards.seam"),
    "function": RewardKind(
        module="rlhf.rewards.python_function", reads=("function", "path", "text", "call_timeout_s"), needs="function"
    ),
    "http": RewardKind(module="rlhf.rewards.remote_server", reads=("url", "text", "timeout_s", "retries"), needs="url"),
}
"""Kinds of reward by the name that configurations use. A new reward is one module and one line here."""
