"""Costs that are counted without running: against closed forms, and against the same passes on real tensors."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from small_networks import build_unet
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from rlhf.alignment.planning.pass_cost import count_cost

MILLION = 1_000_000


def on_meta(module: type[nn.Module], *arguments: object, **options: object) -> nn.Module:
    with torch.device("meta"):
        return module(*arguments, **options)


def test_a_chain_of_layers_keeps_one_activation_without_gradients_and_all_with_them() -> None:
    chain = nn.Sequential(*(on_meta(nn.Linear, 100, 100, bias=False) for _ in range(10)))
    inputs = torch.empty(1000, 100, device="meta")
    layer = 1000 * 100 * 4
    with torch.no_grad():
        frozen = count_cost(lambda: chain(inputs))
    assert frozen.peak_bytes == 2 * layer, "a layer's input and output"
    assert frozen.flops == 10 * 2 * 1000 * 100 * 100
    trained = count_cost(lambda: chain(inputs).sum().backward())
    assert 10 * layer < trained.peak_bytes < 13 * layer + 10 * 100 * 100 * 4
    # Products for the gradients of weights and inputs; the first layer's input needs none.
    assert trained.flops == (10 + 10 + 9) * 2 * 1000 * 100 * 100


@pytest.mark.parametrize("is_grouped", [False, True])
def test_attention_takes_no_matrix_of_weights(is_grouped: bool) -> None:
    query = torch.empty(2, 4, 4096, 32, device="meta", requires_grad=is_grouped)
    cost = count_cost(lambda: scaled_dot_product_attention(query, query, query))
    assert cost.flops == 2 * (2 * 2 * 4 * 4096 * 4096 * 32)
    assert cost.peak_bytes < 1.5 * query.nbytes


def unet(device: str) -> UNet2DConditionModel:
    with torch.device(device):
        return build_unet((16, 32))


@pytest.mark.parametrize("has_gradients", [False, True])
def test_the_meta_device_counts_what_the_same_passes_take_on_real_tensors(has_gradients: bool) -> None:
    costs = []
    for device in ("meta", "cpu"):
        network, inputs = unet(device), torch.zeros(4, 9, 16, 16, device=device)
        timestep, text = torch.zeros(4, device=device, dtype=torch.long), torch.zeros(4, 77, 32, device=device)

        def run(network: nn.Module = network, inputs: tuple = (inputs, timestep, text)) -> None:
            with torch.set_grad_enabled(has_gradients):
                output = network(*inputs).sample
                if has_gradients:
                    output.sum().backward()

        costs.append(count_cost(run))
    assert costs[0].flops == costs[1].flops > MILLION
    assert costs[0].peak_bytes == pytest.approx(costs[1].peak_bytes, rel=0.02)
