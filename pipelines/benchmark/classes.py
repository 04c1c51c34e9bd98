"""``semu benchmark``: erase classes in turn with each method, the same seeds for all, one table with its protocol.

Every row is written to rows.jsonl as soon as it is measured, and a second call goes on where the first one stopped.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from semu_diffusion.erase.config import ErasureConfig
from semu_diffusion.errors import InputError
from semu_diffusion.options import option
from semu_diffusion.pipelines.benchmark.rows import Rows, report_diverged
from semu_diffusion.pipelines.cli.progress import Progress
from semu_diffusion.pipelines.runs.config import ClassModelConfig, EraseClassConfig

if TYPE_CHECKING:
    from semu_diffusion.pipelines.runs.scoring import Samples, Scorer

__all__ = ["BenchmarkConfig", "run"]

SHOWN = ("steps", "lr", "layers", "protect", "protected_energy", "explained_variance", "max_rank")  # settings of a row
ALL_METHODS = (
    "default", "rank-8", "null-space", "retain", "unprotected", "official", "copy", "fine-tune", "fine-tune-retain",
)  # fmt: skip


@dataclass(frozen=True)
class BenchmarkConfig(ClassModelConfig):
    """What is compared, and by how many samples."""

    output: str = option("docs/results.md", "Markdown file for the table; rows.jsonl goes to --work", metavar="FILE")
    work: str = option("docs/benchmark", "folder for the measured rows; an earlier benchmark there is continued", metavar="DIR")
    methods: tuple[str, ...] = option(ALL_METHODS, "methods to compare", metavar="A,B,…", comma=True)
    classes: tuple[str, ...] = option((), "classes to erase, one at a time (default: all)", metavar="A,B,…", comma=True)
    others: tuple[str, ...] = option(
        (), "classes for all methods but the default one (default: the same)", metavar="A,B,…", comma=True
    )
    images_per_class: int = option(50, "images of every class, before and after", metavar="N")
    sampling_steps: int = option(25, "DDIM steps", metavar="N")
    guidance_scale: float = option(3.0, "classifier-free guidance w", metavar="W")
    official_steps: int = option(1000, "training steps of the method official", metavar="N")
    classifier: str = option("embedded", "judge, as in erase-class", metavar="NAME_OR_FOLDER")
    sampling_precision: Literal["fp32", "bf16", "auto"] = option("auto", "arithmetic of the samples, as in erase-class")
    revival: bool = option(True, "measure what one learned class vector brings back")
    seed: int = option(0, "seed of everything random", metavar="SEED")

    def __post_init__(self) -> None:
        unknown = [name for name in self.methods if name not in ALL_METHODS]
        if unknown:
            raise InputError(f"--methods {','.join(unknown)}: unknown; there are {', '.join(ALL_METHODS)}")
        if min(self.images_per_class, self.sampling_steps, self.official_steps) < 1:
            raise InputError("--images-per-class, --sampling-steps and --official-steps must be at least 1")


def run(config: BenchmarkConfig) -> int:
    from semu_diffusion.erasure import Diverged
    from semu_diffusion.eval.judges.networks import state_digest
    from semu_diffusion.pipelines.report import results_page
    from semu_diffusion.pipelines.runs.scoring import Scorer, load_model

    model = load_model(config)
    if not model.conditional:
        raise InputError("the benchmark needs a class-conditional model")
    everyone = [model.class_index(name) for name in config.classes] or list(range(len(model.names)))
    others = [model.class_index(name) for name in config.others] or everyone
    base = EraseClassConfig(
        forget=(model.names[everyone[0]],),
        model=config.model,
        images_per_class=config.images_per_class,
        sampling_steps=config.sampling_steps,
        guidance_scale=config.guidance_scale,
        classifier=config.classifier,
        sampling_precision=config.sampling_precision,
        revival=config.revival,
        seed=config.seed,
    )
    scorer = Scorer(model, base, [everyone[0]])
    if scorer.judge is None:
        raise InputError("the benchmark needs a judge: --classifier none makes no table")
    work = Path(config.work)
    work.mkdir(parents=True, exist_ok=True)
    # rows of another model or of other defaults are not continued
    protocol = scorer.protocol() | {"model": config.model, "weights": state_digest(model.denoiser.state_dict())[:16]}
    protocol["defaults"] = {field.name: getattr(base, field.name) for field in dataclasses.fields(ErasureConfig)}
    rows = Rows(work / results_page.CLASSES, {"protocol": protocol, "official_steps": config.official_steps})
    progress = Progress()
    before: Samples | None = None
    diverged: list[str] = []
    jobs = [(method, index) for method in config.methods for index in everyone if index in others]
    jobs += [("default", index) for index in everyone if index not in others and "default" in config.methods]
    for number, (method, index) in enumerate(jobs, 1):
        if rows.has(method, model.names[index]):
            continue
        if before is None:
            before = scorer.sample(progress.show, "original")
        progress.note(f"[{number}/{len(jobs)}] {method}: {model.names[index]}")
        revived = rows.revived(model.names[index])
        try:
            rows.add(_measure(method, index, base, config, before, revived, others, progress))
        except KeyboardInterrupt:
            progress.close()
            kept = f"{rows.path} keeps {len(rows.found) - 1} rows; the same command goes on from there."
            raise KeyboardInterrupt(kept) from None
        except (Diverged, FloatingPointError) as error:
            diverged.append(f"{method} of {model.names[index]}: {error}")
            progress.note(f"no row for {diverged[-1]}")
        results_page.write(Path(config.output), work)
    results_page.write(Path(config.output), work)
    print(f"{config.output} holds {len(rows.found) - 1} rows")
    return report_diverged("semu benchmark", diverged)


def _measure(
    method: str,
    index: int,
    base: EraseClassConfig,
    config: BenchmarkConfig,
    before: Samples,
    revived: float | None,
    compared: Sequence[int],
    progress: Progress,
) -> dict[str, Any]:
    """One row; ``revived`` is the original's revival of the class, if an earlier row has it already.

    It is measured for the classes ``compared`` by every method only: the copy's revival is the original's.
    """
    from semu_diffusion.erase.samples import training_images
    from semu_diffusion.pipelines.benchmark.methods import METHODS, make_edit
    from semu_diffusion.pipelines.runs.scoring import Scorer, load_model

    model = load_model(config)
    settings = dict(METHODS[method][1])
    if method == "official":
        settings["steps"] = config.official_steps
    name = model.names[index]
    erase = dataclasses.replace(base, forget=(name,), **settings)
    scorer: Scorer = Scorer(model, erase, [index])
    start = time.perf_counter()
    made = make_edit(method, model, erase, progress.show)
    elapsed = time.perf_counter() - start
    made.edit.apply(model.denoiser)
    after = scorer.sample(progress.show, "sampling after")
    score, score_before = scorer.score(after), scorer.score(before)
    fid, _ = scorer.fid(before, after)
    made.edit.remove(model.denoiser)
    if config.revival:
        images = training_images(model, base, [index])  # by the original model, so it does not depend on the method
        if revived is None and index in compared:
            revived = scorer.revive(images.images, images.labels)
        score_before["revival"] = revived
        made.edit.apply(model.denoiser)
        score["revival"] = scorer.revive(images.images, images.labels)
        made.edit.remove(model.denoiser)
    total = sum(p.numel() for p in model.denoiser.parameters())
    return {
        "method": method,
        "class": name,
        "before": score_before,
        "after": score,
        "side_effects": scorer.side_effects(before, after),
        "fid": fid,
        "trained_fraction": made.edit.trained_parameters / total,
        "bytes": made.edit.nbytes,
        "erase_seconds": elapsed,
        "stages": dict(made.seconds),
        "settings": {name: getattr(erase, name) for name in SHOWN},
    }
