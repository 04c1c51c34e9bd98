"""Revival of a concept by a pseudo-word (textual inversion, Gal et al. 2022, eq. 2).

The token embedding of a word that does not exist is learned in the sentences that named the concept ("a photo of a *"), in
every text encoder of the model at once, in units of the root mean square of each encoder's token embeddings.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from semu_diffusion.errors import InputError
from semu_diffusion.eval.probes.probe import Shown, frozen
from semu_diffusion.eval.probes.revival import Attached, Learning, RevivalProbe, WithVectors
from semu_diffusion.models.prompt_table import Text, encode_texts, on_device, text_encoders, tokenizer_of
from semu_diffusion.models.text_conditional import TextConditional

__all__ = ["PseudoWordProbe"]

PLACE = "{}"
Spoken = tuple[int, str]  # which vector, in which sentence


class PseudoWordProbe(RevivalProbe):
    """Learns words under which the model denoises images of an erased concept best."""

    name = "pseudo-word"
    default = Learning()

    @staticmethod
    def applies(model: Any) -> bool:
        return isinstance(model, TextConditional)

    def start(self, model: Any, shown: Shown, generator: torch.Generator) -> tuple[torch.Tensor, float]:
        """The mean of all token embeddings, then those of tokens that the generator picks; of several encoders side by side."""
        parts = []
        for encoder in text_encoders(model.pipeline).values():
            rows = encoder.get_input_embeddings().weight.detach().float()
            picked = rows[torch.randperm(len(rows), generator=generator)[: self.how.restarts - 1].to(rows.device)]
            parts.append((torch.cat([rows.mean(0, keepdim=True), picked]) / _size(rows)).to(model.device))
        return torch.cat(parts, dim=1), 1.0

    @contextmanager
    def attached(self, model: Any, shown: Shown, vectors: torch.Tensor) -> Iterator[Attached]:
        sentences, count = shown.sentences, len(shown.images(model))
        if len(sentences) != count or any(sentence.count(PLACE) != 1 for sentence in sentences):
            raise InputError("revival needs images of the concept, and for each a sentence with one {} in it")
        how, spoken, encoders = self.how, list(dict.fromkeys(sentences)), text_encoders(model.pipeline).values()
        with ExitStack() as stack:
            for encoder in encoders:
                stack.enter_context(on_device(encoder, model.device))
            stack.enter_context(frozen(*encoders, model.denoiser))
            encode = stack.enter_context(_injected_words(model, vectors))

            def condition(restarts: list[int], chosen: list[int]) -> torch.Tensor:
                said = [(restart, sentences[index]) for restart, index in zip(restarts, chosen, strict=True)]
                different = list(dict.fromkeys(said))  # each sentence of a restart is encoded once
                place = {pair: number for number, pair in enumerate(different)}
                return encode(different).vectors()[[place[pair] for pair in said]]

            def sample(restarts: Sequence[int], seeds: Sequence[int]) -> Iterator[torch.Tensor]:
                said = [(restart, spoken[index % len(spoken)]) for index, restart in enumerate(restarts)]
                different = list(dict.fromkeys(said))
                with torch.no_grad():
                    taught = model.with_rows([f"{sentence} [learned {r}]" for r, sentence in different], encode(different))
                rows = [len(model.names) + different.index(pair) for pair in said]
                yield from taught.sample(rows, seeds, how.sampling_steps, how.guidance_scale)

            yield Attached(condition, sample)


@contextmanager
def _injected_words(model: TextConditional, vectors: torch.Tensor) -> Iterator[Callable[[Sequence[Spoken]], Text]]:
    """Inside, a function of (restart, sentence with ``{}``) that gives what the network is told, with the vector there.

    The pipeline's own code encodes them, in a copy whose tokenizers know more words; the encoders are the same.
    """
    pipeline, encoders = copy.copy(model.pipeline), text_encoders(model.pipeline)
    embeddings = {ending: encoder.get_input_embeddings() for ending, encoder in encoders.items()}
    words = [f"<learned-word-{restart}>" for restart in range(len(vectors))]

    def encode(spoken: Sequence[Spoken]) -> Text:
        said = [sentence.replace(PLACE, words[restart]) for restart, sentence in spoken]
        return encode_texts(type(model), pipeline, said, len(said))

    try:
        start = 0
        for ending, embedding in embeddings.items():
            setattr(pipeline, f"tokenizer{ending}", copy.deepcopy(getattr(pipeline, f"tokenizer{ending}")))
            tokenizer = tokenizer_of(pipeline, ending)
            first = max(tokenizer.get_vocab().values()) + 1
            tokenizer.add_tokens(words)
            assert tokenizer.convert_tokens_to_ids(words) == list(range(first, first + len(words)))
            part = slice(start, start := start + embedding.weight.shape[1])
            unit = _size(embedding.weight.detach())
            encoders[ending].set_input_embeddings(WithVectors(embedding, vectors, first, part, unit).eval())
        yield encode
    finally:
        for ending, embedding in embeddings.items():
            encoders[ending].set_input_embeddings(embedding)


def _size(rows: torch.Tensor) -> float:
    """Root mean square of all the embeddings' numbers."""
    return float(rows.float().square().mean().sqrt())
