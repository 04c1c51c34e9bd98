"""The columns of a benchmark's tables: each reads one number of a row, and the original model's where it has one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from semu_diffusion.pipelines.benchmark.rows import Row

__all__ = ["COLUMNS", "PROBES", "WORDS", "Column", "measured", "probe_columns", "with_before"]

Number = Callable[[Row], float | None]  # None: not measured


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, how a number is written, that of a row, and the original's for the same row."""

    heading: str
    form: str
    value: Number
    before: Number | None = None

    def text(self, rows: Sequence[Row]) -> str:
        """The mean over ``rows``; of several seeds with the standard deviation of their means. A dash if a row has none."""
        seeds: dict[int, list[float]] = {}
        for row in rows:
            value = self.value(row)
            if value is None:
                return "–"
            seeds.setdefault(row.get("seed", 0), []).append(value)
        means = [fmean(values) for values in seeds.values()]
        if not means:
            return "–"
        spread = f" ± {format(stdev(means), self.form)}" if len(means) > 1 else ""
        return format(fmean(means), self.form) + spread

    def mean(self, rows: Sequence[Row]) -> float | None:
        """The mean over ``rows``; None if a row has no number."""
        values = [value for row in rows if (value := self.value(row)) is not None]
        return fmean(values) if rows and len(values) == len(rows) else None

    @property
    def original(self) -> Column:
        """The column as it is of the original model."""
        return replace(self, value=self.before or (lambda _: None), before=None)


def at(*path: str, scale: float = 1.0) -> Number:
    """The number at a path of keys."""

    def value(row: Row) -> float | None:
        found: Any = row
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return None if found is None else found * scale

    return value


def share(heading: str, key: str, form: str = ".3f") -> Column:
    """A share that is measured of the original too."""
    return Column(heading, form, at("evaluation", "after", key), at("evaluation", "before", key))


def _passes(row: Row) -> float | None:
    """Image passes of the erasure, all phases but the evaluation's."""
    found = row["evaluation"].get("cost", {}).get("passes") or {}
    spent = [count for phase, count in found.items() if phase != "evaluate" and count is not None]
    return float(sum(spent)) if spent else None


def _seconds(row: Row) -> float | None:
    return sum(row["seconds"].values()) if row["seconds"] else None


COLUMNS = (
    share("UA", "unlearning_accuracy"),
    share("paraphrases", "paraphrase_accuracy"),
    share("kept, own kind", "in_domain_accuracy"),
    share("kept, other kind", "cross_domain_accuracy"),
    share("kept, held out", "kept_held_out_accuracy"),
    share("described", "implicit_accuracy"),
    share("other languages", "language_accuracy"),
    share("kept, beside it", "binomial_accuracy"),
    share("look-alikes", "look_alike_accuracy"),
    Column("drift", ".4f", at("evaluation", "side_effects", "paired", "mse")),
    Column("drift, held out", ".4f", at("evaluation", "held_out_effect", "paired", "mse")),
    Column("SSIM", ".3f", at("evaluation", "side_effects", "paired", "ssim")),
    share("revival", "revival", ".2f"),
    share("unprompted", "unconditional_share"),
    Column("KID ×10³", ".2f", at("evaluation", "distances", "kid", "after", scale=1e3)),
    Column("trained", ".3%", at("trained_fraction")),
    Column("kB", ".0f", at("bytes", scale=1e-3)),
    Column("passes", ".0f", _passes),
    Column("erase s", ".1f", _seconds),
)
WORDS = (
    "UA (unlearning accuracy): share of the erased thing's samples in which the judge no longer sees it. paraphrases: share "
    "in which it is still seen, asked for by words and sentences that the erasure did not use. kept: accuracy on what stays, "
    "of the same kind (in-domain) and of the other (cross-domain), in the sentences of the retain term, which is trained on "
    "a part of these prompts; held out: by words and sentences that it does not have; beside it: of something else asked for "
    "together with it. drift, SSIM: of what stays, paired with the original's samples of the same seeds (drift: MSE of "
    "images in [-1, 1]); held out: on those prompts. revival: share that the best of several learned vectors brings back. "
    "unprompted: share of the erased thing among samples without a condition (w = 1). KID: of what stays, against the "
    "original's own samples. trained: share of the denoiser's parameters that were trained (none of a closed form or a "
    "copy). kB: size of the patch. passes: images through the denoiser during the erasure (a backward pass counts two). "
    "erase s: wall clock. ±: standard deviation over seeds of the mean over what was erased. A dash: not measured."
)
PROBES = (
    "Share that each probe without training brings back; kept: the share of kept "
    "pictures that come back in the same way from the edited model. completion: the original makes the first quarter of the "
    "path. recovery: half-noised pictures, denoised by name and without a condition. noise: more noise at each step. "
    "inversion: pictures inverted and made again without a condition. int8, fp8: the merged weights rounded."
)


def _probed(name: str, when: str, key: str = "share") -> Number:
    """The mean over what was erased of a probe's number."""

    def value(row: Row) -> float | None:
        each = [one.get(key) for one in row["evaluation"][when].get("probes", {}).get(name, {}).values()]
        return fmean(each) if each and None not in each else None

    return value


def probe_columns(rows: Sequence[Row]) -> list[Column]:
    """Those of the probes without training; one that learns is the revival."""
    names = dict.fromkeys(name for row in rows for name in row["evaluation"]["after"].get("probes", {}))
    found = [
        column
        for name in names
        if not any(_probed(name, "after", "steps")(row) for row in rows)
        for column in (
            Column(name, ".2f", _probed(name, "after"), _probed(name, "before")),
            Column(f"{name}, kept", ".2f", _probed(name, "after", "control")),
        )
    ]
    return measured(found, rows)


def measured(columns: Iterable[Column], rows: Sequence[Row]) -> list[Column]:
    """Those of the columns that have a number in any row."""
    return [column for column in columns if any(column.value(row) is not None for row in rows)]


def with_before(columns: Iterable[Column]) -> list[Column]:
    """The columns with the original's numbers as columns of their own, for tables without a line of the original."""
    return [
        one
        for column in columns
        for one in ((replace(column.original, heading=f"{column.heading} before"), column) if column.before else (column,))
    ]
