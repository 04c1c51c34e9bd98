"""``semu benchmark-concepts``: erase every object and style in turn, the same seeds for all, beside the trivial remap.

Every row is written to concepts.jsonl as soon as it is measured, and a second call goes on where the first one stopped.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from semu_diffusion.domains.config import ConceptErasureConfig
from semu_diffusion.erase.config import EMBEDDED
from semu_diffusion.errors import InputError
from semu_diffusion.options import build_config, option
from semu_diffusion.pipelines.benchmark.concept_methods import METHODS
from semu_diffusion.pipelines.benchmark.rows import Rows, report_diverged
from semu_diffusion.pipelines.cli.errors import run_guarded
from semu_diffusion.pipelines.cli.flags import Parser, add_config_flags, epilog
from semu_diffusion.pipelines.cli.progress import Bars
from semu_diffusion.pipelines.runs.concept_settings import EraseConceptRun

if TYPE_CHECKING:
    import torch

    from semu_diffusion.domains.vocabulary import Vocabulary

__all__ = ["ConceptBenchmark", "main", "parse", "run"]

EXAMPLES = (
    "semu benchmark-concepts --output docs/results.md",
    "semu benchmark-concepts --concepts cat,sepia --methods default,remap --work runs/small --output runs/small.md",
)


@dataclass(frozen=True)
class ConceptBenchmark:
    """What is compared, and by how many samples. The model needs a vocabulary."""

    output: str = option("docs/results.md", "Markdown file for the tables", metavar="FILE")
    work: str = option("docs/benchmark", "folder for the measured rows; an earlier benchmark is continued", metavar="DIR")
    model: str = option(EMBEDDED, "folder of a text-to-image model with a vocabulary.json", metavar="DIR")
    methods: tuple[str, ...] = option(tuple(METHODS), "methods to compare", metavar="A,B,…", comma=True)
    concepts: tuple[str, ...] = option(
        (),
        "what to erase, one at a time; a+b: both at once (default: every object and style)",
        metavar="A,B,…",
        comma=True,
    )
    others: tuple[str, ...] = option(
        (), "concepts for all methods but the default one (default: the same)", metavar="A,B,…", comma=True
    )
    images_per_prompt: int = option(10, "images of every prompt, before and after", metavar="N")
    sampling_steps: int = option(20, "DDIM steps", metavar="N")
    sampling_precision: Literal["fp32", "bf16", "auto"] = option("auto", "arithmetic of the samples, as in erase-concept")
    revival: bool = option(True, "measure what one learned pseudo-word brings back")
    seed: int = option(0, "seed of everything random", metavar="SEED")
    device: str | None = option(None, "torch device (default: cuda if there is one, else cpu)", metavar="DEVICE")

    def __post_init__(self) -> None:
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown:
            raise InputError(f"--methods {','.join(unknown)}: unknown; there are {', '.join(METHODS)}")
        if min(self.images_per_prompt, self.sampling_steps) < 1:
            raise InputError("--images-per-prompt and --sampling-steps must be at least 1")


def parse(argv: Sequence[str] | None = None) -> ConceptBenchmark:
    parser = Parser(prog="semu benchmark-concepts", description=(__doc__ or "").replace("``", ""), epilog=epilog(EXAMPLES))
    add_config_flags(parser, ConceptBenchmark)
    return build_config(ConceptBenchmark, vars(parser.parse_args(argv)))


def main(argv: Sequence[str] | None = None) -> int:
    return run_guarded("semu benchmark-concepts", lambda: run(parse(argv)))


def run(config: ConceptBenchmark) -> int:
    from semu_diffusion import assets
    from semu_diffusion.domains.vocabulary import read_vocabulary
    from semu_diffusion.erasure import Diverged
    from semu_diffusion.eval.judges.judge import load_judge
    from semu_diffusion.eval.judges.networks import state_digest
    from semu_diffusion.models.checkpoints import load_text_pipeline
    from semu_diffusion.models.precision import sampler_name
    from semu_diffusion.pipelines.report import results_page
    from semu_diffusion.pipelines.runs.concept_scoring import REVIVAL_IMAGES, REVIVAL_SAMPLES, REVIVAL_STEPS
    from semu_diffusion.pipelines.runs.quiet import quiet_libraries
    from semu_diffusion.pipelines.runs.scoring import checked_device

    quiet_libraries()
    source = str(assets.folder("tiny-sd")) if config.model == EMBEDDED else config.model
    vocabulary = read_vocabulary(source)
    if vocabulary is None:
        raise InputError(f"{config.model} has no vocabulary.json: the benchmark takes its questions from there")
    if not vocabulary.judges:
        raise InputError(f"the vocabulary of {config.model} names no judge: the benchmark measures by them")
    everything = [*vocabulary.objects, *(style for style in vocabulary.styles if style != vocabulary.plain_style)]
    for name in {part for words in (*config.concepts, *config.others) for part in words.split("+")}:
        if vocabulary.subject(name) is None:
            raise InputError(f"the model's vocabulary knows no {name!r}; there are {', '.join(everything)}")
    chosen = list(config.concepts) or everything
    others = list(config.others) or chosen
    jobs = [(method, name) for method in config.methods for name in chosen if name in others or method == "default"]
    pipeline = load_text_pipeline(source, checked_device(config.device))
    work = Path(config.work)
    protocol = {name: getattr(config, name) for name in ("model", "images_per_prompt", "sampling_steps", "revival", "seed")}
    protocol["sampler"] = sampler_name(config.sampling_precision, pipeline.unet.device)
    protocol["revived"] = {"images": REVIVAL_IMAGES, "steps": REVIVAL_STEPS, "batch": 16, "samples": REVIVAL_SAMPLES}
    # Rows of another model, of other judges or of other defaults are not continued.
    parts = {part: getattr(pipeline, part).state_dict() for part in ("unet", "text_encoder", "vae")}
    protocol["weights"] = {part: state_digest(state)[:16] for part, state in parts.items()}
    protocol["judges"] = {
        kind: load_judge(name, vocabulary.names(kind)).sha256[:16] for kind, name in vocabulary.judges.items()
    }
    protocol["defaults"] = {f.name: f.default for f in dataclasses.fields(ConceptErasureConfig) if f.name != "concept"}
    rows = Rows(work / results_page.CONCEPTS, {"protocol": protocol | {"guidance_scale": vocabulary.guidance_scale}})
    bars = Bars(sys.stderr)
    cache: dict[str, torch.Tensor] = {}
    diverged: list[str] = []
    for number, (method, name) in enumerate(jobs, 1):
        if rows.has(method, name):
            continue
        bars.note(f"[{number}/{len(jobs)}] {method}: {name}")
        try:
            rows.add(_measure(method, name, config, pipeline, vocabulary, cache, rows.revived(name), bars))
        except KeyboardInterrupt:
            bars.close()
            kept = f"{rows.path} keeps {len(rows.found) - 1} rows; the same command goes on from there."
            raise KeyboardInterrupt(kept) from None
        except (Diverged, FloatingPointError) as error:
            diverged.append(f"{method} of {name}: {error}")
            bars.note(f"no row for {diverged[-1]}")
        results_page.write(Path(config.output), work)
    bars.close()
    results_page.write(Path(config.output), work)
    print(f"{config.output} holds {len(rows.found) - 1} rows of concepts")
    return report_diverged("semu benchmark-concepts", diverged)


def _measure(
    method: str,
    name: str,
    config: ConceptBenchmark,
    pipeline: Any,
    vocabulary: Vocabulary,
    cache: dict[str, torch.Tensor],
    revived: float | None,
    bars: Bars,
) -> dict[str, Any]:
    """One row. A prompt has the same seeds in every row, so the original's images are made once (``cache``)."""
    from semu_diffusion.domains.concepts import prepare
    from semu_diffusion.domains.plan import plan
    from semu_diffusion.pipelines.benchmark.concept_methods import erased_by
    from semu_diffusion.pipelines.runs.concept_proof import paired
    from semu_diffusion.pipelines.runs.concept_scoring import ConceptScorer

    settings = EraseConceptRun(
        concept=tuple(name.split("+")),
        model=config.model,
        guidance_scale=vocabulary.guidance_scale,
        images_per_prompt=config.images_per_prompt,
        sampling_steps=config.sampling_steps,
        sampling_precision=config.sampling_precision,
        revival=config.revival,
        seed=config.seed,
    )
    settings = dataclasses.replace(settings, **METHODS[method][1])
    scorer = ConceptScorer(settings, *plan(settings, vocabulary), vocabulary, pipeline.unet.device)
    start = time.perf_counter()
    task = prepare(pipeline, settings, config.model, vocabulary, scorer.prompts, bars.show)
    model = task.task.model
    prepared = time.perf_counter() - start
    before = scorer.sample(model, bars.show, "sampling before", cache)
    cache |= before
    shown = scorer.concept_latents(model)
    score_before = scorer.score(before)
    if revived is None and config.revival:
        revived = scorer.revive(model, shown)
    score_before["revival"] = revived
    with erased_by(method, task, bars.show) as made:
        after = scorer.sample(made.model, bars.show, "sampling after")
        score = scorer.score(after)
        score["revival"] = (revived if method == "remap" else scorer.revive(made.model, shown)) if config.revival else None
    total = sum(p.numel() for p in model.denoiser.parameters())
    return {
        "method": method,
        "class": name,
        "kind": "+".join(sorted({one.subject.kind for one in task.plans if one.subject is not None})),
        "anchors": dict(task.anchors),
        "judges": scorer.protocol()["classifiers"],
        "counts": {group: len(asked) for group, asked in scorer.questions.items()},
        "before": score_before,
        "after": score,
        "side_effects": paired(before, after, scorer.retained),
        "trained_fraction": made.trained_parameters / total,
        "bytes": made.nbytes,
        "erase_seconds": prepared + made.seconds if made.trained_parameters else made.seconds,
    }


if __name__ == "__main__":
    sys.exit(main())
