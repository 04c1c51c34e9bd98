"""The trivial edit of a text-to-image model: the concept's prompts get the embeddings of its anchor's. Nothing is unlearned.

It scores as well as the anchor on every prompt that was listed, changes nothing else, and a word that was not listed, or one
learned pseudo-word, brings the concept back: the network is the original's, so what it revives is what that one revives. It
belongs in every comparison as the floor of depth.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from semu_diffusion.erase.config import ErasureConfig
from semu_diffusion.erase.task import EditResult, Progress, Task
from semu_diffusion.models.text_conditional import TextConditional

__all__ = ["TokenRemap", "remap_prompts", "remapped"]


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
