"""The trivial edit of a text-to-image model: the concept's prompts get the embeddings of its anchor's. Nothing is unlearned.

It scores as well as the anchor on every prompt that was listed, changes nothing else, and a word that was not listed, or one
learned pseudo-word, brings the concept back: the network is the original's, so what it revives is what that one revives. It
belongs in every comparison as the floor of depth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from semu_diffusion.models.stable_diffusion import TextConditional

__all__ = ["remap_prompts"]


def remap_prompts(model: TextConditional, answers: Mapping[str, str]) -> TextConditional:
    """``model`` with the embeddings of every prompt replaced by those of its answer; the network is the same object.

    Raises KeyError for a prompt or an answer that the model's table does not have.
    """
    table = model.table
    embeddings = table.embeddings.clone()
    pooled = None if table.pooled is None else table.pooled.clone()
    for prompt, answer in answers.items():
        place, source = model.row(prompt), model.row(answer)
        embeddings[place] = table.embeddings[source]
        if pooled is not None and table.pooled is not None:
            pooled[place] = table.pooled[source]
    return dataclasses.replace(model, table=dataclasses.replace(table, embeddings=embeddings, pooled=pooled))
