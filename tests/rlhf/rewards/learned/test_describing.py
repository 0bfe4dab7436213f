"""Descriptions of pictures: each once, kept by content, and the same in whatever batches and by however many ranks."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from ranks_in_turns import InTurns
from small_annotations import make_world, write_world
from torch import nn

from rlhf.config.run_config import RewardConfig
from rlhf.data.annotators import load_annotations
from rlhf.data.augmentation import PLAIN, Augmentation
from rlhf.data.candidate_table import CandidateTable, Key
from rlhf.data.descriptions import DescriptionCache, describe
from rlhf.data.pictures import Pictures
from rlhf.data.prompts import PromptTable, load_prompts
from rlhf.data.ranks import ALONE, Ranks
from rlhf.errors import UserError
from rlhf.reports.records import read_record
from rlhf.rewards.learned.feature_network import SmallBackbone, describe_to_train
from rlhf.rewards.learned.reward_report import RewardReport
from rlhf.rewards.learned.reward_training import train_reward

CONFIG = RewardConfig(feature_dim=12, epochs=3, micro_batch_size=64, decorrelation=1.0, ridge=30.0)
MIRRORED = Augmentation(mirrored=True)


class CountingBackbone(SmallBackbone):
    """Counts the pictures that it sees."""

    seen = 0

    def forward(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        return super().forward(images, masks)


class TrainedBackbone(SmallBackbone):
    """Has a weight for every statistic."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(self.output_dim))

    def forward(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        return (self.scale * super().forward(images, masks)).tanh()


class ThreePerBatch(Pictures):
    def batches(self, keys: Sequence[Key], pixels: int = 0) -> Iterator[list[Key]]:
        return super().batches(keys, 3 * 32 * 32)


def test_a_picture_is_described_once_whatever_the_run_and_the_folder(tmp_path: Path) -> None:
    prompts, candidates, _ = make_world(3)
    keys, backbone = list(candidates), CountingBackbone()
    pictures, wanted = ThreePerBatch(prompts, candidates), {PLAIN: keys, MIRRORED: keys[:10]}
    first = describe(backbone, pictures, wanted, cache=DescriptionCache(tmp_path, backbone))
    assert backbone.seen == 40
    again = describe(backbone, pictures, wanted, cache=DescriptionCache(tmp_path, backbone))
    assert backbone.seen == 40, "all are known"
    plain = backbone(*pictures.show(keys))
    for found in (first, again):
        torch.testing.assert_close(found.of(keys), plain)
        assert torch.equal(found.of(keys[:10]), first.of(keys[:10]))
    backbone.seen = 0
    changed = candidates | {keys[4]: -candidates[keys[4]]}
    describe(backbone, Pictures(prompts, changed), wanted, cache=DescriptionCache(tmp_path, backbone))
    assert backbone.seen == 2, "another picture under the same name, as it is and mirrored"


def test_pictures_of_tables_are_found_again_without_being_decoded(tmp_path: Path) -> None:
    folders = [Path(path) for path in write_world(tmp_path, *make_world(3))]
    prompts = PromptTable(folders[0])
    candidates, backbone = CandidateTable(folders[1], prompts), CountingBackbone()

    class Unseen(Pictures):
        def show(self, keys: Sequence[Key]) -> tuple[torch.Tensor, torch.Tensor]:
            raise AssertionError("decodes")

    wanted = {PLAIN: list(candidates)}
    first = describe(backbone, Pictures(prompts, candidates), wanted, cache=DescriptionCache(tmp_path / "c", backbone))
    again = describe(backbone, Unseen(prompts, candidates), wanted, cache=DescriptionCache(tmp_path / "c", backbone))
    assert torch.equal(first.of(list(candidates)), again.of(list(candidates)))


def test_other_weights_have_other_descriptions_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    prompts, candidates, _ = make_world(1)
    pictures, wanted = Pictures(prompts, candidates), {PLAIN: list(candidates)}
    for scale in (1.0, 2.0):
        backbone = TrainedBackbone().requires_grad_(False)
        backbone.scale.fill_(scale)
        found = describe(backbone, pictures, wanted, cache=DescriptionCache(tmp_path, backbone)).of(list(candidates))
        torch.testing.assert_close(found, backbone(*pictures.show(list(candidates))))
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"safetensors: damaged .*remove it"):
        describe(backbone, pictures, wanted, cache=DescriptionCache(tmp_path, backbone))


def test_pictures_of_several_sizes_are_described_as_each_size_alone() -> None:
    prompts, candidates = {}, {}
    for size in (32, 48):
        own, images, _ = make_world(2, size)
        prompts |= {f"{size} {name}": prompt for name, prompt in own.items()}
        candidates |= {(f"{size} {name}", sample): image for (name, sample), image in images.items()}
    keys = sorted(candidates, key=lambda key: key[1])  # Two of a size, then two of the other.
    pictures, backbone = ThreePerBatch(prompts, candidates), SmallBackbone()
    assert [key for batch in pictures.batches(keys) for key in batch] == keys
    found = describe(backbone, pictures, {PLAIN: keys}).of(keys)
    together, one_by_one = TrainedBackbone(), TrainedBackbone()
    trained, give_back = describe_to_train(together, pictures, keys, PLAIN, ALONE)
    gradient = torch.randn(trained.shape, generator=torch.Generator().manual_seed(0))
    give_back(gradient)
    for place, key in enumerate(keys):
        alone = pictures.show([key])
        torch.testing.assert_close(found[place], backbone(*alone)[0])
        described = one_by_one(*alone)[0]
        torch.testing.assert_close(trained[place], described)
        described.backward(gradient[place])
    torch.testing.assert_close(together.scale.grad, one_by_one.scale.grad)


def test_another_version_of_a_backbones_code_has_other_descriptions(tmp_path: Path) -> None:
    prompts, candidates, _ = make_world(1)
    pictures, wanted, backbone = Pictures(prompts, candidates), {PLAIN: list(candidates)}, CountingBackbone()
    for version, seen in (((1,), 10), ((1,), 10), ((2,), 20), ((1,), 20)):
        backbone.code_version = version
        describe(backbone, pictures, wanted, cache=DescriptionCache(tmp_path, backbone))
        assert backbone.seen == seen, version


def test_gradients_do_not_depend_on_batches_or_ranks() -> None:
    prompts, candidates, _ = make_world(3)
    keys = list(candidates)

    def gradient(pictures: Pictures, ranks: Ranks) -> torch.Tensor:
        backbone = TrainedBackbone()
        rows, give_back = describe_to_train(backbone, pictures, keys, MIRRORED, ranks)
        (rows - rows.mean(0)).square().sum().backward()  # Every row has a part in every other's gradient.
        give_back(rows.grad)
        assert backbone.scale.grad is not None
        return backbone.scale.grad

    backbone = TrainedBackbone()
    rows = backbone(*MIRRORED.apply(*Pictures(prompts, candidates).show(keys)))
    (rows - rows.mean(0)).square().sum().backward()
    expected = backbone.scale.grad
    assert expected is not None
    for pictures in (Pictures(prompts, candidates), ThreePerBatch(prompts, candidates)):
        torch.testing.assert_close(gradient(pictures, ALONE), expected, rtol=1e-4, atol=1e-5)
        for found in InTurns(3).run(lambda ranks, pictures=pictures: gradient(pictures, ranks)):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_three_ranks_train_the_reward_of_one(tmp_path: Path) -> None:
    world = make_world(12)

    def train(ranks: Ranks) -> tuple[float, float, float, float]:
        report = train_reward(*world, tmp_path / str(ranks.count), CONFIG, seed=0, ranks=ranks)
        figures = report.calibration
        return figures.conformal, figures.theorem, figures.noise, report.error.value

    alone = train(ALONE)
    for found in InTurns(3).run(train):
        assert found == pytest.approx(alone, rel=1e-3)
    names = {path.name for path in (tmp_path / "1").iterdir()}
    assert {path.name for path in (tmp_path / "3").iterdir()} == names


def test_a_reward_of_tables_is_that_of_the_same_pictures_in_memory(tmp_path: Path) -> None:
    folders = [Path(path) for path in write_world(tmp_path, *make_world(12))]
    prompts, annotations = PromptTable(folders[0]), load_annotations(folders[2])
    stored = CandidateTable(folders[1], prompts)
    in_memory = {prompt.prompt_id: prompt for prompt in load_prompts(folders[0])}, dict(stored)
    reports = [
        train_reward(*pictures, annotations, tmp_path / name, CONFIG, seed=0)
        for name, pictures in {"tables": (prompts, stored), "memory": in_memory}.items()
    ]
    assert reports[0] == reports[1]
    read = read_record(RewardReport, tmp_path / "tables" / "report.json", "")
    assert (read.calibration, read.learning_curve) == (reports[0].calibration, reports[0].learning_curve)
