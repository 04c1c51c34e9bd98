"""``erase-concept``: take an object, a style or any prompt out of Stable Diffusion, as a patch that other tools load."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from semu_diffusion.domains.prompts import listed
from semu_diffusion.erase.config import EMBEDDED
from semu_diffusion.options import build_config
from semu_diffusion.pipelines.cli.errors import run_guarded
from semu_diffusion.pipelines.cli.flags import Parser, add_config_flags, epilog
from semu_diffusion.pipelines.runs.concept_settings import EraseConceptRun

if TYPE_CHECKING:
    from semu_diffusion.domains.concepts import ConceptTask
    from semu_diffusion.erasure import Step
    from semu_diffusion.pipelines.cli.progress import Bars
    from semu_diffusion.pipelines.runs.concept_scoring import ConceptScorer
    from semu_diffusion.pipelines.runs.folder import RunFolder

__all__ = ["main", "parse", "run"]

EXAMPLES = (
    "erase-concept cat",
    'erase-concept "pencil sketch" --anchor sepia --output runs/no-sketch',
    'erase-concept "cassette player" --model my-stable-diffusion/ --anchor radio',
    'erase-concept "van gogh" --model model.safetensors --anchor "a painter" --forget-prompts "a field by van gogh"',
    "erase-concept cat --retain-prompts 'a photo of a dog' --layers cross-attention",
    "erase-concept --config runs/cat/run.json --output runs/cat-again",
)


def parse(argv: Sequence[str] | None = None) -> EraseConceptRun:
    """The config that a command line means. Raises InputError, or SystemExit with code 2, for a wrong one."""
    parser = Parser(prog="erase-concept", description=(__doc__ or "").replace("``", ""), epilog=epilog(EXAMPLES))
    parser.add_argument("--config", metavar="RUN_JSON", help="settings of an earlier run; flags given here override them")
    add_config_flags(parser, EraseConceptRun)
    flags = vars(parser.parse_intermixed_args(argv))  # words may stand after flags
    flags |= {name: listed(flags[name]) for name in ("retain_prompts", "forget_prompts", "paraphrases") if name in flags}
    return build_config(EraseConceptRun, flags, None, flags.pop("config"))


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    given = [word.partition("=")[2] if word.startswith("--") and "=" in word else word for word in words]
    files = [word for word in given if word.endswith(".txt")]  # `parse` takes their lines
    return run_guarded("erase-concept", lambda: run(parse(argv), files))


def run(config: EraseConceptRun, files: Sequence[str] = ()) -> int:
    """Do the whole job; 0, or 1 if the erasure destroyed the model (the run folder then says so).

    ``files`` are those that ``config`` was read from, which ``--overwrite`` leaves alone.
    """
    import torch

    from semu_diffusion import assets
    from semu_diffusion.domains.concepts import guided, prepare
    from semu_diffusion.domains.plan import plan
    from semu_diffusion.domains.vocabulary import read_vocabulary
    from semu_diffusion.erasure import Diverged
    from semu_diffusion.models.checkpoints import hub_revision, load_text_pipeline
    from semu_diffusion.models.stable_diffusion import image_shape
    from semu_diffusion.pipelines.cli.progress import Bars
    from semu_diffusion.pipelines.data.images import load_plain_images
    from semu_diffusion.pipelines.runs.concept_proof import table
    from semu_diffusion.pipelines.runs.concept_scoring import ConceptScorer
    from semu_diffusion.pipelines.runs.folder import RunFolder, environment
    from semu_diffusion.pipelines.runs.quiet import quiet_libraries
    from semu_diffusion.pipelines.runs.scoring import checked_device

    quiet_libraries()
    device = checked_device(config.device)
    name = "-".join(config.concept)[:80].replace(os.sep, "_")
    folder = RunFolder(config.output, name, config.overwrite, (config.model, config.classifier, config.forget_images, *files))
    weights = torch.float32 if config.weights == "fp32" else torch.bfloat16 if config.weights == "bf16" else torch.float16
    source = str(assets.folder("tiny-sd")) if config.model == EMBEDDED else config.model
    vocabulary = read_vocabulary(source)
    config = guided(config, vocabulary)
    pipeline = load_text_pipeline(source, device, weights, prediction=config.prediction)
    if config.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    bars = Bars(sys.stderr)
    try:
        scorer = ConceptScorer(config, *plan(config, vocabulary), vocabulary, device)
        start = time.perf_counter()
        images = None
        if config.forget_images is not None:
            images = load_plain_images(config.forget_images, image_shape(pipeline))
        prepared = prepare(pipeline, config, config.model, vocabulary, scorer.prompts, bars.show, images)
        seconds = {"prepare": time.perf_counter() - start}
        prepared.task.model.check_steps(config.sampling_steps)
        folder.create()
        record: dict[str, Any] = {
            "status": "running",
            "config": {f.name: getattr(config, f.name) for f in dataclasses.fields(config)},
            "base_model": {"source": config.model, "revision": hub_revision(source)},
            "anchors": dict(prepared.anchors),
            **environment(device),
        }
        with folder.recorded(record):
            metrics, reason = _erase_and_prove(prepared, scorer, folder, bars, record, seconds)
    except (Diverged, FloatingPointError) as error:
        bars.close()
        print(f"erase-concept: {error}. {folder.kept()}", file=sys.stderr)
        return 1
    finally:
        bars.close()
    if reason is not None:
        print(f"erase-concept: the erasure destroyed the model: {reason}. Lower --lr or --steps.", file=sys.stderr)
    if config.json:
        print((folder / "metrics.json").read_text(encoding="utf-8"), end="")
    else:
        print(table(metrics, scorer.concepts, prepared.anchors, folder))
    return 0 if reason is None else 1


def _erase_and_prove(
    prepared: ConceptTask,
    scorer: ConceptScorer,
    folder: RunFolder,
    bars: Bars,
    record: dict[str, Any],
    seconds: dict[str, float],
) -> tuple[dict[str, Any], str | None]:
    from semu_diffusion.erase.run import run_erasure, run_to_end
    from semu_diffusion.files import write_text
    from semu_diffusion.lora import save_lora
    from semu_diffusion.pipelines.report.card import patch_card
    from semu_diffusion.pipelines.runs.concept_proof import prove
    from semu_diffusion.pipelines.runs.folder import write_json
    from semu_diffusion.pipelines.runs.lora_check import check_lora

    task, config = prepared.task, scorer.config

    def watch(step: Step) -> None:
        bars.show("training R", step.index, config.steps, f"loss {step.loss:.2e}")
        folder.log("metrics.jsonl", dataclasses.asdict(step))

    outcome = run_to_end(run_erasure(task, prepared.config, bars.show), watch)
    patch, lora = outcome.patch, None
    protection = {
        "gradient_left": outcome.gradient_left, "felt_by_kept_inputs": outcome.felt, "least_energy_held": outcome.held,
    }  # fmt: skip
    size = patch.save(folder / "patch.safetensors").stat().st_size
    if config.matricisation == "full":
        save_lora(patch, folder / "lora")
        lora = check_lora(task.model, patch, folder / "lora")
    record |= {
        "status": "unchecked",
        "protection": {**protection, "layers": outcome.by_layer},
    }
    write_json(folder / "run.json", record)
    metrics, reason = prove(prepared, scorer, patch, size, folder, bars, {**seconds, **outcome.seconds}, lora, protection)
    if reason is not None:
        (folder / "patch.safetensors").replace(folder / "patch.collapsed.safetensors")
        if (folder / "lora").is_dir():
            (folder / "lora").replace(folder / "lora.collapsed")
    status = "complete" if reason is None else f"collapsed: {reason}"
    write_text(folder / "README.md", patch_card(record, metrics))
    write_json(folder / "run.json", {**record, "status": status, "cost": metrics["cost"], "patch": metrics["patch"]})
    return metrics, reason


if __name__ == "__main__":
    sys.exit(main())
