"""FiLo's image parts: which frozen tokens it takes, linear and MMCI heads on them, an adapter on the global feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone, plus_next_attention
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.filo.mmci import MMCI, convolve


class TokenList:
    """The published code's list of tokens, by name: one entry a plain layer, two (V-V, ordinary) a dual one.

    Entries at even places feed the linear heads, those at odd places MMCI. `v` is the final V-V state, `v12` and `o12` are
    the two paths at layer 12.

    Args:
        layers: tapped 1-based blocks. n_plain: first blocks without V-V path.
        as_held: what the published code holds under these names, as updates in place reach entries taken before: the V-V
            entries and that of the last plain block hold the final V-V state, ordinary entries of dual blocks their output
            plus the attention of the next block. False: each entry as it stands behind its block.
    """

    def __init__(self, layers: Sequence[int], n_plain: int, *, as_held: bool) -> None:
        self.layers, self.n_plain, self.as_held = tuple(layers), n_plain, as_held
        self.names: list[str] = []
        for layer in self.layers:
            if layer <= n_plain:
                self.names.append("v" if as_held and layer == n_plain else f"o{layer}")
            else:
                self.names += ["v" if as_held else f"v{layer}", f"o{layer}"]

    def encode(self, clip: ClipBackbone, images: Tensor) -> dict[str, Tensor]:
        """`cls` [M, C] (`ln_post`, projected) and the distinct entries [M, N, Dv], class token dropped."""
        last = clip.num_layers
        taps = list(dict.fromkeys([*self.layers, last]))
        out = clip.encode_image(images, layers=taps, vv_from=self.n_plain)
        dual, ordinary = dict(zip(taps, out.tokens, strict=True)), dict(zip(taps, out.ordinary, strict=True))
        kept = {"cls": out.cls}
        for name in dict.fromkeys(self.names):
            layer = int(name[1:] or last)
            tokens = dual[layer] if name[0] == "v" else ordinary[layer]
            if name[0] == "o" and self.as_held and layer > self.n_plain:
                tokens = plus_next_attention(clip.visual.transformer.resblocks, tokens, layer)
            kept[name] = tokens[:, 1:]
        return kept


class Heads(nn.Module):
    """Linear heads on the even entries of a `TokenList`, MMCI heads on the odd ones.

    Args:
        names: of the entries. width: Dv. dim: C. kernels: of each MMCI head.
        mmci: False leaves the MMCI heads out. similarities: their branches stay apart (paper) in place of their sum (code).
    """

    def __init__(
        self,
        names: Sequence[str],
        width: int,
        dim: int,
        kernels: Sequence[Sequence[int]],
        *,
        mmci: bool = True,
        similarities: bool = False,
    ) -> None:
        super().__init__()
        self.similarities = similarities
        self.linear_names, self.mmci_names = list(names[::2]), list(names[1::2]) if mmci else []
        self.linear = nn.ModuleList([nn.Linear(width, dim) for _ in self.linear_names])
        self.mmci = nn.ModuleList([MMCI(width, dim, kernels) for _ in self.mmci_names])
        self._kernels: list[tuple[Tensor, Tensor]] | None = None  # while the learned values stand still

    def forward(self, tokens: Mapping[str, Tensor], grid: tuple[int, int]) -> list[Tensor]:
        """Outputs of the heads, linear ones first, each [branches, B, N, C], unit norm; one branch unless `similarities`."""
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
        """Heads that see the same tokens are one convolution."""
        kernels = self.merged_kernels()
        outputs: dict[int, Tensor] = {}
        for name in dict.fromkeys(self.mmci_names):
            own = [i for i, other in enumerate(self.mmci_names) if other == name]
            weight, bias = (torch.cat(part) for part in zip(*(kernels[i] for i in own), strict=True))
            outputs.update(zip(own, convolve(tokens[name], grid, weight, bias).chunk(len(own), dim=-1), strict=True))
        return [outputs[i] for i in range(len(outputs))]

    def merged_kernels(self) -> list[tuple[Tensor, Tensor]]:
        """Each MMCI head's kernels as one; without gradient merged once."""
        if torch.is_grad_enabled():
            return [head.merged() for head in self._heads()]
        if self._kernels is None:
            self._kernels = [head.merged() for head in self._heads()]
        return self._kernels

    def forget(self) -> None:
        """Drops the merged kernels, whose parts may have changed."""
        self._kernels = None

    def _heads(self) -> list[MMCI]:
        return [head for head in self.mmci if isinstance(head, MMCI)]


class Adapter(nn.Module):
    """Bottleneck on the global feature: `x + SiLU(W2 relu(W1 x))`, [B, C] -> [B, C]."""

    def __init__(self, dim: int, reduction: int) -> None:
        super().__init__()
        if reduction < 1:
            raise UserError(f"method.adapter_reduction is {reduction}: give at least 1")
        hidden = max(1, dim // reduction)
        self.fc = nn.Sequential(
            nn.Linear(dim, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, dim, bias=False), nn.SiLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(x)
