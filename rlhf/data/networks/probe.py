"""A probe: logistic regressions on the features of a filled hole."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from rlhf.storage.atomic_files import atomic_write

LIMIT = 4.0
"""Largest standardised feature; a picture far from all that the probe was trained on gains nothing by going further."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Standardised features times weights, through a sigmoid."""

    mean: torch.Tensor
    """[D]."""
    std: torch.Tensor
    """[D]."""
    weight: torch.Tensor
    """[D, K], a column per mark."""
    bias: torch.Tensor
    """[K]."""

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Returns marks in (0, 1), [B, K], of features [B, D]."""
        return torch.sigmoid(self.logits(features))

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Returns the logits of the marks, [B, K]."""
        standard = ((features - self.mean) / self.std).clamp(-LIMIT, LIMIT)
        return standard @ self.weight + self.bias

    def save(self, path: Path) -> None:
        """Writes the probe as a safetensors file."""
        atomic_write(path, lambda temporary: save_file({k: v.contiguous() for k, v in vars(self).items()}, temporary))


def load_probe(path: Path) -> Probe:
    """Reads what `Probe.save` wrote."""
    return Probe(**load_file(path))


def fit_probe(features: torch.Tensor, marks: torch.Tensor, penalty: float) -> Probe:
    """Fits a probe to features [N, D] and marks [N, K] in [0, 1]: cross-entropy and `penalty` times |weight|^2 / 2."""
    mean, std = features.mean(0), features.std(0).clamp(min=1e-4)
    standard = ((features - mean) / std).clamp(-LIMIT, LIMIT)
    weight = torch.zeros(features.shape[1], marks.shape[1], requires_grad=True)
    bias = torch.zeros(marks.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        """Returns the penalised cross-entropy, with its gradient set."""
        optimizer.zero_grad()
        logits = standard @ weight + bias
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, marks)
        value = value + penalty * weight.square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    return Probe(mean=mean, std=std, weight=weight.detach(), bias=bias.detach())
