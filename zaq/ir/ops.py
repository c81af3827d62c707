"""The words to speak of operations: sets of what torch.export writes, after `one_spelling`."""

import torch

__all__ = [
    "BATCH_NORMS", "CLAMPS", "CONVS", "LINEARS", "MATMULS", "MAX_POOLS", "MERGES", "MOVES", "PADS", "POOLS",
    "TRANSPOSED",
    "WEIGHTED",
]  # fmt: skip

aten = torch.ops.aten
CONVS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}
TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
LINEARS = {aten.linear.default}
MATMULS = {aten.matmul.default}  # of two activations
WEIGHTED = CONVS | TRANSPOSED | LINEARS  # (input, weight, bias, ...)
BATCH_NORMS = {aten.batch_norm.default}
MERGES = {aten.add.Tensor, aten.mul.Tensor, aten.cat.default}  # of two or more activations
POOLS = {aten.mean.dim, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default}
MAX_POOLS = {aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default}
CLAMPS = {aten.relu.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default, aten.clamp.Tensor}
# Operations that move values and make no new ones but zero: what is quantized before them is quantized after.
MOVES = {
    *MAX_POOLS, aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.permute.default,
    aten.transpose.int, aten.slice.Tensor, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default,
    aten.clone.default, aten.contiguous.default, aten.alias.default, aten.expand.default, aten.select.int,
    aten.roll.default,
    aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default, aten.channel_shuffle.default,
    aten.pixel_shuffle.default,
}  # fmt: skip
PADS = {aten.pad.default, aten.constant_pad_nd.default}
