"""`ClipBackbone`: hooks by formula, input sizes, activation, weights in every form, clear refusals."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from anomaly_vlm.backbone import ClipBackbone, Prompts, convert_torchscript, load_backbone, resize_positions
from anomaly_vlm.backbone.blocks import run_blocks
from anomaly_vlm.backbone.weights import resolve_activation
from anomaly_vlm.errors import UserError
from tests.support.tiny import tiny_architecture, tiny_clip

TINY = tiny_architecture(layers=3, text_layers=3)


@pytest.fixture(scope="module")
def tiny() -> ClipBackbone:
    return load_backbone("tiny", architecture=TINY, random_seed=0)


def test_facts(tiny: ClipBackbone) -> None:
    assert (tiny.image_size, tiny.patch_size, tiny.width, tiny.text_width, tiny.embed_dim) == (32, 8, 32, 16, 16)
    assert (tiny.num_layers, tiny.num_text_layers, tiny.layers) == (3, 3, (1, 2, 3))
    assert tiny.is_random and "random weights" in tiny.describe()
    assert not any(p.requires_grad for p in tiny.parameters())
    assert not tiny.train().training


def test_random_weights_follow_their_seed_and_leave_the_global_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    prints = [load_backbone("tiny", architecture=TINY, random_seed=seed).fingerprint() for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]
    assert torch.equal(before, torch.get_rng_state())


def test_sentences_in_any_order_and_twice(tiny: ClipBackbone) -> None:
    texts = ["a gear", "a damaged metal gear", "a gear", "a tile"]
    each = torch.cat([tiny.encode_text(tiny.tokenize([text])) for text in texts])
    torch.testing.assert_close(tiny.encode_sentences(texts), each)


def test_any_input_size(tiny: ClipBackbone) -> None:
    tokens = tiny.encode_image(torch.randn(2, 3, 48, 40), layers=[1, 3])
    assert tokens.grid == (6, 5)
    assert [tuple(p.shape) for p in tokens.patches] == [(2, 30, 32)] * 2
    with pytest.raises(ValueError, match="multiples of the patch size 8"):
        tiny.encode_image(torch.randn(1, 3, 30, 32))


def test_positions_are_always_resized_from_the_trained_grid() -> None:
    table = torch.randn(17, 4)
    assert resize_positions(table, (4, 4)) is table
    up = resize_positions(table, (6, 6), "bilinear")
    assert up.shape == (37, 4)
    assert torch.equal(up[0], table[0])
    assert not torch.allclose(
        resize_positions(table, (2, 2), "bicubic"), resize_positions(table, (2, 2), "bicubic_antialias")
    )


def test_appended_prompts_are_seen_by_all_and_stripped(tiny: ClipBackbone) -> None:
    images, prompts = torch.randn(2, 3, 32, 32), [torch.randn(3, 32), torch.randn(2, 3, 32)]
    plain = tiny.encode_image(images, layers=[3])
    prompted = tiny.encode_image(images, layers=[3], prompts=Prompts(prompts))
    assert prompted.tokens[0].shape == plain.tokens[0].shape
    assert not torch.allclose(prompted.cls, plain.cls, atol=1e-3)


def test_inserted_text_prompts_match_a_longer_sentence(tiny: ClipBackbone) -> None:
    """The paper's concatenation: with the prompts laid into the embeddings by hand, the result is the same."""
    ids = tiny.tokenize(["a cat", "a small cat"])
    prompt = torch.randn(4, 16)
    got = tiny.encode_text(ids, prompts=Prompts([prompt], place="start"))
    x = tiny.embed_text(ids)
    x = torch.cat([x[:, :1], prompt.expand(2, -1, -1), x[:, 1:]], dim=1)
    longer = torch.cat([ids[:, :1], torch.zeros(2, 4, dtype=ids.dtype), ids[:, 1:]], dim=1)
    torch.testing.assert_close(got, tiny.encode_text(longer, states=x))


def test_overwriting_prompts_are_cut_with_a_short_text(tiny: ClipBackbone) -> None:
    ids = tiny.tokenize(["cat"])  # SOS cat EOT
    prompt = torch.randn(5, 16)
    got = tiny.encode_text(ids, prompts=Prompts([prompt], place="start", insert=False))
    cut = tiny.encode_text(ids, prompts=Prompts([prompt[:2]], place="start", insert=False))
    torch.testing.assert_close(got, cut)


def test_trimming_a_text_is_exact(tiny: ClipBackbone) -> None:
    texts = ["a photo of a cat", "cat"]
    whole = tiny.tokenize(texts, trim=False)
    assert tiny.tokenize(texts).shape[1] < whole.shape[1] == 77
    torch.testing.assert_close(tiny.encode_text(tiny.tokenize(texts)), tiny.encode_text(whole))


def test_states_go_on_where_they_stopped(tiny: ClipBackbone) -> None:
    ids = tiny.tokenize(["a photo of a cat"])
    states = tiny.text_states(ids, until=2)
    torch.testing.assert_close(tiny.encode_text(ids, states=states, first_block=2), tiny.encode_text(ids))


@pytest.mark.parametrize("first_block", [0, 2, 3])
@pytest.mark.parametrize("place", [None, "start"])
def test_one_token_is_read_as_all_are_computed(tiny: ClipBackbone, place: str | None, first_block: int) -> None:
    blocks, ends = tiny.text.transformer.resblocks, torch.tensor([3, 6, 5])
    x = torch.randn(3, 7, 16, requires_grad=True)
    prompts = (
        None if place is None else Prompts([torch.randn(2, 16)], place="start", first_block=first_block, insert=False)
    )
    options = {"causal": True, "prompts": prompts, "first_block": first_block}
    whole = run_blocks(blocks, x, **options).last[torch.arange(3), ends]
    read = run_blocks(blocks, x, read=ends[:, None], **options).last[:, 0]
    torch.testing.assert_close(read, whole)
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), x)[0] for out in (read, whole)))


def test_one_token_is_read_of_the_ordinary_path_only(tiny: ClipBackbone) -> None:
    with pytest.raises(ValueError, match="ordinary path only"):
        run_blocks(tiny.text.transformer.resblocks, torch.randn(1, 4, 16), read=torch.tensor([[2]]), vv_from=1)


@pytest.mark.parametrize(
    ("name", "tag", "expected"),
    [
        ("ViT-L-14-336", "openai", "quick_gelu"),
        ("ViT-B-16-plus-240", "laion400m_e31", "gelu"),
        ("ViT-B-32-quickgelu", "laion400m_e32", "quick_gelu"),
    ],
)
def test_activation_follows_the_weights(name: str, tag: str, expected: str) -> None:
    """Also where open_clip's architecture says otherwise and only warns."""
    configs = open_clip.get_pretrained_cfg(name, tag), open_clip.get_model_config(name)
    assert resolve_activation("auto", *configs) == expected
    assert resolve_activation("gelu", *configs) == "gelu"


def test_weights_from_files(tiny: ClipBackbone, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = open_clip.CLIP(**TINY)
    state = model.state_dict()
    save_file(state, tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{k}": v.half() for k, v in state.items()}}, tmp_path / "w.pt")
    for file in ("w.safetensors", "w.pt"):
        clip = load_backbone("tiny", architecture=TINY, weights=str(tmp_path / file))
        torch.testing.assert_close(clip.visual.proj.data, model.visual.proj.data, rtol=0, atol=1e-3)
        assert clip.weights == f"file {file}" and not clip.is_random
    ids = torch.arange(0, 49408, 7)
    rows = {
        **state,
        "token_embedding.ids": ids,
        "token_embedding.rows": state["token_embedding.weight"][ids].contiguous(),
    }
    del rows["token_embedding.weight"]
    save_file(rows, tmp_path / "rows.safetensors")
    table = load_backbone(
        "tiny", architecture=TINY, weights=str(tmp_path / "rows.safetensors")
    ).text.token_embedding.weight
    assert torch.equal(table[7], model.token_embedding.weight[7]) and not table[8].any()


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_refusals(tmp_path: Path) -> None:
    def refused(*args, **kwargs) -> str:
        with pytest.raises(UserError) as error:
            load_backbone(*args, **kwargs)
        return one_line(error)

    assert "did you mean ViT-B-16" in refused("ViT-B-166", pretrained="openai")
    assert "choose one of openai" in refused("ViT-B-16", pretrained="opnai")
    assert "names no weights" in refused("ViT-B-16")
    assert "give only one" in refused("ViT-B-16", pretrained="openai", random_seed=0)
    assert "does not exist" in refused("tiny", architecture=TINY, weights=str(tmp_path / "none.pt"))
    assert "layers [4]" in refused("tiny", architecture=TINY, random_seed=0, layers=[4])
    assert "positive multiple of its patch size 8, such as 32" in refused(
        "tiny", architecture=TINY, random_seed=0, image_size=33
    )
    assert "image_size -8" in refused("tiny", architecture=TINY, random_seed=0, image_size=-8)
    assert "class token" in refused("RN50", random_seed=0)
    assert "backbone.activation" in refused("tiny", architecture=TINY, random_seed=0, activation="relu")

    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    assert "no readable safetensors" in refused("tiny", architecture=TINY, weights=str(tmp_path / "bad.safetensors"))
    (tmp_path / "bad.pt").write_bytes(b"nonsense")
    assert "weights_only" in refused("tiny", architecture=TINY, weights=str(tmp_path / "bad.pt"))
    torch.save({"visual.proj": torch.zeros(2, 2)}, tmp_path / "other.pt")
    message = refused("tiny", architecture=TINY, weights=str(tmp_path / "other.pt"))
    assert "missing positional_embedding" in message and "more" in message


def test_pickled_code_does_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (exec, ("raise SystemExit('code ran')",))

    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="weights_only"):
        load_backbone("tiny", architecture=TINY, weights=str(tmp_path / "evil.pt"))


def test_absent_published_weights_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from anomaly_vlm.backbone import weights

    monkeypatch.setattr(weights, "hub_answers", lambda: False)
    monkeypatch.setattr(weights, "hub_has", lambda repository, files: False)
    with pytest.raises(
        UserError, match=r"weights 'openai' of ViT-L-14-336 are not in the local cache.*backbone\.weights=FILE"
    ):
        load_backbone("ViT-L-14-336", pretrained="openai")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
def test_torchscript_only_by_explicit_conversion(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = open_clip.CLIP(**TINY)

    class Archive(torch.nn.Module):
        """As OpenAI's: weights plus plain numbers in one scripted module."""

        def __init__(self) -> None:
            super().__init__()
            self.visual = torch.nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.visual(x)

    scripted = torch.jit.script(Archive())
    file = tmp_path / "archive.pt"
    torch.jit.save(scripted, file)
    with pytest.raises(UserError, match="convert-weights"):
        load_backbone("tiny", architecture=TINY, weights=str(file))
    written = convert_torchscript(file)
    from safetensors.torch import load_file

    assert torch.equal(load_file(written)["visual.weight"], scripted.visual.weight)
    save_file(model.state_dict(), tmp_path / "plain.safetensors")
    with pytest.raises(UserError, match="no TorchScript archive"):
        convert_torchscript(tmp_path / "plain.safetensors")


def test_patches_of_any_layer_and_the_patch_embedding():
    clip = tiny_clip()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    whole = clip.encode_image(images, layers=[2, 4])
    found = clip.encode_patches(images, layers=[2, 0])
    torch.testing.assert_close(found.patches[0], whole.patches[0])
    torch.testing.assert_close(found.cls[0], whole.tokens[0][:, 0])
    torch.testing.assert_close(found.patches[1], clip.visual.conv1(images).flatten(2).transpose(1, 2))
    torch.testing.assert_close(found.cls[1], found.patches[1].mean(dim=1))
    projected = clip.encode_patches(images, layers=[4], tap="projected")
    torch.testing.assert_close(projected.cls[0], whole.cls)
    torch.testing.assert_close(
        clip.encode_patches(images, layers=[4], tap="norm").patches[0], clip.visual.ln_post(whole.patches[1])
    )


def test_texts_beyond_the_positions_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    backbone = load_backbone("tiny", architecture=TINY, random_seed=0)
    long = "a photo of a very " + "very " * 80 + "small part"
    backbone.tokenize([long, "a photo"])
    backbone.tokenize([long])
    backbone.tokenize(["x " * 75])  # with start and end just as many as there are
    (told,) = caplog.messages
    assert told.startswith("a text of 89 tokens is cut to 77: 'a photo of a very very")


def test_many_texts_beyond_the_positions_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    backbone = load_backbone("tiny", architecture=TINY, random_seed=0)
    backbone.tokenize([f"{i} \x1b[31m " + "very " * 80 for i in range(20)])
    (told,) = caplog.messages
    assert "tokens is cut to 77: '0 \\x1b[31m very" in told and told.endswith("' and 19 more")
