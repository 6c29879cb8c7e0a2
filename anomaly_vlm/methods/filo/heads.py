"""FiLo's heads: which frozen tokens they read, linear and MMCI heads, and the adapter of the global feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone, plus_next_attention
from anomaly_vlm.methods.filo.mmci import MMCI, MMCIOptions, convolve
from anomaly_vlm.options import PositiveFloat, PositiveInt


class TokenList:
    """The tokens of the tapped blocks, in the published code's order.

    A plain block gives one entry, a block with a V-V path beside the ordinary one gives two: V-V, ordinary. Entries at even
    places feed the linear heads, those at odd places MMCI. `v12` and `o12` are the two paths behind block 12, and
    `v` is the V-V path behind the last block.

    Args:
        layers: Tapped 1-based blocks.
        n_plain: Number of first blocks without V-V path.
        as_published: The published code collects its tokens by reference and updates them in place afterwards. So the V-V
            entries and that of the last plain block all end up as the V-V path behind the last block, and the ordinary
            entries of blocks with two paths as their output plus the attention of the next block. False: each entry is what
            stands behind its block, as the paper says.
    """

    def __init__(self, layers: Sequence[int], n_plain: int, *, as_published: bool) -> None:
        self.layers, self.n_plain, self.as_published = tuple(layers), n_plain, as_published
        self.names: list[str] = []
        for layer in self.layers:
            if layer <= n_plain:
                self.names.append("v" if as_published and layer == n_plain else f"o{layer}")
            else:
                self.names += ["v" if as_published else f"v{layer}", f"o{layer}"]

    def encode(self, clip: ClipBackbone, images: Tensor) -> dict[str, Tensor]:
        """Frozen tokens of images.

        Args:
            clip: Frozen towers.
            images: `[M, 3, H, W]`, normalised.

        Returns:
            `cls` `[M, C]` (behind `ln_post`, projected), and the distinct entries `[M, N, Dv]` without class token.
        """
        last = clip.num_layers
        taps = list(dict.fromkeys([*self.layers, last]))
        out = clip.encode_image(images, layers=taps, vv_from=self.n_plain)
        dual, ordinary = dict(zip(taps, out.tokens, strict=True)), dict(zip(taps, out.ordinary, strict=True))
        tokens_by_name = {"cls": out.cls}
        for name in dict.fromkeys(self.names):
            layer = int(name[1:] or last)
            tokens = dual[layer] if name[0] == "v" else ordinary[layer]
            if name[0] == "o" and self.as_published and layer > self.n_plain:
                tokens = plus_next_attention(clip.visual.transformer.resblocks, tokens, layer)
            tokens_by_name[name] = tokens[:, 1:]
        return tokens_by_name


class FiloHeads(nn.Module):
    """Linear heads on the even entries of a `TokenList`, MMCI heads on the odd ones.

    Args:
        names: Names of the entries.
        width: Width Dv of the tokens.
        dim: Width C of the output.
        options: Of the MMCI heads; None leaves them out.
    """

    def __init__(self, names: Sequence[str], width: int, dim: int, options: MMCIOptions | None) -> None:
        super().__init__()
        self.linear_names, self.mmci_names = list(names[::2]), [] if options is None else list(names[1::2])
        options = options or MMCIOptions()
        self.similarities = options.fuse == "paper"  # the branches stay apart until their similarities to the texts
        self.linear = nn.ModuleList([nn.Linear(width, dim) for _ in self.linear_names])
        self.mmci = nn.ModuleList([MMCI(width, dim, options.kernels) for _ in self.mmci_names])
        self._kernels: list[tuple[Tensor, Tensor]] | None = None  # while the learned values stand still

    def forward(self, tokens: Mapping[str, Tensor], grid: tuple[int, int]) -> list[Tensor]:
        """Applies all heads.

        Args:
            tokens: `[B, N, Dv]` by name.
            grid: Rows and columns of patches.

        Returns:
            For each head, the linear ones first, `[branches, B, N, C]` of unit norm. There is one branch, unless it is an
            MMCI head whose branches stay apart.
        """
        dtype = next(self.parameters()).dtype  # the cache keeps tokens in the precision of the run that made them
        tokens = {name: value.to(dtype) for name, value in tokens.items()}
        outputs = [head(tokens[name])[None] for head, name in zip(self.linear, self.linear_names, strict=True)]
        if self.similarities:
            pairs = zip(self._heads(), self.mmci_names, strict=True)
            outputs += [head.branches(tokens[name], grid) for head, name in pairs]
        else:
            outputs += [out[None] for out in self._convolved(tokens, grid)]
        return [F.normalize(out.float(), dim=-1) for out in outputs]

    def _convolved(self, tokens: Mapping[str, Tensor], grid: tuple[int, int]) -> list[Tensor]:
        """Outputs `[B, N, C]` of the MMCI heads. Those that read the same tokens are computed as one convolution."""
        kernels = self.merged_kernels()
        outputs: dict[int, Tensor] = {}
        for name in dict.fromkeys(self.mmci_names):
            readers = [i for i, other in enumerate(self.mmci_names) if other == name]
            weight, bias = (torch.cat(tensors) for tensors in zip(*(kernels[i] for i in readers), strict=True))
            convolved = convolve(tokens[name], grid, weight, bias).chunk(len(readers), dim=-1)
            outputs.update(zip(readers, convolved, strict=True))
        return [outputs[i] for i in range(len(outputs))]

    def merged_kernels(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each MMCI head as one convolution, see `MMCI.merged`; without gradient merged once."""
        if torch.is_grad_enabled():
            return [head.merged() for head in self._heads()]
        if self._kernels is None:
            self._kernels = [head.merged() for head in self._heads()]
        return self._kernels

    def invalidate_caches(self) -> None:
        """Drops the merged kernels, which are computed from learned values."""
        self._kernels = None

    def _heads(self) -> list[MMCI]:
        return [head for head in self.mmci if isinstance(head, MMCI)]


@dataclass(frozen=True)
class AdapterOptions:
    """Options of the adapter and its loss.

    Args:
        reduction: The bottleneck has 1 / `reduction` of the units.
        temperature: Divides the similarities in the adapter's cross entropy.
    """

    reduction: PositiveInt = 2
    temperature: PositiveFloat = 0.07


class FiloAdapter(nn.Module):
    """Bottleneck on the global feature, `x + SiLU(W2 relu(W1 x))`.

    Args:
        dim: Width C of the feature.
        reduction: The bottleneck has 1 / `reduction` of the units.
    """

    def __init__(self, dim: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, dim // reduction)
        self.fc = nn.Sequential(
            nn.Linear(dim, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, dim, bias=False), nn.SiLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps features `[B, C]` to features `[B, C]`."""
        change: Tensor = self.fc(x)
        return x + change
