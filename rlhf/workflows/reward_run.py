"""One run of `rlhf reward`: its inputs and its training, in this process or as one of several workers."""

from dataclasses import dataclass
from pathlib import Path

from rlhf import __version__
from rlhf.config.run_config import RewardConfig
from rlhf.data.annotators import load_annotations
from rlhf.data.candidate_table import CandidateTable
from rlhf.data.prompts import PromptTable
from rlhf.data.ranks import ALONE, Ranks
from rlhf.data.rows import AnnotationRow
from rlhf.errors import UserError
from rlhf.rewards.learned.reward_report import RewardReport
from rlhf.rewards.learned.reward_training import train_reward

Tables = tuple[PromptTable, CandidateTable, list[AnnotationRow]]
"""Prompts, their candidates, and annotations."""


@dataclass(frozen=True, kw_only=True)
class RewardRun:
    """What a reward is trained on; folders that every worker reaches."""

    prompts: Path
    candidates: Path
    annotations: Path
    out: Path
    config: RewardConfig
    seed: int
    command: str | None = None
    """Command line, for the page."""
    version: str = __version__
    """Version of prefpaint-ray that asks for the run."""

    def open_tables(self) -> Tables:
        """Opens the tables. Raises UserError if one cannot be read, or this process is of another version."""
        if self.version != __version__:
            raise UserError(
                f"reward: a worker has prefpaint-ray {__version__}, this machine {self.version}; install one version"
            )
        prompts = PromptTable(self.prompts)
        return prompts, CandidateTable(self.candidates, prompts), load_annotations(self.annotations)


def run_reward(run: RewardRun, tables: Tables, ranks: Ranks = ALONE) -> RewardReport:
    """Trains a reward; every rank calls it. Raises UserError as `train_reward` does."""
    return train_reward(*tables, run.out, run.config, seed=run.seed, command=run.command, ranks=ranks)
