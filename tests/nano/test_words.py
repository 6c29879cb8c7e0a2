"""Captions say what their labels say; the stored tokens cover what methods ask."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from open_clip.tokenizer import SimpleTokenizer

import anomaly_vlm
from anomaly_vlm.data.drawn.products.families import FAMILIES
from anomaly_vlm.nano.words import GENERIC_NOUN, NOUNS, STATES, draw_caption, random_caption, token_rows

TEXTS = Path(anomaly_vlm.__file__).parent / "texts"


def test_captions_name_their_noun_and_never_a_held_out_one():
    rng = np.random.default_rng(0)
    held_out = [noun for family in FAMILIES.values() if family.side == "test" for noun in family.nouns]
    for _ in range(500):
        caption = random_caption(rng)
        if caption.noun < GENERIC_NOUN:
            assert any(noun in caption.text for noun in FAMILIES[NOUNS[caption.noun]].nouns), caption
        words = f" {caption.text} "
        assert not any(f" {noun} " in words for noun in held_out), caption


def test_every_noun_and_state_can_be_said():
    rng = np.random.default_rng(1)
    said = {draw_caption(rng, noun, state) for noun in (0, GENERIC_NOUN) for state in range(len(STATES))}
    assert len(said) == 2 * len(STATES)


LATER = {"aaclip_prompts"}  # written after the tower was trained: a sixth of its tokens read as "thing" (model card)


def test_the_stored_tokens_cover_the_prompt_tables():
    known, tokenizer = set(token_rows().tolist()), SimpleTokenizer()

    def strings(node):
        if isinstance(node, str):
            yield node
        elif isinstance(node, dict | list):
            for child in node.values() if isinstance(node, dict) else node:
                yield from strings(child)

    for path in TEXTS.glob("*.json"):
        if path.stem in LATER or path.stem.endswith("_switches"):  # the latter are options by category, no prompts
            continue
        content = json.loads(path.read_text())
        for about in ("source", "composition", "schema"):  # of the table, no prompts
            content.pop(about, None)
        tokens = {token for text in strings(content) for token in tokenizer.encode(text.replace("{}", " "))}
        missing = {tokenizer.decode([token]) for token in tokens - known}
        assert len(missing) <= 0.02 * len(tokens), (path.name, sorted(missing))
