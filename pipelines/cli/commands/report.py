"""``semu report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from semu_diffusion.options import option
from semu_diffusion.pipelines.cli.command import Command

__all__ = ["COMMAND", "ReportConfig"]


@dataclass(frozen=True)
class ReportConfig:
    runs: tuple[str, ...] = option(
        (), "run folders, or the .jsonl rows of a benchmark", metavar="RUN", positional=True, required=True
    )
    output: str | None = option(None, "page to write (default: report.html in the run folder, of several here)", metavar="FILE")
    axes: str | None = option(
        None, "two columns that the front shows, to the right and upward, as in drift,revival (default: four panels)",
        metavar="X,Y",
    )  # fmt: skip


def run(config: ReportConfig) -> int:
    from semu_diffusion.pipelines.report.front import axes_of
    from semu_diffusion.pipelines.report.page.compare import write_page

    axes = None if config.axes is None else axes_of(config.axes)
    output = None if config.output is None else Path(config.output).expanduser()
    print(write_page([Path(path).expanduser() for path in config.runs], output, axes))
    return 0


COMMAND = Command(
    "semu report",
    "One page that opens from disk: of a run its verdicts, pictures, numbers and protocol; of several, or of a benchmark, a "
    "comparison. It is made of the files of the run folders alone.",
    ReportConfig,
    run,
    examples=(
        "semu report runs/cat",
        "semu report runs/cat runs/dog runs/ship --output runs/pets.html",
        "semu report runs/benchmark/classes.jsonl --output runs/benchmark.html",
        "semu report runs/benchmark --axes 'erase s,revival'",
    ),
)
