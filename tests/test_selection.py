"""Which prompts are annotated first: greedy D-optimal design against direct determinants, and the seeded order."""

from pathlib import Path

import pytest
import torch
from small_annotations import annotation, write_annotations
from small_parts import save_small_reward
from small_study import write_study

from rlhf.annotation_items import load_items, order_prompts
from rlhf.bound import PromptEffects
from rlhf.candidates import load_candidates, select_candidates
from rlhf.errors import UserError
from rlhf.prompts import load_prompts
from rlhf.selection import (
    annotated_last,
    log_det_gains,
    order_by_uncertainty,
    order_randomly,
    select_prompts,
    take_prompts,
    update_inverse,
)

DIM = 5


def random_groups(count: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"p{i}": torch.randn(2 + i % 2, DIM, generator=generator, dtype=torch.float64) for i in range(count)}


def gram(seed: int = 1) -> torch.Tensor:
    z = torch.randn(9, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return z.T @ z + torch.eye(DIM, dtype=torch.float64)


def test_the_rank_one_update_is_the_inverse_of_v_with_a_row_more() -> None:
    v, z = gram(), torch.arange(DIM).double()
    torch.testing.assert_close(update_inverse(v.inverse(), z), (v + torch.outer(z, z)).inverse())


def test_a_gain_is_what_a_candidate_adds_to_log_det_v() -> None:
    v, groups = gram(), list(random_groups().values())
    expected = [(torch.logdet(v + z.T @ z) - torch.logdet(v)) / len(z) for z in groups]
    torch.testing.assert_close(log_det_gains(groups, v.inverse()), torch.stack(expected))


def test_of_lone_candidates_the_least_certain_comes_first() -> None:
    v = gram()
    groups = {name: z[:1] for name, z in random_groups().items()}
    uncertainty = {name: float((z @ v.inverse() @ z.T).sqrt()) for name, z in groups.items()}
    assert order_by_uncertainty(groups, v.inverse())[0] == max(uncertainty, key=lambda name: uncertainty[name])


def test_every_choice_is_the_best_given_those_before_it() -> None:
    v, groups = gram(), random_groups()
    order = order_by_uncertainty(groups, v.inverse())
    assert sorted(order) == sorted(groups)
    left = dict(groups)
    for chosen in order:
        gains = {n: float(torch.logdet(v + z.T @ z) - torch.logdet(v)) / len(z) for n, z in left.items()}
        assert gains[chosen] == pytest.approx(max(gains.values()))
        z = left.pop(chosen)
        v = v + z.T @ z


def test_of_near_duplicates_the_second_comes_late_though_it_is_as_uncertain_as_the_first() -> None:
    eye = torch.eye(DIM, dtype=torch.float64)
    groups = {"a": 3.0 * eye[:1], "b": 2.999 * eye[:1], "c": 2.0 * eye[1:2], "d": 1.5 * eye[2:3]}
    assert order_by_uncertainty(groups, eye) == ["a", "c", "d", "b"]


def test_what_a_prompts_annotations_share_does_not_count_as_knowledge() -> None:
    eye = torch.eye(DIM, dtype=torch.float64)
    groups = {"alike": 2.0 * eye[[0, 0]], "different": torch.stack([eye[1], -eye[1]])}
    assert order_by_uncertainty(groups, eye)[0] == "alike"
    assert order_by_uncertainty(groups, eye, PromptEffects(within=0.1, between=10.0))[0] == "different"


def test_whole_prompts_fill_the_limit() -> None:
    counts = {"a": 3, "b": 5, "c": 2}
    assert take_prompts(["b", "a", "c"], counts, None) == ["b", "a", "c"]
    assert take_prompts(["b", "a", "c"], counts, 7) == ["b", "c"]
    with pytest.raises(UserError, match="--limit 1 is less than the 2 candidates"):
        take_prompts(["b", "a", "c"], counts, 1)


def test_the_random_order_is_the_seeds_alone() -> None:
    names = [f"p{i}" for i in range(30)]
    assert order_randomly(names, seed=3) == order_randomly(names[::-1], seed=3)
    assert order_randomly(names, seed=3) != order_randomly(names, seed=4)


def test_prompts_of_earlier_rounds_come_last_in_their_order(tmp_path: Path) -> None:
    for folder, names in (("first", "ab"), ("second", "bc")):
        rows = [annotation(name, 0, "simulated-0", 3.0) for name in names]
        write_annotations(rows, tmp_path / folder)
    earlier = [tmp_path / "first", tmp_path / "second"]
    assert annotated_last(["b", "a", "d", "c", "e"], earlier) == ["d", "e", "a", "c", "b"]
    counts = dict.fromkeys("abcde", 2)
    chosen = select_prompts(counts, None, "random", None, seed=0, limit=4, earlier=earlier)  # type: ignore[arg-type]
    assert set(chosen) == {"d", "e"}


@pytest.mark.parametrize("select", ["random", "uncertain"])
def test_the_page_and_the_simulated_annotators_choose_alike(select: str, tmp_path: Path) -> None:
    folder = write_study(tmp_path / "candidates", prompts=6)
    reward = save_small_reward(tmp_path / "reward") if select == "uncertain" else None
    items = load_items(folder, folder / "prompts")
    for_people = order_prompts(items, select, reward, seed=0, limit=10)
    prompts = {p.prompt_id: p for p in load_prompts(folder / "prompts")}
    chosen = select_candidates(prompts, load_candidates(folder, prompts), select, reward, seed=0, limit=10)
    assert tuple(dict.fromkeys(name for name, _ in chosen)) == for_people
    assert len(chosen) == 9, "three whole prompts of three samples"
    with pytest.raises(UserError, match="belong together"):
        order_prompts(items, "random" if reward else "uncertain", reward, seed=0)
