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
from rlhf.rewards.scores import Scores


@dataclass(frozen=True, kw_only=True)
class PythonFunction:
    """Calls `function(images, masks, captions)`, which returns B numbers: a tensor, an array or a list."""

    name: str
    label: str
    """Place of the function, `module:name`."""
    function: Callable
    text: str | None

    @torch.no_grad()
    def score(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]) -> Scores:
        """Scores images; shapes as in Reward. Raises UserError if the function raises or does not return B numbers."""
        texts = list(captions) if self.text is None else [self.text] * len(captions)
        try:
            returned = self.function(images.clone(), masks.clone(), texts)
        # The user's code may raise anything, and only the user can mend it: the error names the place.
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"reward {self.name}: {self.label} raised {type(error).__name__}: {error} "
                f"({place.filename}, line {place.lineno})"
            ) from error
        return Scores(reward=self._to_tensor(returned, len(images)))

    def _to_tensor(self, returned: object, count: int) -> torch.Tensor:
        try:
            values = returned if isinstance(returned, torch.Tensor) else torch.as_tensor(np.asarray(returned))
            reward = values.detach().cpu().double()
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"reward {self.name}: {self.label} returned {type(returned).__name__}, no numbers"
            ) from error
        if reward.shape != (count,):
            raise UserError(
                f"reward {self.name}: {self.label} returned shape {tuple(reward.shape)} for {count} images; "
                f"return one number per image, shape ({count},)"
            )
        return reward


def open_entry(entry: RewardEntry, device: torch.device) -> PythonFunction:
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
    function = getattr(module, attribute, None)
    if not callable(function):
        raise UserError(f"reward {name}: {module.__file__} has no function {attribute!r}")
    return PythonFunction(name=name, label=label, function=function, text=entry.text)
