"""What --reward names: a reward folder, a run folder or a configuration, opened as one reward; and new kinds."""

from pathlib import Path

import pytest
import torch
from small_parts import save_small_reward, small_prompts

from rlhf.config.reward_entry import RewardEntry
from rlhf.config.reward_kinds import KINDS, RewardKind
from rlhf.errors import UserError
from rlhf.evaluation.judging import Jury, judge_images
from rlhf.rewards.combination import Scale, combine, save_scales
from rlhf.rewards.learned.reward_folder import load_reward
from rlhf.rewards.open_reward import build_reward, checksum_reward, open_reward, reads_captions, with_absolute_paths
from rlhf.storage.images import from_8bit, to_8bit

CPU = torch.device("cpu")
REWARDS = "rewards:\n- kind: model\n- {kind: seam, weight: 0.5}\n"
SCALES = {"model": Scale(mean=0.1, std=0.2), "seam": Scale(mean=-0.3, std=0.05)}


def batch(count: int = 4) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    prompts = small_prompts(count)
    return torch.stack([p.image for p in prompts]), torch.stack([p.mask for p in prompts]), [""] * count


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose policy climbed a reward folder and the seam."""
    save_small_reward(tmp_path / "run" / "reward")
    (tmp_path / "run" / "config.yaml").write_text(REWARDS)
    save_scales(SCALES, tmp_path / "run")
    return tmp_path / "run"


def test_a_reward_folder_opens_as_itself(tmp_path: Path) -> None:
    folder = save_small_reward(tmp_path / "reward")
    (folder / "config.yaml").write_text(REWARDS)
    assert torch.equal(open_reward(folder, CPU).score(*batch()).reward, load_reward(folder).score(*batch()).reward)


def test_a_run_folder_opens_as_the_sum_that_its_policy_climbed(run: Path) -> None:
    parts = {"model": load_reward(run / "reward"), "seam": build_reward(RewardEntry(kind="seam"), None, CPU)}
    expected = combine({n: r.score(*batch()) for n, r in parts.items()}, {"model": 1.0, "seam": 0.5}, SCALES)
    for place in (run, run / "config.yaml"):
        scores = open_reward(place, CPU).score(*batch())
        for name in ("reward", "uncertainty", "trust_weight", "width", "lower", "upper"):
            assert torch.equal(getattr(scores, name), getattr(expected, name)), name


def test_a_run_on_the_reward_folder_alone_opens_that_folder(run: Path) -> None:
    (run / "config.yaml").write_text("seed: 3\n")
    ours, theirs = open_reward(run, CPU).score(*batch()), load_reward(run / "reward").score(*batch())
    assert torch.equal(ours.reward, theirs.reward)
    assert torch.equal(ours.lower, theirs.lower)


def test_without_measured_scales_every_entry_sets_its_own(run: Path) -> None:
    (run / "reward_scales.json").unlink()
    with pytest.raises(UserError, match=r"scale of reward model is unknown.*set `std` of model"):
        open_reward(run, CPU)
    (run / "config.yaml").write_text("rewards:\n- {kind: seam, mean: -0.3, std: 0.05}\n")
    seam = build_reward(RewardEntry(kind="seam"), None, CPU).score(*batch()).reward
    torch.testing.assert_close(open_reward(run, CPU).score(*batch()).reward, (seam + 0.3) / 0.05)


@pytest.mark.parametrize("text", [None, "seed: 3\n"])
def test_a_place_without_a_reward_says_what_to_name(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    for open_place in (lambda: open_reward(tmp_path, CPU), lambda: checksum_reward(tmp_path)):
        with pytest.raises(UserError, match="not a complete reward folder"):
            open_place()


def test_rewards_that_compare_texts_ask_for_captions_before_they_load(tmp_path: Path) -> None:
    file = tmp_path / "sum.yaml"
    file.write_text("rewards:\n- {kind: clip_score, path: nowhere, std: 1}\n")
    assert reads_captions(file)
    with pytest.raises(UserError, match="prompt p has no caption"):
        open_reward(file, CPU, {"p": ""})
    file.write_text("rewards:\n- {kind: clip_score, path: nowhere, std: 1, text: a hill}\n")
    assert not reads_captions(file)


def test_the_checksum_follows_weights_scales_and_files(run: Path) -> None:
    before = checksum_reward(run)
    assert checksum_reward(run) == before
    (run / "metrics.jsonl").write_text("{}\n")
    assert checksum_reward(run) == before, "a run that goes on keeps its reward"
    seen = {before}
    save_scales(SCALES | {"seam": Scale(mean=0.0, std=1.0)}, run)
    seen.add(checksum_reward(run))
    (run / "config.yaml").write_text(REWARDS.replace("0.5", "0.6"))
    seen.add(checksum_reward(run))
    save_small_reward(run / "reward", scale=2.0)
    seen.add(checksum_reward(run))
    assert len(seen) == 4


@pytest.mark.parametrize("text", [REWARDS, "rewards:\n- {kind: seam}\n"])
def test_a_sum_judges_in_an_evaluation_with_or_without_a_bound(run: Path, text: str) -> None:
    (run / "config.yaml").write_text(text)
    prompts = small_prompts(4)
    images = to_8bit(torch.stack([p.image for p in prompts]))
    reward = open_reward(run, CPU)
    judged = judge_images(images[:, None], prompts, Jury(reward=reward))
    scores = reward.score(from_8bit(images), *batch()[1:])
    assert judged.reward[:, 0].tolist() == scores.reward.tolist()
    if text is REWARDS:
        assert judged.marks["lower"][:, 0].tolist() == scores.lower.tolist()
    else:
        assert torch.from_numpy(judged.marks["lower"]).isnan().all(), "the seam alone bounds nothing"
        assert torch.from_numpy(judged.uncertainty).isnan().all()


def test_a_new_kind_of_reward_is_one_module_and_one_line_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dark_reward_of_a_test.py").write_text(
        "from rlhf.rewards.scores import Scores\n"
        "class Dark:\n"
        "    def score(self, images, masks, captions): return Scores(reward=-images.double().mean((1, 2, 3)))\n"
        "def open_entry(entry, opening): return Dark()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="Input should be 'model', "):
        RewardEntry(kind="dark")
    row = RewardKind(module="dark_reward_of_a_test", meaning="dark", reads=("text",), paths={"tower": None})
    monkeypatch.setitem(KINDS, "dark", row)
    images, masks, captions = batch()
    scores = build_reward(RewardEntry(kind="dark", text="x"), None, CPU).score(images, masks, captions)
    assert torch.equal(scores.reward, -images.double().mean((1, 2, 3)))
    with pytest.raises(ValueError, match="'url' means nothing to kind 'dark'"):
        RewardEntry(kind="dark", url="http://x")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lamp").mkdir()
    (moved,) = with_absolute_paths([RewardEntry(kind="dark", tower="lamp")])
    assert moved.tower == str(tmp_path / "lamp"), "processes start elsewhere"


def test_the_documents_say_what_every_kind_is() -> None:
    said = RewardEntry.model_fields["kind"].description or ""
    assert [kind for kind, row in KINDS.items() if f"`{kind}`: {row.meaning}" not in said] == []
