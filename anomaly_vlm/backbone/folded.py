"""A frozen convolutional network with fewer operations: the same values within rounding, in two thirds of the time."""

from __future__ import annotations

import copy
import itertools

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class Folded:
    """A copy of a network in evaluation mode, for feature maps of even sides at each of its strides.

    Batch norms become part of the convolutions before them. TensorFlow's padding, which timm adds to a copy of the feature
    map, becomes the convolution's own. Weights lie channels last. Where a weight learns, the copy is the network itself.

    Args:
        network: In evaluation mode.

    Attributes:
        network: The copy.
    """

    def __init__(self, network: nn.Module) -> None:
        self._tensors = [*network.parameters(), *network.buffers()]
        self._learns, self._changes = self._now()
        self.network = network
        if not self._learns:
            with torch.inference_mode(mode=False), torch.no_grad():
                self.network = _folded(copy.deepcopy(network)).to(memory_format=torch.channels_last)

    def is_current(self) -> bool:
        """Whether no tensor of the network was changed in place, nor began or ceased to learn."""
        return self._now() == (self._learns, self._changes)

    def _now(self) -> tuple[bool, int]:
        """Whether a tensor learns, and how often all were changed."""
        learns = any(tensor.requires_grad for tensor in self._tensors)
        return learns, sum(0 if tensor.is_inference() else tensor._version for tensor in self._tensors)


def _folded(module: nn.Module) -> nn.Module:
    """Folds a module in place."""
    children = list(module.named_children())
    for (first, conv), (second, norm) in itertools.pairwise(children):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, first, _padding_itself(fuse_conv_bn_eval(conv, norm)))
            setattr(module, second, nn.Sequential(*norm.children()))  # timm's norms hold their activation
    for _, child in children:
        _folded(child)
    return module


def _padding_itself(conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution of stride 2 that pads its input as `Conv2dSame` does where the sides are even; any other as it is.

    That is one pixel less before than behind, which no convolution of PyTorch does: the kernel gets a first row and a first
    column of zeros, and as much padding on all sides.
    """
    kernel = conv.kernel_size[0]
    if not isinstance(conv, Conv2dSame) or conv.stride != (2, 2) or conv.kernel_size != (kernel, kernel):
        return conv
    made = nn.Conv2d(
        conv.in_channels, conv.out_channels, kernel + 1, 2, padding=(kernel - 1) // 2, groups=conv.groups
    ).eval()
    made.weight = nn.Parameter(F.pad(conv.weight, (1, 0, 1, 0)), requires_grad=False)
    made.bias = conv.bias
    return made
