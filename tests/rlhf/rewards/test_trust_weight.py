"""The formulas of the trust weight agree with each other, with the release and, to the bit, with their definition."""

import math

import torch

from rlhf.rewards.trust_weight import join_trust_weights, release_trust_weight, trust_weight


def uncertainties(seed: int) -> torch.Tensor:
    return torch.rand(100, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 10


def test_joined_weights_are_the_weight_of_the_mean_uncertainty() -> None:
    u, v = uncertainties(0), uncertainties(1)
    columns = {"u": trust_weight(u, 7.3, 0.05, 0.7), "v": trust_weight(v, 7.3, 0.05, 0.7)}
    joined = join_trust_weights(columns, {"u": 1.0, "v": -3.0, "without bound": 5.0})
    torch.testing.assert_close(joined, trust_weight((u + 3 * v) / 4, 7.3, 0.05, 0.7))
    assert torch.equal(joined, columns["u"] ** (1 / 4) * columns["v"] ** (3 / 4))


def test_one_reward_keeps_its_weights_to_the_bit() -> None:
    weights = trust_weight(uncertainties(2), 3.0, 0.05, 0.7)
    assert torch.equal(join_trust_weights({"model": weights}, {"model": 0.3}), weights)


def test_the_releases_weight_is_clipped_and_does_not_rescale_its_norm() -> None:
    weights = release_trust_weight(torch.tensor([0.0, 7.3, 100.0], dtype=torch.float64))
    expected = [math.exp(0.7), math.exp(0.7 - 0.05 * 7.3), 1.0]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64))
