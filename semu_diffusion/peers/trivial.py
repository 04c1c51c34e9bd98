"""The trivial edits, in which nothing is unlearned: the floor of depth in every comparison.

Of a class model, the anchor's class-embedding row is copied over the erased one; of a text-to-image model, the concept's
prompts get the embeddings of the anchor's. Both score perfectly by name and change nothing else. One learned class vector
brings the class back; a word that was not listed, or one learned pseudo-word, the concept: that network is the original's.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from semu_diffusion.erase.anchors import named_anchors
from semu_diffusion.erase.config import ErasureConfig
from semu_diffusion.erase.task import EditResult, Progress, Task
from semu_diffusion.errors import InputError
from semu_diffusion.models.text_conditional import TextConditional
from semu_diffusion.peers.edit import WeightEdit

__all__ = ["TokenRemap", "copy_class_embedding", "copy_embedding", "remap_prompts", "remapped"]


def copy_embedding(task: Task[Any], config: ErasureConfig, progress: Progress | None = None) -> EditResult:
    """The copy of each erased class's anchor, named or chosen. Raises InputError without a class embedding."""
    start = time.perf_counter()
    anchors = named_anchors(task, config, progress)
    places = {row: int(task.model.embedding_index(torch.tensor(row))) for row in (*anchors, *anchors.values())}
    edit = copy_class_embedding(task.model.denoiser, {places[row]: places[anchor] for row, anchor in anchors.items()})
    return EditResult(edit, anchors, None, {"train": time.perf_counter() - start})


def copy_class_embedding(denoiser: nn.Module, anchors: Mapping[int, int]) -> WeightEdit:
    """``anchors`` maps an erased embedding's index to the one it becomes. Raises InputError without a class embedding."""
    embedding = getattr(denoiser, "class_embedding", None)
    if not isinstance(embedding, nn.Embedding):
        raise InputError("the model has no class embedding to copy in")
    weight = embedding.weight.detach().clone()
    for erased, anchor in anchors.items():
        weight[erased] = embedding.weight.detach()[anchor]
    return WeightEdit({"class_embedding.weight": weight}, 0)  # nothing is trained


@dataclass(frozen=True)
class TokenRemap:
    """``answer`` gives the prompt that a prompt is taken for, in any sentence that names the concept; else None."""

    answer: Callable[[str], str | None]
    trained_parameters: int = 0
    nbytes: int = 0

    @contextmanager
    def applied(self, model: TextConditional) -> Iterator[TextConditional]:
        """Inside, a model with another table; the network is the same object."""
        answers = {prompt: answer for prompt in model.names if (answer := self.answer(prompt)) is not None}
        yield remap_prompts(model.with_prompts(list(answers.values())), answers)


def remapped(task: Task[Any], config: ErasureConfig, progress: Progress | None = None) -> EditResult:
    """The remap of the task's own prompts to their anchors', and of its words in every other sentence."""
    start = time.perf_counter()
    model: TextConditional = task.model
    names = (*model.names, "")
    listed = {names[row]: names[anchor] for row, anchor in (task.anchors or {}).items()}

    def answer(prompt: str) -> str | None:
        return listed.get(prompt) or task.reworded(prompt)

    return EditResult(TokenRemap(answer), dict(task.anchors or {}), None, {"train": time.perf_counter() - start})


def remap_prompts(model: TextConditional, answers: Mapping[str, str]) -> TextConditional:
    """``model`` with the embeddings of every prompt replaced by those of its answer; the network is the same object.

    Raises KeyError for a prompt or an answer that the model's table does not have.
    """
    rows = torch.arange(len(model.table.prompts))
    for prompt, answer in answers.items():
        rows[model.row(prompt)] = model.row(answer)
    return dataclasses.replace(model, table=model.table.replaced(model.table.rows(rows.to(model.device))))
