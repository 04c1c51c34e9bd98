"""Revival of a concept by a pseudo-word (textual inversion, Gal et al. 2022, eq. 2).

The token embedding of a word that does not exist is learned in the sentences that named the concept ("a photo of a *"), in
every text encoder of the model at once, from the mean of all token embeddings, in units of their root mean square.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from semu_diffusion.errors import InputError
from semu_diffusion.eval.probes.revival import Attached, Learning, RevivalProbe, Shown, WithVector, frozen
from semu_diffusion.models.prompt_table import Text, encode_texts, on_device, text_encoders
from semu_diffusion.models.text_conditional import TextConditional

__all__ = ["PseudoWordProbe"]

PLACE, WORD = "{}", "<learned-word>"


class PseudoWordProbe(RevivalProbe):
    """Learns a word under which the model denoises images of an erased concept best."""

    name = "pseudo-word"
    default = Learning(steps=200, lr=0.3, batch_size=16, sampling_steps=25)

    @staticmethod
    def applies(model: Any) -> bool:
        return isinstance(model, TextConditional)

    def start(self, model: Any, shown: Shown) -> tuple[torch.Tensor, float]:
        """The mean embedding of each encoder, in units of its root mean square, side by side (D,)."""
        tables = [_embedding(encoder).weight.detach().float() for encoder in text_encoders(model.pipeline).values()]
        return torch.cat([rows.mean(0) / _size(rows) for rows in tables]), 1.0

    @contextmanager
    def attached(self, model: Any, shown: Shown, vector: torch.Tensor) -> Iterator[Attached]:
        sentences = shown.sentences
        if len(sentences) != len(shown.clean) or any(sentence.count(PLACE) != 1 for sentence in sentences):
            raise InputError("revival needs images of the concept, and for each a sentence with one {} in it")
        how, spoken, encoders = self.learning, list(dict.fromkeys(sentences)), text_encoders(model.pipeline).values()
        with ExitStack() as stack:
            for encoder in encoders:
                stack.enter_context(on_device(encoder, model.device))
            stack.enter_context(frozen(*encoders, model.denoiser))
            encode = stack.enter_context(_injected_word(model, vector))

            def condition(chosen: list[int]) -> torch.Tensor:
                said = list(dict.fromkeys(sentences[index] for index in chosen))
                places = torch.tensor([said.index(sentences[index]) for index in chosen], device=model.device)
                return encode(said).vectors()[places]

            def sample(seeds: Sequence[int]) -> Iterator[torch.Tensor]:
                with torch.no_grad():
                    taught = model.with_rows([f"{sentence} [learned]" for sentence in spoken], encode(spoken))
                rows = [len(model.names) + index % len(spoken) for index in range(len(seeds))]
                yield from taught.sample(rows, seeds, how.sampling_steps, how.guidance_scale, how.sample_batch_size)

            yield Attached(condition, sample)


@contextmanager
def _injected_word(model: TextConditional, vector: torch.Tensor) -> Iterator[Callable[[Sequence[str]], Text]]:
    """Inside, a function of sentences with ``{}`` that gives what the network is told, with ``vector`` in that place.

    The pipeline's own code encodes them, in a copy whose tokenizers know one word more; the encoders are the same.
    """
    pipeline, encoders = copy.copy(model.pipeline), text_encoders(model.pipeline)
    embeddings = {ending: _embedding(encoder) for ending, encoder in encoders.items()}

    def encode(sentences: Sequence[str]) -> Text:
        said = [sentence.replace(PLACE, WORD) for sentence in sentences]
        return encode_texts(type(model), pipeline, said, len(said))

    try:
        start = 0
        for ending, embedding in embeddings.items():
            tokenizer = copy.deepcopy(getattr(pipeline, f"tokenizer{ending}"))
            tokenizer.add_tokens(WORD)
            setattr(pipeline, f"tokenizer{ending}", tokenizer)
            place, unit = int(tokenizer.convert_tokens_to_ids(WORD)), _size(embedding.weight.detach())
            part = slice(start, start := start + embedding.weight.shape[1])
            encoders[ending].set_input_embeddings(WithVector(embedding, vector, place, part, unit).eval())
        yield encode
    finally:
        for ending, embedding in embeddings.items():
            encoders[ending].set_input_embeddings(embedding)


def _embedding(encoder: Any) -> Any:
    return encoder.get_input_embeddings()


def _size(rows: torch.Tensor) -> float:
    """Root mean square of all the embeddings' numbers."""
    return float(rows.float().square().mean().sqrt())
