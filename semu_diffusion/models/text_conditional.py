"""What all text-to-image families have in common: the prompts of a fixed table are to them what classes are to a DDPM.

The table is made once: what it holds is all that the erasure needs of the text encoders, so that these (and the autoencoder,
while nothing is decoded) may leave the device.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from semu_diffusion.models.adapters.latents import LatentModel
from semu_diffusion.models.guards import check_parts, with_plain_network
from semu_diffusion.models.prompt_table import PromptTable, Text, encode_prompts, tokenizer_of

__all__ = ["TextConditional"]


@dataclass(frozen=True)
class TextConditional(LatentModel):
    """A text-to-image pipeline and the prompts that are spoken of; ``names`` are the prompts of its table."""

    pipeline: Any
    table: PromptTable
    source: str = ""
    revision: str | None = None

    part: ClassVar[str] = "transformer"  # the pipeline's name of the network that is edited
    network: ClassVar[type[nn.Module]]  # its class, by which the family is known
    named: ClassVar[str]  # the family, where one adapter serves one
    most_tokens: ClassVar[int | None] = None  # of a prompt, by the pipeline's default; None: as many as its encoders take
    cross_attention: ClassVar[bool] = False  # the text is read by layers of its own, as ``attn2``, and is never changed

    @classmethod
    def family_of(cls, pipeline: Any) -> str:
        """The name of the pipeline's family in `FAMILIES`."""
        return cls.named

    @classmethod
    @abstractmethod
    def check(cls, pipeline: Any, source: str) -> None:
        """InputError for a pipeline of this family that cannot be erased from as it is."""

    @classmethod
    @abstractmethod
    def encode_text(cls, pipeline: Any, prompts: list[str]) -> Text:
        """What the network is told of the prompts, by the pipeline's own text encoders; gradients flow to these."""

    @abstractmethod
    def denoise(self, x_t: torch.Tensor, t: torch.Tensor, text: Text) -> torch.Tensor:
        """The network's prediction (N, C, h, w)."""

    @classmethod
    def by_pipeline(cls, pipeline: Any, prompts: list[str], ending: str = "", **more: Any) -> Any:
        """What the pipeline itself makes of the prompts alone, in as many tokens as the encoder of this ``ending`` is given."""
        most = cls.max_tokens(pipeline, ending)
        how = {"device": getattr(pipeline, cls.part).device, "do_classifier_free_guidance": False, "max_sequence_length": most}
        return pipeline.encode_prompt(prompts, **how, **more)

    @classmethod
    def max_tokens(cls, pipeline: Any, ending: str) -> int | None:
        own = cls.most_tokens
        return None if own is None else int(min(own, tokenizer_of(pipeline, ending).model_max_length))

    @classmethod
    def spoken(cls, pipeline: Any, prompts: list[str]) -> list[str]:
        return prompts

    @classmethod
    def time_ids(cls, pipeline: Any) -> torch.Tensor | None:
        return None

    @classmethod
    def adapt(cls, pipeline: Any, prompts: Sequence[str], source: str = "") -> TextConditional:
        """The adapter of a pipeline in memory, with a table of the prompts.

        Raises InputError for a pipeline that cannot be erased from, or a prompt that is too long.
        """
        name = source or "the pipeline"
        cls.check(pipeline, name)
        pipeline = with_plain_network(pipeline, name, cls.part)
        model = cls(pipeline, encode_prompts(cls, pipeline, prompts), source)
        check_parts(model, name)
        return model

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.table.prompts[:-1]

    @property
    def null(self) -> int:  # type: ignore[override]
        """The row of the empty prompt."""
        return len(self.table.prompts) - 1

    @property
    def family(self) -> str:
        return self.family_of(self.pipeline)

    @property
    def denoiser(self) -> Any:
        return getattr(self.pipeline, self.part)

    @property
    def conditional(self) -> bool:
        return True

    def with_prompts(self, prompts: Sequence[str]) -> TextConditional:
        """The model with those of the prompts that its table lacks; InputError for one that is too long."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt.strip() and prompt not in self.table.prompts]
        if not missing:
            return self
        more = encode_prompts(type(self), self.pipeline, missing)
        return self.with_rows(more.prompts[:-1], more.apply(lambda one: one[:-1]))

    def encoded_again(self) -> TextConditional:
        """The model with its prompts as the text encoders tell them now, after an edit."""
        return dataclasses.replace(self, table=encode_prompts(type(self), self.pipeline, self.table.prompts))

    def with_rows(self, names: Sequence[str], text: Text) -> TextConditional:
        """The model with more rows after the named prompts, of a ``text`` that need be of no prompt."""
        return dataclasses.replace(self, table=self.table.joined(names, text))

    def predict(self, x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """The network's prediction (N, C, h, w) for rows (N,) int64, or for vectors as `condition_vectors` gives them."""
        return self.denoise(x_t.to(self.dtype), t, self.told(labels, len(x_t)))

    def told(self, labels: torch.Tensor | None, count: int) -> Text:
        """What the network is told, in its dtype, of rows or vectors; of the empty prompt for None."""
        if labels is None:
            labels = torch.full((count,), self.null, device=self.device)
        return self.table.rows(labels).apply(lambda one: one.to(self.dtype))

    def condition_vectors(self, labels: torch.Tensor) -> torch.Tensor:
        return self.table.rows(labels).vectors()

    @property
    def takes_vectors(self) -> bool:
        """Only tokens are learned: not a pooled condition beside them, nor how many of them count."""
        return self.table.pooled is None and self.table.mask is None

    @property
    def name_layers(self) -> list[str]:
        """Keys and values of cross-attention; none where text and image attend to each other, and mix in the first block."""
        if not self.cross_attention:
            return []
        names = (name for name, module in self.denoiser.named_modules() if isinstance(module, nn.Linear))
        return [name for name in names if name.endswith((".attn2.to_k", ".attn2.to_v"))]

    @torch.no_grad()
    def name_inputs(self, labels: torch.Tensor) -> torch.Tensor:
        """Every token of each prompt, as cross-attention sees it; one that does not count is as the last that does."""
        text = self.table.rows(labels)
        seen = self.attended(text.embeddings.to(self.dtype))
        if text.mask is not None:
            places = torch.arange(seen.shape[1], device=seen.device)
            last = (text.mask * places).argmax(1)
            seen = torch.where(text.mask[..., None] > 0, seen, seen[torch.arange(len(seen)), last][:, None])
        return seen.flatten(0, 1)

    def attended(self, embeddings: torch.Tensor) -> torch.Tensor:
        """What cross-attention sees of the tokens (N, T, D)."""
        return embeddings
