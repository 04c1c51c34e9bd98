"""``erase-class``: take a class out of a class-conditional DDPM, and prove it, in one run folder."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from semu_diffusion.domains.config import PRESETS
from semu_diffusion.options import build_config
from semu_diffusion.pipelines.cli.errors import run_guarded
from semu_diffusion.pipelines.cli.flags import Parser, add_config_flags, epilog
from semu_diffusion.pipelines.runs.class_settings import EraseClassConfig

if TYPE_CHECKING:
    from semu_diffusion.erase.task import Task
    from semu_diffusion.erasure import Step
    from semu_diffusion.models.ddpm import ClassConditional
    from semu_diffusion.pipelines.cli.progress import Bars
    from semu_diffusion.pipelines.runs.folder import RunFolder
    from semu_diffusion.pipelines.runs.scoring import Scorer

__all__ = ["main", "parse", "run"]

EXAMPLES = (
    "erase-class --forget cat",
    "erase-class --forget cat --forget dog --images-per-class 50 --sampling-steps 25 --output runs/no-pets",
    "erase-class --model my-ddpm/ --class-names red,green,blue --forget red --classifier none",
    "erase-class --config runs/cat/run.json --output runs/cat-again",
)


def parser() -> Parser:
    made = Parser(prog="erase-class", description=__doc__.replace("``", ""), epilog=epilog(EXAMPLES))
    made.add_argument("--config", metavar="RUN_JSON", help="settings of an earlier run; flags given here override them")
    add_config_flags(made, EraseClassConfig)
    return made


def parse(argv: Sequence[str] | None = None) -> EraseClassConfig:
    """The config that a command line means. Raises InputError, or SystemExit with code 2, for a wrong one."""
    flags = vars(parser().parse_args(argv))
    return build_config(EraseClassConfig, flags, PRESETS, flags.pop("config"))


def main(argv: Sequence[str] | None = None) -> int:
    return run_guarded("erase-class", lambda: run(parse(argv)))


def run(config: EraseClassConfig) -> int:
    """Do the whole job; 0, or 1 if the erasure destroyed the model (the run folder then says so)."""
    from semu_diffusion.domains.classes import plan
    from semu_diffusion.domains.classes import task as class_task
    from semu_diffusion.erasure import Diverged
    from semu_diffusion.pipelines.cli.progress import Bars
    from semu_diffusion.pipelines.runs import scoring
    from semu_diffusion.pipelines.runs.folder import RunFolder, environment
    from semu_diffusion.pipelines.runs.inputs import forget_images, retain_images
    from semu_diffusion.pipelines.runs.proof import table

    loaded = scoring.load_model(config)
    planned = plan(loaded, config, config.forget_images is not None)
    model = planned.model
    images = forget_images(config.forget_images, model)
    task = class_task(planned, images, retain_images(config.retain, model, planned.erased))
    names = [model.names[index] for index in task.forget]
    inputs = (
        config.model, config.classifier, config.forget_images, config.retain, config.fid_reference, config.class_mapping,
        config.inception_weights,
    )  # fmt: skip
    folder = RunFolder(config.output, "-".join(names)[:80].replace(os.sep, "_"), config.overwrite, inputs)
    scorer = scoring.Scorer(model, config, task.forget)

    folder.create()
    record: dict[str, Any] = {
        "status": "running",
        "config": {f.name: getattr(config, f.name) for f in dataclasses.fields(config)},
        "base_model": {"source": model.source, "revision": model.revision},
        **environment(model.device),
    }
    bars = Bars(sys.stderr)
    try:
        with folder.recorded(record):
            metrics, reason = _erase_and_prove(task, config, scorer, folder, bars, record)
    except (Diverged, FloatingPointError) as error:
        bars.close()
        print(f"erase-class: {error}. {folder.kept()}", file=sys.stderr)
        return 1
    finally:
        bars.close()
    if reason is not None:
        print(
            f"erase-class: the erasure destroyed the model: {reason}. Look at {folder / 'before_after.png'}; "
            "lower --lr or --steps.",
            file=sys.stderr,
        )
    if config.json:
        print((folder / "metrics.json").read_text(encoding="utf-8"), end="")
    else:
        print(table(metrics, names, folder))
    return 0 if reason is None else 1


def _erase_and_prove(
    task: Task[ClassConditional],
    config: EraseClassConfig,
    scorer: Scorer,
    folder: RunFolder,
    bars: Bars,
    record: dict[str, Any],
) -> tuple[dict[str, Any], str | None]:
    from semu_diffusion.erase.run import run_erasure, run_to_end
    from semu_diffusion.erase.samples import training_images
    from semu_diffusion.lora import save_peft_folder
    from semu_diffusion.pipelines.runs.folder import write_json
    from semu_diffusion.pipelines.runs.proof import prove

    model, forget = task.model, task.forget

    def watch(step: Step) -> None:
        bars.show("training R", step.index, config.steps, f"loss {step.loss:.2e}")
        folder.log("metrics.jsonl", dataclasses.asdict(step))

    outcome = run_to_end(run_erasure(task, config, bars.show), watch)
    patch = outcome.patch
    patch_file = patch.save(folder / "patch.safetensors")
    if config.matricisation == "full":
        save_peft_folder(patch, folder / "lora", model.source)
    record |= {
        "status": "unchecked",
        "anchors": {model.names[k]: model.names[v] for k, v in outcome.anchors.items()},
        "protection": {
            "gradient_left": outcome.gradient_left,
            "felt_by_kept_inputs": outcome.felt,
            "least_energy_held": outcome.held,
            "layers": outcome.by_layer,
        },
    }
    write_json(folder / "run.json", record)

    images = training_images(model, config, forget, task.forget_set, bars.show) if config.revival else None
    size = patch_file.stat().st_size
    metrics, reason = prove(model, patch, size, scorer, folder, bars, images, outcome.seconds)
    if reason is not None:
        patch_file.replace(folder / "patch.collapsed.safetensors")
        if (folder / "lora").is_dir():
            (folder / "lora").replace(folder / "lora.collapsed")
    status = "complete" if reason is None else f"collapsed: {reason}"
    write_json(folder / "run.json", {**record, "status": status, "cost": metrics["cost"], "patch": metrics["patch"]})
    return metrics, reason


if __name__ == "__main__":
    sys.exit(main())
