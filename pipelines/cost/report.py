"""The record of one network as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["table"]

COLUMNS = ("phase", "one", "ours s", "reference s", "ratio", "ours GB", "reference GB", "ratio", "passes")


def table(record: Mapping[str, Any]) -> str:
    """Ours beside the reference procedure; ``~`` marks what was extrapolated."""
    rows = [COLUMNS, *(_row(phase) for phase in record["phases"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([*(row[place].ljust(widths[place]) for place in (0, 1)), *cells[2:]]))
    return "\n".join([*_head(record), *lines, *_foot(record)])


def _row(phase: Mapping[str, Any]) -> tuple[str, ...]:
    shown = phase.get("extrapolated", phase)
    mark = "~" if "extrapolated" in phase or phase.get("extrapolated_layers") else ""
    seconds, peaks = ([_of(shown, side, part) for side in ("ours", "reference")] for part in ("seconds", "peak"))
    return (
        phase["phase"],
        phase["unit"],
        *(_number(one, mark) for one in seconds),
        _number(phase.get("seconds_ratio"), mark),
        *(_number(None if one is None else one / 1e9, mark) for one in peaks),
        _number(phase.get("peak_ratio"), mark),
        f"{phase['passes']:.4g}" if phase["passes"] else "",
    )


def _of(shown: Mapping[str, Any], side: str, part: str) -> Any:
    return shown[side] and shown[side][part]


def _number(value: float | None, mark: str) -> str:
    return "" if value is None else f"{mark}{value:.3g}"


def _head(record: Mapping[str, Any]) -> Iterator[str]:
    edited, parameters = record["edited_parameters"] / 1e6, record["parameters"] / 1e6
    yield (
        f"{record['shape']}: {parameters:.1f} M parameters ({edited:.1f} M edited), {record['weight_bytes'] / 1e9:.3g} GB in "
        f"{record['weights']}, latents {'x'.join(map(str, record['latents']))}, {record['batch_size']} a batch"
    )
    yield f"on {record['device']}; peaks with the weights, beyond the process without them"


def _foot(record: Mapping[str, Any]) -> Iterator[str]:
    for phase in record["phases"]:
        if phase.get("angle") is not None:
            yield f"subspace: worst angle to the full SVD {phase['angle']:.1e}, energy {phase['energy']:.6f} of its"
        if phase.get("extrapolated_layers"):
            yield f"~ {phase['extrapolated_layers']} layers were not decomposed: their seconds by m n min(m, n)"
    if record["blocks"] is not None:
        share = record["share"]
        yield (
            f"~ extrapolated from {record['blocks']} blocks of each kind: {share['flops']:.1%} of the FLOPs (seconds), "
            f"{share['parameters']:.1%} of the parameters (memory beyond the weights)"
        )
    if record["seconds_per_1000_passes"] is not None:
        yield f"1,000 image passes in training: {record['seconds_per_1000_passes']:.3g} s"
    if "erase" in record:
        erase = record["erase"]
        stages = ", ".join(f"{name} {erase['passes_by_stage'].get(name, 0):,}" for name in erase["seconds_by_stage"])
        yield f"a whole erasure: {erase['seconds']:.1f} s, {erase['passes']:,} image passes ({stages})"
