"""Every key of metrics.json, as frozen dataclasses: whoever writes, reads or reports a number does it through these.

`Evaluation.to_json` is what stands in the file; `Evaluation.from_json` also reads the two layouts of schema version 1.
Light: no torch, so that a report or ``semu info`` answers at once.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from semu_diffusion.errors import InputError
from semu_diffusion.eval.results_probes import Revival
from semu_diffusion.eval.results_v1 import upgraded

__all__ = [
    "SCHEMA_VERSION",
    "ClipScore",
    "Cost",
    "Distance",
    "Evaluation",
    "LoraCheck",
    "Network",
    "PatchSize",
    "Protection",
    "Protocol",
    "Revival",
    "Scores",
    "SideEffects",
]

SCHEMA_VERSION = 2
Numbers = dict[str, float]


@dataclass(frozen=True)
class Network:
    """A judge or feature extractor as a reader finds it again: ``sha256`` is of its weights."""

    name: str
    sha256: str
    dim: int | None = None


@dataclass(frozen=True)
class Protocol:
    """Everything a reader needs to make the same numbers again.

    ``conditions``: what each group of questions was sampled with (class names or prompts). ``judges`` by the kind they
    judge, ``metrics`` the networks of those that were asked for, ``features`` that of FID and KID. ``unconditional_samples``
    are those without a condition, at guidance scale 1.
    """

    seed: int
    sampler: str
    steps: int
    guidance_scale: float
    images_per_condition: int
    unconditional_samples: int
    conditions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    judges: dict[str, Network] = field(default_factory=dict)
    metrics: dict[str, Network] = field(default_factory=dict)
    features: Network | None = None


@dataclass(frozen=True)
class ClipScore:
    """Means over ``pairs`` images with their texts; ``model`` says by which CLIP."""

    score: float
    clipscore: float
    cosine: float | None
    pairs: int | None
    model: str


@dataclass(frozen=True)
class Scores:
    """What the judges see, before or after; None where nothing was asked or no judge could say.

    Accuracies are means over conditions of the share of samples that are judged right; ``unlearning_accuracy`` is
    1 - ``forget_accuracy``, ``retain_accuracy`` the mean over all kept conditions. ``unconditional_share``: of the samples
    without a condition, those judged as what is erased. ``judged_as``: of each erased class or concept, the share of its
    samples by what the judge calls them. ``samples``: judged images of each group; ``intervals``: 95 % of each group's
    accuracy, clustered by prompt. ``probes``: by probe and by what is erased; ``revival`` is the mean over the erased of the
    shares of the strongest probe that learns.
    """

    forget_accuracy: float | None = None
    unlearning_accuracy: float | None = None
    paraphrase_accuracy: float | None = None
    in_domain_accuracy: float | None = None
    cross_domain_accuracy: float | None = None
    kept_held_out_accuracy: float | None = None
    binomial_accuracy: float | None = None
    implicit_accuracy: float | None = None
    language_accuracy: float | None = None
    look_alike_accuracy: float | None = None
    retain_accuracy: float | None = None
    unconditional_share: float | None = None
    revival: float | None = None
    clip_score: dict[str, ClipScore] | None = None
    per_condition: Numbers = field(default_factory=dict)
    judged_as: dict[str, Numbers] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    probes: dict[str, dict[str, Revival]] = field(default_factory=dict)

    def accuracy(self, group: str) -> float | None:
        """That of a group of questions, as `semu_diffusion.domains.questions` names them."""
        found: float | None = getattr(self, f"{group}_accuracy")
        return found

    @property
    def revival_samples(self) -> int:
        """Samples that one learned probe made of everything that was erased."""
        return max((sum(one.samples for one in each.values()) for each in self._learned), default=0)

    @property
    def _learned(self) -> list[dict[str, Revival]]:
        return [each for each in self.probes.values() if all(one.learned for one in each.values())]

    def with_probes(self, probes: Mapping[str, Mapping[str, Revival]]) -> Scores:
        """The same with what the probes brought back; a probe that was not tried on anything is left out."""
        found = dataclasses.replace(self, probes={name: dict(by_erased) for name, by_erased in probes.items() if by_erased})
        means = [sum(one.share for one in each.values()) / len(each) for each in found._learned]
        return dataclasses.replace(found, revival=max(means, default=None))


@dataclass(frozen=True)
class SideEffects:
    """Images of the same seeds before and after, pair by pair: means over conditions of each paired metric, and those."""

    paired: Numbers = field(default_factory=dict)
    per_condition: dict[str, Numbers] = field(default_factory=dict)

    @property
    def paired_mse(self) -> float | None:
        return self.paired.get("mse")

    @property
    def paired_ssim(self) -> float | None:
        return self.paired.get("ssim")

    @property
    def paired_lpips(self) -> float | None:
        return self.paired.get("lpips")


@dataclass(frozen=True)
class Distance:
    """FID or KID of the kept conditions' samples from a reference, before and after the erasure.

    ``paired``: the reference are the original's own samples of the same seeds. The number is then a drift (0 before, by
    construction), not comparable with one against images that the model has never seen.
    """

    before: float
    after: float
    images: int
    reference_images: int
    reference: str
    paired: bool
    extractor: Network


@dataclass(frozen=True)
class PatchSize:
    """``trained_parameters`` of ``model_parameters`` in ``layers`` layers; ``bytes`` of the file."""

    layers: int
    trained_parameters: int
    model_parameters: int
    bytes: int
    fraction: float


@dataclass(frozen=True)
class LoraCheck:
    """The LoRA loaded as users do, against the patch: largest difference of predictions relative to the largest one, the share
    of the patch's effect that it has, whether that is ``same`` within rounding, whether unloading restores every weight."""

    relative_difference: float
    share_of_effect: float
    same: bool
    unloaded_equal: bool


@dataclass(frozen=True)
class Protection:
    """What the protection took from the update and what kept inputs still get of it; None without protection.

    ``gradient_energy_kept``: share of the forget gradient's energy that is left to train in. ``response_on_kept``: the update's
    output on kept inputs (rms), relative to the layers' own. ``energy_covered``: share of the kept inputs' energy inside the
    protected directions, in the layer where it is least.
    """

    gradient_energy_kept: float | None = None
    response_on_kept: float | None = None
    energy_covered: float | None = None


@dataclass(frozen=True)
class Cost:
    """By stage: wall-clock ``seconds`` (None: it was not part of this run) and image ``passes`` of the denoiser.

    One image forward is one pass, its backward two more: the measure of an erasure that no machine blurs.
    """

    seconds: dict[str, float | None] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    passes: dict[str, int] = field(default_factory=dict)

    @property
    def erasure(self) -> float | None:
        """Seconds of the erasure alone, None where it was not part of this run."""
        spent = [seconds for stage, seconds in self.seconds.items() if stage != "evaluate"]
        return None if not spent or None in spent else sum(s for s in spent if s is not None)


@dataclass(frozen=True)
class Evaluation:
    """A patch, measured: the content of metrics.json.

    ``side_effects`` are of what is kept, asked for in the sentences that the erasure knew; ``held_out_effect``,
    ``forget_effect`` and ``unprompted_effect`` the same pairs of kept prompts that it did not know, of what was erased, of
    samples without a condition. ``distances`` by metric (``fid``, ``kid``). ``collapsed``: why the model is destroyed, None
    if not.
    """

    kind: Literal["class", "concept"]
    erased: tuple[str, ...]
    protocol: Protocol
    before: Scores
    after: Scores
    side_effects: SideEffects | None = None
    held_out_effect: SideEffects | None = None
    forget_effect: SideEffects | None = None
    unprompted_effect: SideEffects | None = None
    distances: dict[str, Distance] = field(default_factory=dict)
    patch: PatchSize | None = None
    lora: LoraCheck | None = None
    protection: Protection | None = None
    cost: Cost = field(default_factory=Cost)
    collapsed: str | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def fid(self) -> Distance | None:
        return self.distances.get("fid")

    @property
    def kid(self) -> Distance | None:
        return self.distances.get("kid")

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": self.schema_version, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, content: Any) -> Evaluation:
        """Of the content of a metrics.json of this version or of version 1; InputError for anything else."""
        try:
            version = content.get("schema_version", 1)
            if version not in (1, SCHEMA_VERSION):
                raise InputError(f"metrics.json has schema version {version}; this program reads {SCHEMA_VERSION} and before")
            found = _read(cls, upgraded(content) if version == 1 else content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"this is not the content of a metrics.json ({error!r})") from error
        return dataclasses.replace(found, schema_version=SCHEMA_VERSION)


def _read(kind: Any, content: Any) -> Any:
    """``content`` of JSON as the annotation ``kind`` has it: dataclasses out of objects, tuples out of lists.

    Raises TypeError for a value of another type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if content is None else _read(next(one for one in arguments if one is not type(None)), content)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _read(hints[name], value) for name, value in content.items() if name in hints})  # type: ignore[operator]
    if origin is dict:
        return {key: _read(arguments[1], value) for key, value in content.items()}
    if origin is tuple and isinstance(content, list | tuple) and (arguments[-1] is ... or len(content) == len(arguments)):
        return tuple(_read(arguments[0], value) for value in content)
    if content not in arguments if origin is Literal else type(content) not in ((int, float) if kind is float else (kind,)):
        raise TypeError(f"{str(content)[:30]!r} is no {getattr(kind, '__name__', kind)}")
    return content
