"""The original Grounding DINO code (`groundingdino-py`), with what lets it run with current transformers replaced."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from anomaly_vlm.detectors.grounding import GroundingDetector
from anomaly_vlm.detectors.key_map import read_original, sizes
from anomaly_vlm.errors import UserError

SWIN = {96: "swin_T_224_1k", 128: "swin_B_384_22k"}  # embedding width -> the package's name


class GroundingDinoDetector(GroundingDetector):
    """`weights`: a `.pth` file of the original code; the tokenizer comes from `tokenizer`.

    The package mixes up the text masks of images with different captions in one batch, so that only images of the same
    caption run together.
    """

    name: ClassVar[str] = "groundingdino"

    def __init__(self, *, weights: str, **options: Any) -> None:
        if find_spec("groundingdino") is None:
            raise UserError(
                "detector=groundingdino needs the package groundingdino-py: install the extra 'groundingdino', or use"
                " detector=transformers, which reads the same files"
            )
        super().__init__(weights=weights, **options)
        if self.weights.is_dir():
            raise UserError(f"detector.weights={weights} is a folder: give a .pth file, or use detector=transformers")

    def load(self) -> nn.Module:
        """Builds the package's model with the weights, on the CPU."""
        return build(read_original(self.weights), str(self.tokenizer_place))

    def run(self, images: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Logits [B, Q, 256] and boxes [B, Q, 4] of images [B, 3, H, W] with a caption each."""
        from groundingdino.util.misc import nested_tensor_from_tensor_list

        out = self.model(nested_tensor_from_tensor_list(list(images)), captions=captions)
        return out["pred_logits"], out["pred_boxes"]

    def together(self, caption: str) -> str:
        """Images run together where this is equal: those of one caption."""
        return caption


class PlainBert(nn.Module):
    """BERT's parts under the names of the package's own wrapper, which needs methods that transformers 5 has not."""

    def __init__(self, bert_model: Any) -> None:
        super().__init__()
        self.config = bert_model.config
        self.embeddings, self.encoder, self.pooler = bert_model.embeddings, bert_model.encoder, bert_model.pooler

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, position_ids: Tensor
    ) -> dict[str, Tensor]:
        """Hidden states of BERT's encoder under the attention mask of a caption."""
        states = self.embeddings(input_ids=input_ids, position_ids=position_ids, token_type_ids=token_type_ids)
        visible = (
            attention_mask
            if attention_mask.ndim == 3
            else attention_mask[:, None, :].expand(-1, input_ids.shape[1], -1)
        )
        mask = torch.zeros(visible.shape, dtype=states.dtype, device=states.device)
        mask = mask.masked_fill(~visible.bool(), torch.finfo(states.dtype).min)[:, None]  # [B, 1, L, L]
        return {"last_hidden_state": self.encoder(states, attention_mask=mask)[0]}


def build(state: dict[str, Tensor], tokenizer: str) -> nn.Module:
    """The package's model with these weights, built to the sizes that they have.

    Raises:
        UserError: An image tower that the package does not know, or keys that do not fit.
    """
    facts = sizes(state)
    if facts["swin"]["embed_dim"] not in SWIN:
        raise UserError(
            f"detector weights with a Swin of width {facts['swin']['embed_dim']}: groundingdino knows {sorted(SWIN)}: use"
            " detector=transformers"
        )
    with replaced_parts(facts["text"]):
        from groundingdino.models import build_model
        from groundingdino.util.slconfig import SLConfig

        model: nn.Module = build_model(SLConfig(package_config(facts, tokenizer)))
    missing, surplus = model.load_state_dict(state, strict=False)
    wrong = [f"missing {key}" for key in missing if "relative_position_index" not in key and "pooler" not in key]
    wrong += [f"surplus {key}" for key in surplus if not key.startswith("label_enc") and "position_ids" not in key]
    if wrong:
        raise UserError(f"detector weights do not fit groundingdino: {'; '.join(wrong[:4])}: give an original file")
    return model


def package_config(facts: dict[str, Any], tokenizer: str) -> dict[str, Any]:
    """The package's configuration of Swin-T, with the sizes of a checkpoint and without gradient checkpoints."""
    return {
        "modelname": "groundingdino",
        "backbone": SWIN[facts["swin"]["embed_dim"]],
        "position_embedding": "sine",
        "pe_temperatureH": 20,
        "pe_temperatureW": 20,
        "return_interm_indices": [1, 2, 3],
        "backbone_freeze_keywords": None,
        "enc_layers": facts["encoder_layers"],
        "dec_layers": facts["decoder_layers"],
        "pre_norm": False,
        "dim_feedforward": facts["encoder_ffn_dim"],
        "hidden_dim": facts["d_model"],
        "dropout": 0.0,
        "nheads": facts["encoder_attention_heads"],
        "num_queries": facts["num_queries"],
        "query_dim": 4,
        "num_patterns": 0,
        "num_feature_levels": facts["num_feature_levels"],
        "enc_n_points": 4,
        "dec_n_points": 4,
        "two_stage_type": "standard",
        "two_stage_bbox_embed_share": False,
        "two_stage_class_embed_share": False,
        "transformer_activation": "relu",
        "dec_pred_bbox_embed_share": True,
        "dn_box_noise_scale": 1.0,
        "dn_label_noise_ratio": 0.5,
        "dn_label_coef": 1.0,
        "dn_bbox_coef": 1.0,
        "embed_init_tgt": True,
        "dn_labelbook_size": 2000,
        "max_text_len": 256,
        "text_encoder_type": tokenizer,
        "use_text_enhancer": True,
        "use_fusion_layer": True,
        "use_checkpoint": False,
        "use_transformer_ckpt": False,
        "use_text_cross_attention": True,
        "text_dropout": 0.0,
        "fusion_dropout": 0.0,
        "fusion_droppath": 0.1,
        "sub_sentence_present": True,
    }


@contextlib.contextmanager
def replaced_parts(text: dict[str, Any]) -> Iterator[None]:
    """Replaces pieces of the groundingdino package while the context is open.

    The package then wraps BERT as `PlainBert`, builds it without fetching weights (the checkpoint holds them), and neither
    prints nor warns of its own deprecations.
    """
    from transformers import BertConfig, BertModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from groundingdino.models.GroundingDINO import groundingdino as module
        from groundingdino.util import get_tokenlizer

    before = module.BertModelWarper, get_tokenlizer.get_pretrained_language_model
    module.BertModelWarper = PlainBert
    get_tokenlizer.get_pretrained_language_model = lambda name: BertModel(BertConfig(**text))
    try:
        with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        module.BertModelWarper, get_tokenlizer.get_pretrained_language_model = before
