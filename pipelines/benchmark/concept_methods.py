"""The rows of the comparison of concepts: every method behind one call, `erased_by`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semu_diffusion.domains.concepts import ConceptTask
    from semu_diffusion.erase.task import Progress
    from semu_diffusion.erasure import Step
    from semu_diffusion.models.stable_diffusion import TextConditional

__all__ = ["METHODS", "Erased", "erased_by"]

# name -> (what it is, settings that differ from the default's)
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("SEMU, the default", {}),
    "null-space": ("SEMU, null space only", {"retain": "none"}),
    "retain": ("SEMU, retain term only", {"protect": "none"}),
    "unprotected": ("SEMU, nothing protected", {"protect": "none", "retain": "none"}),
    "remap": ("token remap (trivial)", {}),
}


@dataclass(frozen=True)
class Erased:
    """The erased model, and what the erasure took."""

    model: TextConditional
    trained_parameters: int
    nbytes: int
    seconds: float


@contextmanager
def erased_by(method: str, task: ConceptTask, progress: Progress | None = None) -> Iterator[Erased]:
    """Inside, the model of the task is erased by the method; afterwards its weights are as before."""
    from semu_diffusion.erase.run import run_erasure, run_to_end

    model = task.task.model
    if method == "remap":
        yield Erased(_remapped(task), 0, 0, 0.0)
        return

    def watch(step: Step) -> None:
        if progress is not None:
            progress("training R", step.index, task.config.steps)

    outcome = run_to_end(run_erasure(task.task, task.config, progress), watch)
    outcome.patch.apply(model.denoiser)
    try:
        seconds = sum(outcome.seconds.values())
        yield Erased(model, outcome.patch.trained_parameters, outcome.patch.nbytes, seconds)
    finally:
        outcome.patch.remove(model.denoiser)


def _remapped(task: ConceptTask) -> TextConditional:
    """The model whose every prompt with one of the concept's words says the anchor's instead, also in other sentences."""
    from semu_diffusion.domains.prompts import contains, with_anchor
    from semu_diffusion.models.stable_diffusion import adapt_text_pipeline
    from semu_diffusion.peers.token_remap import remap_prompts

    model, answers = task.task.model, dict[str, str]()
    for one in task.plans:
        for prompt in model.names:
            if any(contains(prompt, word) for word in one.told):
                answers[prompt] = with_anchor(prompt, one.told, task.anchors[one.concept])
    answers |= task.answers  # where the erasure has a better sentence, so has the remap
    book = adapt_text_pipeline(model.pipeline, [*model.names, *answers.values()], model.source)
    return remap_prompts(book, answers)
