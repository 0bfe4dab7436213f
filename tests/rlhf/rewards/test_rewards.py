"""Rewards without published weights: the trained model, the seam, a user's function, and how they are named."""

from pathlib import Path

import pytest
import torch
from small_parts import save_small_reward, small_prompts

from rlhf.config.config_files import dump_config, load_config, parse_reward
from rlhf.config.reward_entry import RewardEntry
from rlhf.errors import UserError
from rlhf.rewards.learned.reward_folder import load_reward
from rlhf.rewards.open_reward import build_reward, build_rewards, check_captions, with_absolute_paths
from rlhf.rewards.scores import Scores

CPU = torch.device("cpu")
FUNCTIONS = """
import threading, torch
def bright(images, masks, captions): return images.mean((1, 2, 3))
def lengths(images, masks, captions): return [len(c) for c in captions]
def one_number(images, masks, captions): return images.mean()
def nothing(images, masks, captions): return None
def ragged(images, masks, captions): return [[1.0], [2.0, 3.0]]
def breaks(images, masks, captions): raise KeyError("colour")
def spoils(images, masks, captions):
    images.zero_()
    return torch.zeros(len(images))
def turned(images, masks, captions): return 1j * torch.ones(len(images)).numpy()
def words(images, masks, captions): return ["1"] * len(images)
def leaves(images, masks, captions): raise SystemExit(3)
class Leaver:
    def __array__(self, dtype=None, copy=None): raise SystemExit(5)
def leaves_later(images, masks, captions): return Leaver()
def interrupts(images, masks, captions): raise KeyboardInterrupt
def too_slow(images, masks, captions): raise TimeoutError("mine")
def waits(images, masks, captions): threading.Event().wait()
def needs_gradient(images, masks, captions): return torch.ones(len(images), requires_grad=True) * 2
CONSTANT = 3
"""


def batch(count: int = 4) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    prompts = small_prompts(count)
    return torch.stack([p.image for p in prompts]), torch.stack([p.mask for p in prompts]), ["abc"] * count


def score(images: torch.Tensor, masks: torch.Tensor, captions: list[str], **entry: object) -> Scores:
    return build_reward(RewardEntry(**entry), None, CPU).score(images, masks, captions)


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("functions")
    (folder / "reward_functions_of_a_test.py").write_text(FUNCTIONS)
    (folder / "reward_functions_that_break.py").write_text("import a_module_that_is_not_there")
    (folder / "reward_functions_misspelt.py").write_text("def f(:")
    (folder / "reward_functions_that_leave.py").write_text("import sys\nsys.exit(4)")
    (folder / "reward_functions_that_divide.py").write_text("1 / 0")
    return str(folder)


def test_without_entries_the_reward_folder_alone_scores(tmp_path: Path) -> None:
    folder = save_small_reward(tmp_path / "reward", quantile=3.0)
    images, masks, captions = batch()
    ((name, reward),) = build_rewards((), folder, CPU).items()
    ours, theirs = reward.score(images, masks, captions), load_reward(folder).score(images, masks)
    assert name == "model"
    assert torch.equal(ours.reward, theirs.reward)
    assert torch.equal(ours.uncertainty, theirs.uncertainty)
    assert torch.equal(ours.trust_weight, theirs.trust_weight)
    assert torch.equal(ours.is_outlying, theirs.uncertainty > 3.0)


def test_a_folder_without_a_quantile_knows_no_outliers(tmp_path: Path) -> None:
    folder = save_small_reward(tmp_path / "reward")
    assert build_reward(RewardEntry(kind="model", path=str(folder)), None, CPU).score(*batch()).is_outlying is None


def test_seam_of_a_hole_filled_with_the_photograph_beats_any_step() -> None:
    images = torch.zeros(3, 3, 16, 16)
    masks = torch.zeros(3, 1, 16, 16)
    masks[:, :, 4:12, 5:11] = 1
    images[1] += 0.3 * masks[1]
    images[2] += 0.6 * masks[2]
    reward = score(images, masks, [""] * 3, kind="seam").reward
    assert torch.allclose(reward, torch.tensor([0.0, -0.3, -0.6], dtype=torch.float64), atol=1e-6)


def test_seam_forgives_steps_that_the_photograph_has_itself() -> None:
    ramp = torch.arange(16.0).expand(1, 3, 16, 16) / 20
    masks = torch.zeros(1, 1, 16, 16)
    masks[:, :, :, 8:] = 1
    assert score(ramp, masks, [""], kind="seam").reward.abs() < 1e-6
    flat_rim = torch.where(masks > 0.5, ramp[..., 7:8], ramp)
    assert score(flat_rim, masks, [""], kind="seam").reward.abs() < 1e-6, "a smaller step earns nothing"
    noisy = ramp.clone()
    noisy[..., 9:] = torch.rand(1, 3, 16, 7)
    assert score(noisy, masks, [""], kind="seam").reward.abs() < 1e-6, "what lies deeper does not matter"


def test_seam_is_the_same_whichever_way_the_image_is_turned() -> None:
    images, masks, captions = batch(8)
    expected = score(images, masks, captions, kind="seam").reward
    assert (expected <= 0).all()
    for turned in (lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.transpose(-1, -2)):
        assert torch.allclose(score(turned(images), turned(masks), captions, kind="seam").reward, expected, atol=1e-6)


def test_a_mask_without_a_border_has_no_seam_and_no_number() -> None:
    images, masks, captions = batch(2)
    assert score(images, torch.ones_like(masks), captions, kind="seam").reward.isnan().all()


def test_a_function_scores_images_and_captions(functions: str) -> None:
    images, masks, captions = batch()
    label = "reward_functions_of_a_test"
    bright = score(images, masks, captions, kind="function", function=f"{label}:bright", path=functions)
    assert torch.equal(bright.reward, images.mean((1, 2, 3)).double())
    assert bright.uncertainty is None
    lengths = score(images, masks, captions, kind="function", function=f"{label}:lengths", path=functions)
    assert lengths.reward.tolist() == [3.0] * 4
    fixed = score(images, masks, captions, kind="function", function=f"{label}:lengths", path=functions, text="a cat")
    assert fixed.reward.tolist() == [5.0] * 4


def test_a_function_cannot_change_the_images_of_other_rewards(functions: str) -> None:
    images, masks, captions = batch()
    before = images.clone()
    score(images, masks, captions, kind="function", function="reward_functions_of_a_test:spoils", path=functions)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("reward_functions_of_a_test:one_number", r"returned shape \(\) for 4 images; return one number per image"),
        ("reward_functions_of_a_test:nothing", "returned NoneType, no real numbers"),
        ("reward_functions_of_a_test:ragged", "returned list, no real numbers"),
        ("reward_functions_of_a_test:breaks", r"raised KeyError: 'colour' \(.*reward_functions_of_a_test.py, line 8\)"),
        ("reward_functions_of_a_test:turned", r"returned ndarray, no real numbers \(complex"),
        ("reward_functions_of_a_test:words", "returned list, no real numbers"),
        ("reward_functions_of_a_test:leaves", r"raised SystemExit: 3 \(.*reward_functions_of_a_test.py, line \d+\)"),
        ("reward_functions_of_a_test:interrupts", "raised KeyboardInterrupt"),
        ("reward_functions_of_a_test:too_slow", "raised TimeoutError: mine"),
        ("reward_functions_of_a_test:leaves_later", r"leaves_later raised SystemExit: 5 "),
        ("reward_functions_that_leave:f", r"'reward_functions_that_leave' raised SystemExit: 4 .*line 2\) on import"),
        ("reward_functions_that_divide:f", "raised ZeroDivisionError: division by zero .* on import"),
        ("reward_functions_of_a_test:absent", "has no function 'absent'"),
        ("reward_functions_of_a_test:CONSTANT", "has no function 'CONSTANT'"),
        ("reward_functions_that_break:f", "does not import.*a_module_that_is_not_there"),
        ("reward_functions_misspelt:f", "does not import.*invalid syntax"),
        ("no_module_of_this_name:f", "does not import.*set `path` to its folder"),
    ],
)
def test_what_is_wrong_with_a_function_is_told(functions: str, function: str, message: str) -> None:
    with pytest.raises(UserError, match=f"reward mine: .*{message}"):
        score(*batch(), kind="function", name="mine", function=function, path=functions)


def test_a_function_that_blocks_for_ever_is_given_up(functions: str) -> None:
    label = "reward_functions_of_a_test:waits"
    with pytest.raises(UserError, match=r"reward mine: .*:waits has not returned after 0\.3 s; .*call_timeout_s"):
        score(*batch(), kind="function", name="mine", function=label, path=functions, call_timeout_s=0.3)


def test_a_function_runs_without_gradients(functions: str) -> None:
    label = "reward_functions_of_a_test:needs_gradient"
    assert score(*batch(), kind="function", function=label, path=functions).reward.tolist() == [2.0] * 4


def test_texts_are_asked_for_with_the_prompts_name() -> None:
    captions = {"p0": "  ", "p1": "a hill"}
    clip = RewardEntry(kind="clip_score", path="some/model")
    with pytest.raises(UserError, match="clip_score: .*prompt p0 has no caption; .* set a fixed `text`"):
        check_captions([RewardEntry(kind="seam"), clip], captions)
    check_captions([RewardEntry(kind="seam"), clip.model_copy(update={"text": "a photograph"})], captions)


def test_rewards_in_a_file_become_entries_and_are_saved_again(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("rewards:\n- kind: model\n- {kind: seam, weight: 0.5, std: 0.1}\n- {kind: seam, name: again}\n")
    config = load_config(file)
    assert [(e.label, e.weight) for e in config.rewards] == [("model", 1.0), ("seam", 0.5), ("again", 1.0)]
    (tmp_path / "saved.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "saved.yaml") == config


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("[{kind: seem}]", "rewards.0.kind: "),
        (
            "[{kind: seam}, {kind: seam, wieght: 1}]",
            r"rewards\.1\.wieght: unknown key; did you mean rewards\.1\.weight",
        ),
        ("[{kind: seam, url: http://x}]", "'url' means nothing to kind 'seam'"),
        ("[{kind: http}]", "'http' needs 'url'"),
        ("[{kind: http, url: here}]", r"rewards\.0\.url"),
        ("[{kind: function, function: f}]", r"rewards\.0\.function"),
        ("[{kind: seam}, {kind: seam}]", "2 are called 'seam'; give each its own `name`"),
        ("[{kind: seam, weight: 0}]", "all weights are 0"),
        ("[{kind: seam, weight: .nan}]", "weight"),
        ("[{kind: seam, std: 0}]", "greater than 0"),
        ("{kind: seam}", "rewards: "),
    ],
)
def test_a_wrong_entry_says_what_is_wrong(entries: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(None, (f"rewards={entries}",))


def test_a_reward_without_its_folder_says_how_to_name_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="add --reward"):
        build_reward(RewardEntry(kind="model"), None, CPU)
    with pytest.raises(UserError, match="not a complete reward folder"):
        build_reward(RewardEntry(kind="model", path=str(tmp_path)), None, CPU)
    with pytest.raises(UserError, match="kind 'function' needs 'function'"):
        parse_reward({"kind": "function"})


def test_folders_that_exist_travel_as_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip").mkdir()
    entries = with_absolute_paths(
        [
            RewardEntry(kind="clip_score", path="clip"),
            RewardEntry(kind="pick_score", path="some/name"),
            RewardEntry(kind="function", function="m:f"),
            RewardEntry(kind="aesthetic", tower="clip"),
        ]
    )
    assert [e.path for e in entries] == [str(tmp_path / "clip"), "some/name", str(tmp_path), None]
    assert entries[3].tower == str(tmp_path / "clip")
