"""Sentences from templates and states, as the prompt ensembles of several methods are written."""

from __future__ import annotations

from collections.abc import Sequence


def fill_templates(templates: Sequence[str], states: Sequence[str], word: str) -> list[str]:
    """Puts every state of a class word into every template.

    Args:
        templates: Sentences with `{}` for the state, such as `a photo of a {}.`
        states: Phrases with `{}` for the class word, such as `broken {}`.
        word: The class word.

    Returns:
        All sentences. The states are the outer loop, which is the order of the published lists.
    """
    return [template.format(state.format(word)) for state in states for template in templates]
