"""WinRate(S), the sign-flip test and measures in the hole, against brute force and closed forms."""

from itertools import combinations, product

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_cdt
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from rlhf.evaluation.comparison_measures import measure_prompts, rate_wins
from rlhf.evaluation.hole_measures import measure_diversity, measure_fidelity, measure_looks, seam_band
from rlhf.evaluation.judging import Judged
from rlhf.evaluation.tasks.extension_measures import measure_band
from rlhf.reports.intervals import best_of
from rlhf.reports.significance import SIGNIFICANT, compare_pairs, note_weak_tests, sign_flip_test
from rlhf.storage.images import from_8bit
from rlhf.views.growth import Margins, band_hole, plan_bands


def beats(a: float, b: float) -> float:
    return 1.0 if a > b else 0.5 if a == b else 0.0


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("shares_noise", [True, False])
def test_win_rate_is_the_mean_over_every_choice_of_samples(size: int, shares_noise: bool) -> None:
    rng = np.random.default_rng(size)
    reward, marks, base = rng.random((3, 5)), rng.integers(0, 4, (3, 5)) / 3, rng.integers(0, 4, (3, 5)) / 3
    found = rate_wins(reward, marks, base, size=size, shares_noise=shares_noise)
    for p in range(3):
        outcomes = [
            beats(marks[p, max(chosen, key=lambda i: reward[p, i])], base[p, j])
            for j in range(5)
            for chosen in combinations([i for i in range(5) if i != j or not shares_noise], size)
        ]
        assert found[p] == pytest.approx(np.mean(outcomes))


def test_the_base_over_itself_wins_as_often_as_the_best_of_equals() -> None:
    reward = np.random.default_rng(0).random((4, 11))
    for size in (1, 3, 10):
        rates = rate_wins(reward, reward, reward, size=size, shares_noise=True)
        assert rates == pytest.approx(np.full(4, size / (size + 1)))
    assert rate_wins(reward, reward, reward, size=11, shares_noise=True) is None
    assert rate_wins(reward[:, :1], reward[:, :1], reward, size=3, shares_noise=False) is None


@pytest.mark.parametrize("samples", [1, 4])
def test_a_base_of_any_number_of_samples_wins_half_against_itself(samples: int) -> None:
    marks = {"reward": np.random.default_rng(0).random((5, samples))}
    judged = Judged(
        prompt_ids=tuple("abcde"),
        images=torch.zeros(5, samples, 3, 2, 2, dtype=torch.uint8),
        marks=marks | {"gold": marks["reward"], "lower": marks["reward"]},
        diversity=np.full(5, np.nan),
        hole_share=np.ones(5),
        known_pixels_differ=0,
    )
    found = measure_prompts(judged, judged, shares_noise=True)
    assert found["gold_win_1"] == pytest.approx(np.full(5, 0.5))
    assert ("gold_win_3" in found) == (samples == 4)


def test_tests_that_cannot_show_anything_are_told() -> None:
    assert note_weak_tests(9, 8) == [
        "8 photographs are too few for 9 tests: after Holm's correction no p can be below 0.07"
    ]
    assert note_weak_tests(6, 8) == note_weak_tests(0, 2) == []


def test_chances_of_being_the_best_add_up_to_one() -> None:
    assert best_of(5, 1) == pytest.approx(np.full(5, 0.2))
    assert best_of(5, 5) == pytest.approx([1, 0, 0, 0, 0])
    assert best_of(7, 3).sum() == pytest.approx(1)


def test_the_sign_flip_test_tries_every_pattern_of_few_photographs() -> None:
    rng = np.random.default_rng(3)
    differences, photographs = rng.normal(0.4, 1, 12), [f"p{i // 2}" for i in range(12)]
    sums = differences.reshape(6, 2).sum(1)
    patterns = [abs(np.dot(signs, sums)) >= abs(sums.sum()) - 1e-12 for signs in product((-1, 1), repeat=6)]
    assert sign_flip_test(differences, photographs) == np.mean(patterns)
    # Six photographs, all better: only that pattern and its mirror image are as extreme.
    assert sign_flip_test(np.ones(6), [str(i) for i in range(6)]) == 2 / 64


def test_the_random_sign_flip_test_agrees_with_the_normal_approximation() -> None:
    from scipy.stats import norm

    differences = np.random.default_rng(1).normal(0.15, 1, 200)
    z = differences.sum() / np.sqrt((differences**2).sum())
    found = sign_flip_test(differences, [str(i) for i in range(200)])
    assert found == pytest.approx(2 * norm.sf(abs(z)), rel=0.15)


def test_sums_that_cancel_up_to_rounding_are_no_difference() -> None:
    differences = np.array([0.1, 0.2, -0.3])
    assert 0 < abs(differences.sum()) < 1e-15
    assert sign_flip_test(differences, list("abc")) == 1
    assert sign_flip_test(np.zeros(6), list("abcdef")) == sign_flip_test(np.ones(3), list("aaa")) == 1


def test_photographs_are_flipped_whole() -> None:
    """Five crops of one photograph are no five witnesses."""
    assert sign_flip_test(np.ones(30), [str(i // 5) for i in range(30)]) == 2 / 64


def test_pairs_are_tested_where_both_have_values_and_judged_by_their_corrected_p() -> None:
    gold, photographs = np.arange(12.0), [str(i) for i in range(12)]
    higher = np.where(np.arange(12) < 1, np.nan, gold + 1)
    columns = {"a": {"gold": gold, "seam": gold}, "b": {"gold": higher, "seam": gold}, "c": {"seam": gold}}
    tests = compare_pairs(columns, ["gold", "seam"], photographs)
    assert [(t.measure, t.first, t.second) for t in tests] == [
        ("gold", "a", "b"),
        *(("seam", first, second) for first, second in (("a", "b"), ("a", "c"), ("b", "c"))),
    ]
    assert (tests[0].p, tests[0].p_holm, tests[0].difference.clusters) == (2 / 2**11, 4 * 2 / 2**11, 11)
    assert [t.is_significant for t in tests] == [t.p_holm < SIGNIFICANT for t in tests] == [True, False, False, False]


def batch(*pictures: np.ndarray) -> torch.Tensor:
    return torch.stack([from_8bit(torch.from_numpy(p).permute(2, 0, 1)) for p in pictures])


def hole_of(size: int = 32) -> torch.Tensor:
    mask = torch.zeros(1, 1, size, size)
    mask[..., 8:24, 10:20] = 1
    return mask


def test_a_lighter_hole_has_the_psnr_and_seam_of_its_shift() -> None:
    original = np.full((32, 32, 3), 100, np.uint8)
    filled = original.copy()
    filled[8:24, 10:20] += 12
    found = measure_fidelity(batch(filled, original), batch(original, original), hole_of().repeat(2, 1, 1, 1))
    inside = slice(8, 24), slice(10, 20)
    assert found["psnr_db"][0] == pytest.approx(peak_signal_noise_ratio(original[inside], filled[inside]))
    assert found["psnr_db"][1].isnan()
    assert found["seam"].tolist() == pytest.approx([12, 0], abs=1e-4)
    assert found["ssim"][1] == pytest.approx(1)
    assert found["ssim"][0] < 1
    assert found["psnr_seam_db"][1].isnan()
    assert found["ssim_seam"][1] == pytest.approx(1)


def test_across_the_seam_is_near_the_border_on_both_sides() -> None:
    rng = np.random.default_rng(0)
    original, filled = (rng.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(2))
    mask = hole_of()
    hole = mask[0, 0].numpy() > 0.5
    filled = np.where(hole[..., None], filled, original)
    inside, outside = (distance_transform_cdt(part, metric="chessboard") for part in (hole, ~hole))
    band = np.maximum(inside, outside) <= 2
    assert (seam_band(mask)[0, 0].numpy() > 0.5).tolist() == band.tolist()
    assert {bool(x) for x in hole[band]} == {False, True}
    found = measure_fidelity(batch(filled), batch(original), mask)
    assert found["psnr_seam_db"][0] == pytest.approx(peak_signal_noise_ratio(original[band], filled[band]))
    similar = structural_similarity(filled, original, channel_axis=2, data_range=255, full=True)[1]
    assert found["ssim_seam"][0] == pytest.approx(similar[band].mean(), rel=1e-5)


def test_psnr_ssim_and_seam_are_those_of_the_study_of_extension() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
    band = plan_bands((20, 32), Margins(right=12), 1)[0]
    hole = band_hole(band)
    extended = np.where(hole[..., None], rng.integers(0, 255, truth.shape, dtype=np.uint8), truth)
    slow = vars(measure_band(extended, truth, band))
    found = measure_fidelity(batch(extended), batch(truth), torch.from_numpy(hole)[None, None].float())
    both = found.keys() & slow.keys()
    assert both == {"psnr_db", "ssim", "seam", "likeness"}
    assert {name: float(found[name]) for name in both} == pytest.approx({name: slow[name] for name in both}, rel=1e-4)


def test_looks_are_told_in_closed_form() -> None:
    red = np.zeros((32, 32, 3), np.uint8)
    red[8:24, 10:20, 0] = 255
    striped = np.zeros((32, 32, 3), np.uint8)
    striped[8:24, 10:20:2] = 255
    found = measure_looks(batch(red, striped), hole_of().repeat(2, 1, 1, 1))
    assert found["brightness"].tolist() == pytest.approx([0.299, 0.5], abs=1e-6)
    assert found["saturation"].tolist() == pytest.approx([1, 0], abs=1e-6)
    assert found["contrast"].tolist() == pytest.approx([0, 0.5], abs=1e-6)
    assert found["seam_energy"][0] == pytest.approx(255 / 3, abs=1e-3)
    # All of the left side, none of the right, half of the pixels above and below.
    assert found["seam_energy"][1] == pytest.approx(255 * (16 + 5 + 5) / (16 + 16 + 10 + 10), abs=1e-3)


def test_diversity_is_the_mean_difference_in_the_hole() -> None:
    levels = [np.full((32, 32, 3), value, np.uint8) for value in (10, 20, 40)]
    found = measure_diversity(batch(*levels)[None], hole_of())
    assert float(found) == pytest.approx((10 + 20 + 30) / 3, abs=1e-3)
    assert measure_diversity(batch(levels[0])[None], hole_of()).isnan().all()
