"""``semu benchmark-cost``: build the network, measure its phases, and say what the whole of it would cost."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from semu_diffusion.domains import classes, concepts
from semu_diffusion.domains.config import ClassErasureConfig, ConceptErasureConfig
from semu_diffusion.domains.vocabulary import read_vocabulary
from semu_diffusion.erase.pool import Pool, paths
from semu_diffusion.erase.run import run_erasure, run_to_end
from semu_diffusion.erase.task import Task
from semu_diffusion.layers import select_layers
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.options import byte_size
from semu_diffusion.pipelines.cli.heap import give_back_freed_memory
from semu_diffusion.pipelines.cost.config import CostConfig
from semu_diffusion.pipelines.cost.gauge import Gauge, Reading
from semu_diffusion.pipelines.cost.phases import BATCHES, CONDITIONS, Bench, Row
from semu_diffusion.pipelines.cost.report import table
from semu_diffusion.pipelines.cost.shapes import SHAPES, Shape, build, empty_network, fill
from semu_diffusion.pipelines.runs.config import ClassModelConfig, TextModelConfig
from semu_diffusion.pipelines.runs.models import DTYPES, checked_device, load_model, load_text_model

__all__ = ["measure", "run"]

PATH_STEPS = 4  # of the embedded models' samples


@dataclass(frozen=True)
class Whole:
    """How much more the whole network is than its measured part: FLOPs of a forward pass, parameters, bytes of weights."""

    flops: float = 1.0
    parameters: float = 1.0
    weights: int = 0  # bytes of those that were there
    all_weights: int = 0

    def part_of(self, memory: str | None) -> str | None:
        """What of a budget is for the measured part."""
        return None if memory is None else f"{byte_size(memory, '--memory') / self.parameters:.0f}B"

    def reading(self, one: Reading) -> Reading:
        """Seconds grow with the FLOPs; memory beyond the weights (gradients, activations) with the parameters."""
        peak = None if one.peak is None else int(self.all_weights + (one.peak - self.weights) * self.parameters)
        return Reading(one.seconds * self.flops, peak)


def run(config: CostConfig) -> int:
    found = list(measure(config))
    if config.json:
        print(json.dumps({"measured": found}, indent=1))
    else:
        print("\n\n".join(table(one) for one in found))
    return 0


def measure(config: CostConfig) -> Iterator[dict[str, Any]]:
    """One record of every network that was measured."""
    device = checked_device(config.device)
    if config.memory is not None:
        give_back_freed_memory()  # as an erasure does
    if config.shape != "tiny":
        yield _of_shape(config, device)
        return
    yield _of_classes(config, device)
    yield _of_concepts(config, device)


def _of_shape(config: CostConfig, device: torch.device) -> dict[str, Any]:
    shape, gauge = SHAPES[config.shape], Gauge(device)
    full = empty_network(shape, config.size)
    network = fill(empty_network(shape, config.size, config.blocks), device, DTYPES[config.weights], config.seed)
    model = build(shape, network, config.size, torch.Generator().manual_seed(config.seed))
    is_class = hasattr(model, "class_embeddings")
    settings = ClassErasureConfig(forget=("0",)) if is_class else ConceptErasureConfig(concept=("cat",))
    whole = Whole(weights=_bytes(network), all_weights=_bytes(network))
    if config.blocks is not None:
        flops = [_flops(shape, one, config.size) for one in (full, empty_network(shape, config.size, config.blocks))]
        count = [sum(parameter.numel() for parameter in one.parameters()) for one in (full, network)]
        whole = Whole(flops[0] / flops[1], count[0] / count[1], _bytes(network), _bytes(network) * count[0] // count[1])
    bench = Bench(model, dataclasses.replace(config, memory=whole.part_of(config.memory)), settings, gauge)
    return _record(config, config.shape, bench, full, whole)


def _of_classes(config: CostConfig, device: torch.device) -> dict[str, Any]:
    gauge = Gauge(device)
    model = load_model(ClassModelConfig(device=str(device)))
    settings = ClassErasureConfig(forget=("cat",), seed=config.seed)
    plan = classes.plan(model, settings)
    bench = Bench(model, config, settings, gauge, _own_paths(model, config, settings))
    return _record(config, "tiny, classes", bench, model.denoiser, task=lambda: classes.task(model, plan, settings))


def _of_concepts(config: CostConfig, device: torch.device) -> dict[str, Any]:
    gauge = Gauge(device)
    pipeline, source = load_text_model(TextModelConfig(device=str(device)))
    vocabulary, settings = read_vocabulary(source), ConceptErasureConfig(concept=("cat",), seed=config.seed)
    plan = concepts.plan(pipeline, settings, vocabulary, source)
    model = concepts.bind(pipeline, plan)
    settings = concepts.with_guidance_scale(settings, vocabulary, model.usual)
    bench = Bench(model, config, settings, gauge, _own_paths(model, config, settings))
    return _record(config, "tiny, concepts", bench, model.denoiser, task=lambda: concepts.task(model, plan, settings))


def _own_paths(model: DiffusionModel, config: CostConfig, settings: Any) -> Pool:
    """Noised samples on the paths by which the model samples its first conditions."""
    count = max(BATCHES * config.batch_size // PATH_STEPS, CONDITIONS)
    rows = [place % CONDITIONS for place in range(count)]
    seeds = range(config.seed, config.seed + count)
    found, _ = paths(model, rows, seeds, PATH_STEPS, settings.guidance_scale, "fp32")
    return found


def _record(
    config: CostConfig,
    name: str,
    bench: Bench,
    full: Any,
    whole: Whole | None = None,
    task: Callable[[], Task[Any]] | None = None,
) -> dict[str, Any]:
    """What was measured, and, where the network was cut, what the whole of it would take."""
    network = bench.model.denoiser
    whole = whole or Whole(weights=_bytes(network), all_weights=_bytes(network))
    layers = select_layers(full, bench.settings.layers)
    device = bench.model.device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {torch.get_num_threads()} threads"
    rows = [row for phase in config.phase if phase != "erase" for row in bench.phase(phase, layers)]
    record = {
        "shape": name,
        "device": where,
        "weights": str(bench.model.dtype).removeprefix("torch."),
        "latents": list(bench.model.latent_shape),
        "batch_size": config.batch_size,
        "steps": config.steps,
        "gradient_checkpointing": config.gradient_checkpointing,
        "memory": config.memory,
        "parameters": sum(one.numel() for one in full.parameters()),
        "edited_layers": len(layers),
        "edited_parameters": sum(layer.weight.numel() for layer in layers.values()),
        "weight_bytes": whole.all_weights,
        "blocks": config.blocks,
        "share": {"flops": 1 / whole.flops, "parameters": 1 / whole.parameters},
        "phases": [_phase(row, whole) for row in rows],
        "seconds_per_1000_passes": _rate([row for row in rows if row.phase == "train"], whole),
    }
    if "erase" in config.phase and task is not None:
        record["erase"] = _erasure(bench, task)
    return record


def _rate(training: list[Row], whole: Whole) -> float | None:
    """Seconds of 1,000 image passes of the whole network in training."""
    return next((1000 * row.ours.seconds * whole.flops / row.passes for row in training), None)


def _phase(row: Row, whole: Whole) -> dict[str, Any]:
    """The costs of one unit. What was measured on a part of the network stands beside what the whole would take."""
    cut = whole.flops != 1.0 and row.phase != "subspace"  # whose matrices are those of the whole network
    sides = {"ours": row.ours, "reference": row.reference}
    found: dict[str, Any] = {"phase": row.phase, "unit": row.unit, "units": row.units, "passes": row.passes}
    found |= {side: one and dataclasses.asdict(one) for side, one in sides.items()}
    if cut:
        found["extrapolated"] = {side: one and dataclasses.asdict(whole.reading(one)) for side, one in sides.items()}
    shown = found.get("extrapolated", found)
    if row.reference is not None:
        for part in ("seconds", "peak"):
            ours, theirs = shown["ours"][part], shown["reference"][part]
            found[f"{part}_ratio"] = ours / theirs if ours is not None and theirs else None
    return {**found, **row.details}


def _erasure(bench: Bench, task: Callable[[], Task[Any]]) -> dict[str, Any]:
    """A whole erasure by default settings: seconds and image passes by stage."""
    reading, result = bench.gauge(lambda: run_to_end(run_erasure(task(), bench.settings)))
    return {
        "seconds": reading.seconds, "peak": reading.peak, "passes": sum(result.passes.values()),
        "seconds_by_stage": dict(result.seconds), "passes_by_stage": dict(result.passes),
    }  # fmt: skip


def _bytes(network: Any) -> int:
    return sum(one.numel() * one.element_size() for one in network.parameters())


def _flops(shape: Shape, network: Any, size: int | None) -> int:
    """Of a forward pass of one image, counted on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    model = build(shape, network, size, None)
    row, x_t = torch.zeros(1, dtype=torch.long, device="meta"), torch.empty(1, *model.latent_shape, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.predict(x_t, row.float(), row)
    return int(counter.get_total_flops())
