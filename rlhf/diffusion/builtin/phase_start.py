"""Initial weights that make AutoencoderKL's decoder the inverse of a linear transform of patches.

The decoder doubles the size: it repeats each value, then convolves. A linear decoder of this kind cannot tell the first
pixel of a repeated pair from the second. A residual block with relu can, since the first equals its right neighbour and
the second its left one. The block computes a candidate value for each of the four places. The mean of the candidates
passes beside the block. Their deviations `a` from the mean pass through it as relu(a - k D) - relu(-a - k D). D is the
difference from the neighbours that should be equal: 0 at the right place, and large elsewhere if there is detail. Two
constant channels in each group keep the scale of every norm.
"""

from typing import Any

import torch
from torch import nn

OPENNESS = 1.5
"""k above; a larger k suppresses more of a deviation at the wrong place."""
OFFSET = 16.0
"""Offset that keeps candidates positive before a relu, so that it passes them unchanged."""
LAST_CONSTANT = 50.0
"""Number of groups of the last norm that hold colours."""
MIDDLE_CHANNELS = 8
"""Numbers by which a quarter of a patch, 2x2 pixels of 3 colours, is described at half resolution."""


def place(norm: nn.GroupNorm, index: int) -> int:
    """Returns the channel of the value number `index`; the last two channels of each group hold constants."""
    size = norm.num_channels // norm.num_groups
    group, position = divmod(index, size - 2)
    return group * size + position


@torch.no_grad()
def keep_scale(convolution: Any, norm: nn.GroupNorm, constant: float) -> None:
    """Sets weights such that `norm` passes the values of `convolution` unchanged.

    The last two channels of each group become c - (the sum of the others) and -c. So the group's mean is 0, and for a
    large c its deviation is nearly the same for all images. c is `constant`.
    """
    size = norm.num_channels // norm.num_groups
    for end in range(size, norm.num_channels + 1, size):
        others = slice(end - size, end - 2)
        convolution.weight[end - 2] = -convolution.weight[others].sum(0)
        convolution.bias[end - 2] = constant - convolution.bias[others].sum()
        convolution.weight[end - 1] = 0
        convolution.bias[end - 1] = -constant
    norm.weight.fill_(constant * (2 / size) ** 0.5)
    norm.bias.zero_()


def carry(convolution: Any, channels: int) -> None:
    """Sets a 1x1 convolution to pass its first `channels` channels and nothing else."""
    convolution.weight.zero_()
    convolution.bias.zero_()
    convolution.weight[range(channels), range(channels), 0, 0] = 1


def start_decoder(decoder: Any, mean: torch.Tensor, maps: torch.Tensor) -> None:
    """Sets the decoder to return the patches mean + maps @ latents.

    Shapes: mean [48], maps [48, 16]. Both follow the order of `pixel_unshuffle`: colour, row, column.
    """
    first, second, third = decoder.up_blocks
    decoder.conv_in.weight.zero_()
    decoder.conv_in.bias.zero_()
    decoder.conv_in.weight[range(maps.shape[1]), range(maps.shape[1]), 1, 1] = 1
    by_pixel = maps.view(3, 2, 2, 2, 2, -1)  # [colour, quarter's row, row, quarter's column, column, K]
    quarters = by_pixel.permute(1, 3, 0, 2, 4, 5).reshape(4, 12, -1)
    rows = quarters.permute(1, 0, 2).reshape(12, -1)
    basis = torch.linalg.svd(rows, full_matrices=False).U[:, :MIDDLE_CHANNELS]  # [12, M]
    middle = torch.einsum("cm,qck->qmk", basis, quarters)
    results = torch.arange(MIDDLE_CHANNELS)
    _place_quarters(first.upsamplers[0].conv, second.resnets[0], middle, results, pilots=7)
    pixels = basis.view(3, 4, -1).permute(1, 0, 2)  # [place in the quarter, colour, M]
    norm, block = decoder.conv_norm_out, third.resnets[0]
    size = norm.num_channels // norm.num_groups
    _place_quarters(second.upsamplers[0].conv, block, pixels, size * torch.arange(3), pilots=5)
    _end_linear(decoder, block, mean.view(3, 16).mean(1), size)


def _end_linear(decoder: Any, block: Any, mean: torch.Tensor, size: int) -> None:
    """Passes the colours through the last norm and activation as pairs: silu(a) - silu(-a) = a."""
    shortcut, norm, last = block.conv_shortcut, decoder.conv_norm_out, decoder.conv_out
    last.weight.zero_()
    last.bias.copy_(mean)
    scale = LAST_CONSTANT * (2 / size) ** 0.5
    norm.weight.fill_(scale)
    # Otherwise the untrained norm of the next block would divide the colours by the constants.
    decoder.up_blocks[-1].resnets[-1].norm1.weight[: 3 * size] = scale
    for channel in range(0, 3 * size, size):
        block.conv2.weight[channel + 1] = -block.conv2.weight[channel]
        shortcut.weight[channel + 1] = -shortcut.weight[channel]
        shortcut.weight[channel + 2 : channel + size] = 0
        shortcut.bias[channel : channel + size] = 0
        shortcut.bias[channel + 2], shortcut.bias[channel + 3] = LAST_CONSTANT, -LAST_CONSTANT
        last.weight[channel // size, channel, 1, 1], last.weight[channel // size, channel + 1, 1, 1] = 1, -1


def free_decoder(decoder: Any) -> None:
    """Marks the weights of the decoder that may train without breaking its initial function.

    Blocks that begin as the identity train as a whole. The two blocks that place quarters train their last convolution.
    Weights that carry brightness or constants stay fixed, since a step on them would change the whole picture.
    """
    decoder.requires_grad_(False)
    first, second, third = decoder.up_blocks
    for block in (decoder.mid_block, *first.resnets, second.resnets[1], third.resnets[1]):
        block.requires_grad_(True)
    size = decoder.conv_norm_out.num_channels // decoder.conv_norm_out.num_groups
    last = torch.ones(decoder.conv_norm_out.num_channels)
    for channel in range(0, 3 * size, size):
        last[channel + 2 : channel + 4] = 0
    middle, end, closing = second.resnets[0], third.resnets[0], third.resnets[1]
    _free(middle.conv2, torch.ones(middle.conv2.out_channels), _without_constants(middle.norm2))
    _free(end.conv2, last, _without_constants(end.norm2))
    _free(closing.conv2, last, torch.ones_like(last))


def _free(convolution: Any, rows: torch.Tensor, columns: torch.Tensor) -> None:
    """Lets the weights train that lead from inputs where `columns` is 1 to outputs where `rows` is 1."""
    convolution.requires_grad_(True)
    mask = rows[:, None, None, None] * columns[None, :, None, None]
    convolution.weight.register_hook(lambda gradient: gradient * mask)
    convolution.bias.register_hook(lambda gradient: gradient * rows)


def _without_constants(norm: nn.GroupNorm) -> torch.Tensor:
    """Returns 1 for channels of values and 0 for the two constants of each group, [channels]."""
    mask = torch.ones(norm.num_groups, norm.num_channels // norm.num_groups)
    mask[:, -2:] = 0
    return mask.flatten()


def _place_quarters(doubling: Any, block: Any, maps: torch.Tensor, results: torch.Tensor, *, pilots: int) -> None:
    """Sets `block` to choose, for each pixel of the doubled map, the values of its own quarter of the patch.

    `maps` [4, M, K] gives the M values of each quarter from the first K channels before doubling. `doubling` computes
    the 4 M candidates and, for `pilots` directions, the differences from the four neighbours. The block writes the M
    chosen values into its channels `results`.
    """
    quarters, values, width = maps.shape
    doubling.weight.zero_()
    doubling.bias.zero_()
    norm, candidates = block.norm1, quarters * values
    channels = [place(norm, i) for i in range(candidates + 8 * pilots)]
    doubling.weight[channels[:candidates], :width, 1, 1] = maps.reshape(candidates, width)
    differences = torch.tensor(channels[candidates:]).view(4, 2 * pilots)
    _differences(doubling, differences, width)
    keep_scale(doubling, norm, 200.0)
    norm.bias[channels[:candidates]] = OFFSET
    block.conv1.weight.zero_()
    block.conv1.bias.zero_()
    constants = [c for c in range(norm.num_channels) if c not in channels]
    block.conv_shortcut.weight[:, constants] = 0
    block.conv_shortcut.weight[results] = 0
    block.conv_shortcut.bias[results] = 0
    for index in range(candidates):
        quarter, value = divmod(index, values)
        same = channels[value:candidates:values]
        block.conv_shortcut.weight[results[value], same] = 0.25
        # In the upper row the lower neighbour is equal; in the left column the right one is.
        equal = torch.cat([differences[1 - quarter // 2], differences[3 - quarter % 2]])
        for sign, half in ((1.0, 0), (-1.0, 1)):
            hidden = place(block.norm2, 2 * index + half)
            block.conv1.weight[hidden, same, 1, 1] = -sign / 4
            block.conv1.weight[hidden, channels[index], 1, 1] += sign
            block.conv1.weight[hidden, equal, 1, 1] = -OPENNESS
            block.conv2.weight[results[value], hidden, 1, 1] = sign
    keep_scale(block.conv1, block.norm2, 2000.0)


def _differences(doubling: Any, channels: torch.Tensor, width: int) -> None:
    """Sets `channels` [4, 2 P] to differences from the upper, lower, left and right neighbour, in this order.

    The differences are taken along P random directions, with both signs.
    """
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(channels.shape[1] // 2, width, generator=generator) / width**0.5
    signed = torch.cat([directions, -directions])
    for targets, (row, column) in zip(channels, ((0, 1), (2, 1), (1, 0), (1, 2)), strict=True):
        doubling.weight[targets, :width, 1, 1] = signed
        doubling.weight[targets, :width, row, column] = -signed
