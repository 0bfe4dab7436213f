"""Trains the reward's features on part A: objectives, augmentation, early stopping, resume."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from rlhf.config.run_config import RewardConfig
from rlhf.data.annotated_images import (
    AnnotatedImages,
    average_repeats,
    prompt_weights,
    split_photographs,
)
from rlhf.data.augmentation import PLAIN, Augmentation, draw_augmentation
from rlhf.data.candidate_table import Key
from rlhf.data.descriptions import DescriptionCache, Descriptions, describe
from rlhf.errors import UserError
from rlhf.progress import progress_bar
from rlhf.rewards.learned.backbones.maps_backbone import MapsBackbone
from rlhf.rewards.learned.feature_network import (
    Backbone,
    FeatureNetwork,
    GiveBack,
    build_backbone,
    describe_to_train,
    is_fixed,
    whiten,
)
from rlhf.rewards.learned.reward_report import EpochFigures
from rlhf.storage.atomic_files import atomic_torch_save, atomic_write_text
from rlhf.storage.tensor_files import read_tensors
from rlhf.storage.url_path import local_copy

Weights = dict[str, torch.Tensor]
"""Tensors of a network by name."""
VARIANTS = 8
"""Number of augmentations under which a fixed backbone describes each image once; epochs draw from them. A pretrained
network describes the image and its mirror image: turned or inverted pictures are none that it knows."""


def train_features(data: AnnotatedImages, config: RewardConfig, seed: int, out: Path | None = None) -> FeatureNetwork:
    """Trains features z so that a linear layer on them predicts the marks; then whitens them.

    With `out`, `learning_curve.jsonl` is written there, and an interrupted training resumes. Every rank of `data.ranks`
    calls it with the same rows, and has the same network at the end; `out` is a folder that all of them reach.

    Raises UserError if the loss or a weight is no longer finite.
    """
    torch.manual_seed(seed)
    network = FeatureNetwork(build_backbone(config.backbone, config.frozen_share), config.feature_dim)
    network.backbone.to(data.ranks.device)
    if is_fixed(network.backbone) and data.described is None:
        data = replace(data, described=_describe_for_training(network.backbone, data, data.keys, config, seed))
    trained, held_out = _hold_out(data, config, seed)
    training = FeatureTraining(network, trained, config, seed)
    fingerprint = _fingerprint(data, config, seed)
    curve, best = training.resume(out, fingerprint)
    data.ranks.require_equal(len(curve), f"{out}: not the same folder for all workers; choose one that all reach")
    with progress_bar(stage="reward", total=config.epochs, initial=len(curve)) as bar:
        while len(curve) < config.epochs and not _is_over(curve, config.patience):
            figures: EpochFigures = {"epoch": len(curve) + 1, "loss": training.run_epoch()}
            losses = {"loss": figures["loss"]}
            if held_out is not None:
                losses["validation"] = figures["validation"] = training.validate(held_out)
            _require_finite(losses, network, figures["epoch"])
            curve.append(figures)
            if held_out is None or figures["validation"] <= min(f["validation"] for f in curve):
                best = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            training.keep(out, curve, best, fingerprint)
            bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()}, refresh=False)
            bar.update()
    network.load_state_dict(best)
    first_rows = average_repeats(trained)[1]
    whiten(network, describe_rows(network, trained, first_rows))
    return network.eval()


def _require_finite(losses: Mapping[str, float], network: FeatureNetwork, epoch: int) -> None:
    if not all(map(math.isfinite, losses.values())) or not all(p.isfinite().all() for p in network.parameters()):
        raise UserError(f"reward: training diverged in epoch {epoch}; lower reward.learning_rate")


def _hold_out(data: AnnotatedImages, config: RewardConfig, seed: int) -> tuple[AnnotatedImages, AnnotatedImages | None]:
    """Splits photographs into training and held-out ones; the latter are None if `validation_share` is 0."""
    if config.validation_share == 0:
        return data, None
    shares = (1 - config.validation_share, config.validation_share)
    trained, held_out = split_photographs(data.photographs, shares, seed + 1)
    return data.of(trained), data.of(held_out)


def _is_over(curve: list[EpochFigures], patience: int) -> bool:
    """Returns whether the validation has not improved for `patience` epochs."""
    if not curve or "validation" not in curve[0]:
        return False
    values = [figures["validation"] for figures in curve]
    return len(values) - 1 - values.index(min(values)) >= patience


def _fingerprint(data: AnnotatedImages, config: RewardConfig, seed: int) -> str:
    digest = hashlib.sha256(f"{config.model_dump_json()} {seed} {data.keys}".encode())
    digest.update(data.marks.numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class ImageTargets:
    """Targets of the training, image by image: M images of P prompts."""

    groups: list[torch.Tensor]
    """P tensors of int64: numbers of each prompt's images."""
    first_rows: torch.Tensor
    """int64 [M]: row of the data that shows the image."""
    marks: torch.Tensor
    """float32 [M, 4]: mean structure, texture, overall and total."""
    weights: torch.Tensor
    """float32 [M]: weights of differences within the image's prompt."""

    @classmethod
    def of(cls, data: AnnotatedImages) -> "ImageTargets":
        """Averages repeated annotations."""
        groups, first_rows, marks = average_repeats(data)
        return cls(groups=groups, first_rows=first_rows, marks=marks, weights=prompt_weights(data)[first_rows])

    def loss(self, predicted: torch.Tensor, chosen: list[torch.Tensor], config: RewardConfig) -> torch.Tensor:
        """Returns the objective on predicted marks [B, 4] of the images of the `chosen` groups, in their order.

        `scores`: squared errors of all marks, plus squared errors of their differences between samples of one
        prompt. Alignment climbs those differences, which are a small share of the marks' variance. `pairs`:
        Bradley-Terry on the totals of a prompt's samples.
        """
        rows, sizes = torch.cat(chosen), [len(group) for group in chosen]
        if config.objective == "pairs":
            return pair_loss(predicted[:, 3], self.marks[rows, 3], sizes)
        errors = predicted - self.marks[rows]
        within = torch.cat([e - e.mean(0) for e in errors.split(sizes)]) * self.weights[rows][:, None]
        return errors.square().mean() + config.within_prompt * within.square().mean()


class FeatureTraining:
    """Training of a feature network: epochs, validation, and the state that resuming needs."""

    def __init__(self, network: FeatureNetwork, data: AnnotatedImages, config: RewardConfig, seed: int) -> None:
        self.network, self.data, self._config = network, data, config
        self._targets = ImageTargets.of(data)
        self._generator = torch.Generator().manual_seed(seed)
        parameters = [p for p in network.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.05)
        images, prompts = len(self._targets.marks), len(self._targets.groups)
        self._batches = min(max(1, images // config.micro_batch_size), prompts)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, config.learning_rate, total_steps=config.epochs * self._batches
        )

    def run_epoch(self) -> float:
        """Trains one pass over all prompts; returns the mean loss."""
        self.network.train()
        losses = []
        order = torch.randperm(len(self._targets.groups), generator=self._generator)
        for numbers in order.tensor_split(self._batches):
            groups = [self._targets.groups[i] for i in numbers.tolist()]
            described, give_back = self._describe(groups)
            z = self.network.features_of(described)
            loss = self._targets.loss(self.network.linear(z), groups, self._config)
            loss = loss + self._config.decorrelation * covariance_penalty(z[:, :-1])
            self._optimizer.zero_grad()
            loss.backward()
            give_back(described.grad)
            self._optimizer.step()
            self._schedule.step()
            losses.append(loss.item())
        return sum(losses) / len(losses)

    def _describe(self, groups: list[torch.Tensor]) -> tuple[torch.Tensor, GiveBack]:
        """Returns the backbone's output for the images of groups, and what takes its gradient to the backbone."""
        keys = self.data.keys_of(self._targets.first_rows[torch.cat(groups)].tolist())
        described = self.data.described
        if described is None:
            change = draw_augmentation(self._config.augmentation, self._generator)
            return describe_to_train(self.network.backbone, self.data.pictures, keys, change, self.data.ranks)
        # Samples of a prompt are augmented alike, since their differences are learned.
        drawn = torch.randint(len(described.variants), (len(groups),), generator=self._generator).tolist()
        changes = [described.variants[n] for n, group in zip(drawn, groups, strict=True) for _ in group]
        return described.of(keys, changes), lambda gradient: None

    @torch.no_grad()
    def validate(self, data: AnnotatedImages) -> float:
        """Returns the objective on held-out photographs, without augmentation."""
        self.network.eval()
        targets = ImageTargets.of(data)
        rows = targets.first_rows[torch.cat(targets.groups)]
        z = self.network.features_of(describe_rows(self.network, data, rows))
        return float(targets.loss(self.network.linear(z), targets.groups, self._config))

    def keep(self, out: Path | None, curve: list[EpochFigures], best: Weights, fingerprint: str) -> None:
        """Writes the learning curve and the state that `resume` reads."""
        if out is None or self.data.ranks.rank > 0:
            return
        state = {"fingerprint": fingerprint, "curve": curve, "best": best, "network": self.network.state_dict()}
        state |= {"optimizer": self._optimizer.state_dict(), "schedule": self._schedule.state_dict()}
        state |= {"generator": self._generator.get_state(), "dropout": torch.get_rng_state()}
        atomic_torch_save(state, out / "training.pt")
        atomic_write_text(out / "learning_curve.jsonl", "".join(json.dumps(figures) + "\n" for figures in curve))

    def resume(self, out: Path | None, fingerprint: str) -> tuple[list[EpochFigures], Weights]:
        """Returns the curve and the best weights so far; empty if `out` holds no training of the same inputs."""
        path = out / "training.pt" if out is not None else None
        if path is None or not path.is_file():
            return [], {}
        with local_copy(path) as local:
            state = read_tensors(local, f"remove {path}, and the training begins anew")
        if state["fingerprint"] != fingerprint:
            return [], {}
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._generator.set_state(state["generator"])
        torch.set_rng_state(state["dropout"])
        return state["curve"], state["best"]


def _describe_for_training(
    backbone: Backbone,
    data: AnnotatedImages,
    trained: Sequence[Key],
    config: RewardConfig,
    seed: int,
    cache: DescriptionCache | None = None,
) -> Descriptions:
    """Describes all images as they are, and those that are `trained` under augmentations."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(backbone, MapsBackbone):
        variants = [PLAIN, Augmentation(mirrored=True)]
    else:
        variants = [draw_augmentation(config.augmentation, generator) for _ in range(VARIANTS)]
    wanted: dict[Augmentation, Sequence[Key]] = dict.fromkeys(variants, trained)
    found = describe(backbone, data.pictures, wanted | {PLAIN: data.keys}, ranks=data.ranks, cache=cache)
    found.variants = variants
    return found


def with_descriptions(
    data: AnnotatedImages,
    config: RewardConfig,
    seed: int,
    *,
    trained: Sequence[Key] | None = None,
    folder: Path | None = None,
) -> AnnotatedImages:
    """Describes the data once for many trainings; returns it unchanged if the backbone itself is trained.

    By default a training may see every row. `folder` keeps what is described, and gives what is known.
    """
    backbone = build_backbone(config.backbone, config.frozen_share).eval()
    if not is_fixed(backbone):
        return data
    cache = None if folder is None else DescriptionCache(folder, backbone)
    backbone.to(data.ranks.device)
    trained = data.keys if trained is None else trained
    return replace(data, described=_describe_for_training(backbone, data, trained, config, seed, cache))


def describe_rows(network: FeatureNetwork, data: AnnotatedImages, rows: torch.Tensor) -> torch.Tensor:
    """Returns the backbone's output for the images of M rows, [M, D]."""
    keys = data.keys_of(rows.tolist())
    if data.described is not None:
        return data.described.of(keys)
    return describe(network.backbone, data.pictures, {PLAIN: keys}, ranks=data.ranks).of(keys)


def pair_loss(rewards: torch.Tensor, scores: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Returns the mean -log P(higher score wins) over pairs of a prompt's samples (Bradley and Terry, 1952).

    Shapes: rewards, scores [B], prompt by prompt; `sizes` holds the number of samples of each. Ties are left out.
    """
    losses = []
    for reward, score in zip(rewards.split(sizes), scores.split(sizes), strict=True):
        better, worse = (score[:, None] > score[None, :]).nonzero(as_tuple=True)
        losses.append(F.softplus(reward[worse] - reward[better]))
    pairs = torch.cat(losses)
    return pairs.mean() if len(pairs) else rewards.sum() * 0.0


def covariance_penalty(features: torch.Tensor) -> torch.Tensor:
    """Returns the sum of squared off-diagonal covariances of features [B, d], divided by d."""
    centred = features - features.mean(0)
    covariance = centred.T @ centred / max(1, len(features) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / features.shape[1]
