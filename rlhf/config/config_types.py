"""Types of the configuration's values, and the base of its sections."""

from collections.abc import Callable, Iterable
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0.0)]
PositiveShare = Annotated[float, Field(gt=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]


class Section(BaseModel):
    """Base of all sections: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def one_of(known: Callable[[], Iterable[str]]) -> AfterValidator:
    """Returns the validator of a name out of a table that may grow; its message is that of pydantic's Literal."""

    def check(name: str) -> str:
        *others, last = map(repr, known())
        if repr(name) not in (*others, last):
            raise ValueError(f"Input should be {', '.join(others)} or {last}")
        return name

    return AfterValidator(check)
