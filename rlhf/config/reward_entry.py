"""One entry of the configuration's `rewards:`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlhf.config.config_types import Positive, Section

Kind = Literal["model", "clip_score", "pick_score", "hpsv2", "image_reward", "aesthetic", "seam", "function", "http"]
READ_BY_KIND: dict[str, set[str]] = {
    "model": {"path"},
    "clip_score": {"path", "text"},
    "pick_score": {"path", "text"},
    "hpsv2": {"path", "text"},
    "image_reward": {"path", "text"},
    "aesthetic": {"path", "tower"},
    "seam": set(),
    "function": {"function", "path", "text"},
    "http": {"url", "text", "timeout_s", "retries"},
}
"""The keys that mean something to a kind, beside those of all kinds."""
OF_ALL_KINDS = {"kind", "name", "weight", "mean", "std"}
TEXT_KINDS = {"clip_score", "pick_score", "hpsv2", "image_reward"}
"""Kinds that compare the image with a text, and so cannot do without."""


class RewardEntry(Section):
    """A reward, its weight in the sum, and where it comes from."""

    kind: Kind
    """`model`: what `rlhf reward` trained; `seam`: gradients across the hole's border; `function`: Python;
    `http`: a server; the others: published models."""
    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None
    """What metrics and errors call it; default: its kind."""
    weight: float = 1.0
    """Of the normalised reward in the sum; negative makes it a penalty, 0 only a metric."""
    path: str | None = None
    """Folder or hub name of the weights (`model`: default is --reward); `function`: the folder of its module."""
    tower: str = "openai/clip-vit-large-patch14"
    """aesthetic: folder or hub name of the CLIP model below the published MLP."""
    function: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] | None = None
    """function: `module:name`, called with images [B, 3, H, W], masks [B, 1, H, W] and B captions."""
    url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """http: where batches are posted, such as http://127.0.0.1:8100/v1/rewards."""
    text: Annotated[str, Field(min_length=1)] | None = None
    """Takes the place of the prompts' captions."""
    mean: float | None = None
    """Subtracted from the reward; default: measured in the run's first rollout."""
    std: Positive | None = None
    """Divides the reward; default: measured in the run's first rollout."""
    timeout_s: Positive = 30.0
    """http: seconds of silence after which a try has failed."""
    retries: Annotated[int, Field(ge=0)] = 3
    """http: further tries after a failure, with pauses that double."""

    @property
    def label(self) -> str:
        """The name, or the kind where it has none."""
        return self.name or self.kind

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> "RewardEntry":
        # Not `model_fields_set`: saved configurations hold every key.
        changed = {key for key, field in type(self).model_fields.items() if getattr(self, key) != field.default}
        foreign = sorted(changed - OF_ALL_KINDS - READ_BY_KIND[self.kind])
        if foreign:
            known = ", ".join(sorted(OF_ALL_KINDS | READ_BY_KIND[self.kind]))
            raise ValueError(f"{foreign[0]!r} means nothing to kind {self.kind!r}; it reads {known}")
        needed = {"function": "function", "http": "url"}.get(self.kind)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"kind {self.kind!r} needs {needed!r}")
        return self
