"""The quarantine: prompts that are no longer sampled, with the reason; kept in the run folder."""

from pathlib import Path

import numpy as np

from rlhf.errors import UserError
from rlhf.storage.atomic_files import atomic_write_json, read_json


class Quarantine:
    """Keeps the reason by prompt id in `quarantine.json` of a run folder."""

    def __init__(self, out: Path) -> None:
        self._path = out / "quarantine.json"
        self.reasons: dict[str, str] = (
            read_json(self._path, "mend it, or remove it to try all prompts again") if self._path.is_file() else {}
        )

    def add(self, prompt_id: str, reason: str) -> None:
        """Quarantines a prompt: another one replaces it from now on."""
        self.reasons[prompt_id] = reason
        atomic_write_json(self._path, self.reasons)

    def substitute(self, chosen: list[str], ids: list[str], key: tuple[int, ...]) -> list[str]:
        """Returns the chosen prompts, with those in quarantine replaced by others of `ids`, drawn by `key`.

        Raises UserError if too few others are left.
        """
        kept = [name for name in chosen if name not in self.reasons]
        if len(kept) == len(chosen):
            return chosen
        others = [ids[i] for i in np.random.default_rng(key).permutation(len(ids))]
        spare = [name for name in others if name not in self.reasons and name not in kept]
        if len(spare) < len(chosen) - len(kept):
            raise UserError(f"align: too few prompts are left: {len(self.reasons)} were quarantined, see {self._path}")
        return [spare.pop(0) if name in self.reasons else name for name in chosen]
