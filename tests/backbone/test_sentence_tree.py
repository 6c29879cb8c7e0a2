"""Sentences that share their beginnings, and a block's output as published codes hold it."""

from __future__ import annotations

import pytest
import torch

from anomaly_vlm.backbone import ClipBackbone, Prompts, load_backbone, plus_next_attention
from anomaly_vlm.backbone.sentence_tree import SentenceTree
from tests.support.tiny import tiny_architecture

SENTENCES = ["a damaged screw.", "a damaged screw at top left.", "a damaged screw at top.", "a clean screw.", "a"]


@pytest.fixture(scope="module")
def tiny() -> ClipBackbone:
    architecture = tiny_architecture(patch_size=16, layers=3, text_layers=3, text_width=32)
    return load_backbone("tiny", architecture=architecture, random_seed=0)


@pytest.mark.parametrize(("together", "groups"), [(None, 1), (2, 3), (1, 5)])
def test_every_beginning_stands_once_in_a_group(tiny: ClipBackbone, together: int | None, groups: int) -> None:
    ids = tiny.tokenize(SENTENCES)
    tree = SentenceTree(ids, together=together)
    assert len(tree.ids) == groups
    if together is None:
        beginnings = {tuple(row[:end]) for row in ids.tolist() for end in range(1, row.index(max(row)) + 2)}
        assert tree.ids.numel() == len(beginnings) < ids.numel()
    size = tree.ids.shape[1]
    for row, path in zip(ids.tolist(), tree.paths.tolist(), strict=True):
        length = row.index(max(row)) + 1
        assert tree.ids.flatten()[path[:length]].tolist() == row[:length]
        assert tree.depth.flatten()[path[:length]].tolist() == list(range(length))
        group, end = divmod(path[length - 1], size)
        assert {group * size + node for node in tree.sees[group, 0, end].nonzero().flatten().tolist()} == set(
            path[:length]
        )


@pytest.mark.parametrize("together", [None, 2])
def test_the_same_features_and_gradients_as_sentence_by_sentence(tiny: ClipBackbone, together: int | None) -> None:
    ids = tiny.tokenize(SENTENCES)
    tree = SentenceTree(ids, together=together)
    shift = torch.randn(
        2, 32, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()  # one for each of two images
    nodes = tiny.text.token_embedding(tree.ids) + shift[:, None, None]
    features = tiny.encode_tree(tree, nodes + tiny.text.positional_embedding[tree.depth])
    plain = torch.stack([tiny.encode_text(ids, states=tiny.embed_text(ids) + row) for row in shift])
    torch.testing.assert_close(features, plain, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(features.square().sum(), shift)
    (expected,) = torch.autograd.grad(plain.square().sum(), shift)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("together", [None, 2])
@pytest.mark.parametrize(("first_block", "inserted"), [(0, False), (1, False), (0, True), (1, True)])
@pytest.mark.parametrize("length", [1, 3, 9])  # nine tokens reach beyond every end token
def test_prompts_enter_every_sentence_of_the_tree(
    tiny: ClipBackbone, length: int, first_block: int, inserted: bool, together: int | None
) -> None:
    ids, noise = tiny.tokenize(SENTENCES), torch.Generator().manual_seed(0)
    prompts = [torch.randn(2, length, 32, generator=noise, requires_grad=True) for _ in range(2)]  # of two images
    states = tiny.text_states(ids, until=first_block)
    tree = SentenceTree(ids, together=together, prompts=length, inserted=inserted)
    nodes = states.flatten(0, 1)[tree.source].expand(2, -1, -1, -1)
    features = tiny.encode_tree(tree, nodes, first_block=first_block, prompts=prompts)
    each = [
        tiny.encode_text(
            ids,
            states=states,
            first_block=first_block,
            prompts=Prompts([p[i] for p in prompts], first_block, place="start", insert=inserted),
        )
        for i in range(2)
    ]
    plain = torch.stack(each)
    torch.testing.assert_close(features, plain, rtol=1e-5, atol=1e-6)
    gradients = torch.autograd.grad(features.square().sum(), prompts)
    torch.testing.assert_close(gradients, torch.autograd.grad(plain.square().sum(), prompts), rtol=1e-4, atol=1e-5)
    if not inserted and together is None:  # what prompts overwrite stands once, whatever the sentences begin with
        kept = {tuple(row[: end + 1]) for row in ids.tolist() for end in range(1 + length, row.index(max(row)) + 1)}
        assert tree.ids.shape[1] == 1 + length + len(kept)


def test_a_layer_plus_the_next_attention(tiny: ClipBackbone) -> None:
    blocks = tiny.visual.transformer.resblocks
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    h = blocks[1].ln_1(x)
    expected = x + blocks[1].attn(h, h, h, need_weights=False)[0]
    torch.testing.assert_close(plus_next_attention(blocks, x, 1), expected)
    assert plus_next_attention(blocks, x, 3) is x
