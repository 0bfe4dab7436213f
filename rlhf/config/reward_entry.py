"""One entry of the configuration's `rewards:`."""

from typing import Annotated

from pydantic import Field, model_validator

from rlhf.config.config_types import Positive, Section, one_of
from rlhf.config.reward_kinds import KINDS

OF_EVERY_KIND = ("kind", "name", "weight", "mean", "std")


class RewardEntry(Section):
    """A reward, its weight in the sum, and its source."""

    kind: Annotated[
        str,
        one_of(lambda: KINDS),
        Field(description="; ".join(f"`{kind}`: {row.meaning}" for kind, row in KINDS.items()) + "."),
    ]
    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None
    """Name in metrics and errors; default: the kind."""
    weight: float = 1.0
    """Weight of the normalised reward in the sum; negative makes it a penalty, 0 only a metric."""
    path: str | None = None
    """Folder or hub name of the weights (`model`: default is --reward); `function`: the folder of its module."""
    tower: str = "openai/clip-vit-large-patch14"
    """aesthetic: folder or hub name of the CLIP model below the published MLP."""
    function: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] | None = None
    """function: `module:name`, called with images [B, 3, H, W], masks [B, 1, H, W] and B captions."""
    url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """http: address to post batches to, such as http://127.0.0.1:8100/v1/rewards."""
    text: Annotated[str, Field(min_length=1)] | None = None
    """Fixed text in place of the prompts' captions."""
    mean: float | None = None
    """Mean to subtract from the reward; default: measured in the run's first rollout."""
    std: Positive | None = None
    """Deviation to divide the reward by; default: measured in the run's first rollout."""
    timeout_s: Positive = 30.0
    """http: seconds after which a try without a whole answer has failed."""
    retries: Annotated[int, Field(ge=0)] = 3
    """http: retries after a failure, with pauses that double."""

    call_timeout_s: Positive = 600.0
    """function: seconds after which a call that has not returned ends the run."""

    @property
    def label(self) -> str:
        """The name, or the kind if the entry has no name."""
        return self.name or self.kind

    @property
    def reads_captions(self) -> bool:
        """Whether every image needs a caption: the kind compares texts, and the entry fixes none."""
        return KINDS[self.kind].compares_texts and self.text is None

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> "RewardEntry":
        kind = KINDS[self.kind]
        # Not `model_fields_set`: saved configurations hold every key.
        changed = {key for key, field in type(self).model_fields.items() if getattr(self, key) != field.default}
        foreign = sorted(changed.difference(OF_EVERY_KIND, kind.keys))
        if foreign:
            known = ", ".join(sorted({*OF_EVERY_KIND, *kind.keys}))
            raise ValueError(f"{foreign[0]!r} means nothing to kind {self.kind!r}; it reads {known}")
        if kind.needs and getattr(self, kind.needs) is None:
            raise ValueError(f"kind {self.kind!r} needs {kind.needs!r}")
        return self
