"""Reward that is a user's own Python function, `module:name`."""

import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rlhf.config.reward_entry import RewardEntry
from rlhf.errors import UserError
from rlhf.rewards.deadline import LateError, call_within
from rlhf.rewards.opening import Opening
from rlhf.rewards.scores import Scores


@dataclass(frozen=True, kw_only=True)
class PythonFunction:
    """Calls `function(images, masks, captions)`, which returns B numbers: a tensor, an array or a list."""

    name: str
    label: str
    """Place of the function, `module:name`."""
    function: Callable
    text: str | None
    timeout_s: float = 600.0
    """Seconds after which a call has failed."""

    def score(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]) -> Scores:
        """Scores images; shapes as in Reward.

        Raises UserError if the function raises, is late, or does not return B numbers.
        SystemExit and KeyboardInterrupt are the function's faults too: they would end the process, and whoever waits
        for it would take the prompts for the cause.
        """
        texts = list(captions) if self.text is None else [self.text] * len(captions)

        @torch.no_grad()
        def call() -> torch.Tensor:
            # Reading what is returned may run the user's code too, such as a generator's or `__array__`.
            return self._to_tensor(self.function(images.clone(), masks.clone(), texts), len(images))

        try:
            return Scores(reward=call_within(self.timeout_s, call))
        except UserError:
            raise
        except LateError as error:
            raise UserError(
                f"reward {self.name}: {self.label} has not returned after {self.timeout_s:g} s; "
                "mend it, or raise call_timeout_s"
            ) from error
        # The user's code may raise anything, and only the user can mend it: the error names the place.
        except BaseException as error:
            raise UserError(f"reward {self.name}: {self.label} raised {_describe(error)}") from error

    def _to_tensor(self, returned: object, count: int) -> torch.Tensor:
        try:
            values = returned if isinstance(returned, torch.Tensor) else torch.as_tensor(np.asarray(returned))
            if values.is_complex():
                raise TypeError("complex numbers have no order")
            reward = values.detach().cpu().double()
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"reward {self.name}: {self.label} returned {type(returned).__name__}, no real numbers ({error})"
            ) from error
        if reward.shape != (count,):
            raise UserError(
                f"reward {self.name}: {self.label} returned shape {tuple(reward.shape)} for {count} images; "
                f"return one number per image, shape ({count},)"
            )
        return reward


def open_entry(entry: RewardEntry, opening: Opening) -> PythonFunction:
    """Imports `module:name`; the folder `path` is searched after the installed packages.

    Raises UserError if the module does not import or has no such function.
    """
    assert entry.function is not None
    label, folder, name = entry.function, Path(entry.path or ".").resolve(), entry.label
    module_name, _, attribute = label.partition(":")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise UserError(
            f"reward {name}: module {module_name!r} does not import from {folder} ({error}); set `path` to its folder"
        ) from error
    # A script may end itself, or fail in any way.
    except (Exception, SystemExit) as error:
        raise UserError(f"reward {name}: module {module_name!r} raised {_describe(error)} on import") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise UserError(f"reward {name}: {module.__file__} has no function {attribute!r}")
    return PythonFunction(name=name, label=label, function=function, text=entry.text, timeout_s=entry.call_timeout_s)


def _describe(error: BaseException) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
