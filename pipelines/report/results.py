"""The benchmark's rows as one Markdown page: the protocol in words, the means by method, every row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from types import MappingProxyType
from typing import Any

from semu_diffusion.errors import InputError
from semu_diffusion.files import write_text
from semu_diffusion.pipelines.benchmark.rows import Row, merged_rows
from semu_diffusion.pipelines.report.data import write_data
from semu_diffusion.pipelines.report.front import Point, front
from semu_diffusion.pipelines.report.mark import MARK, replaceable

__all__ = ["page", "write_page"]

SECTIONS = (("classes.jsonl", "Classes (`erase-class`)"), ("concepts.jsonl", "Concepts (`erase-concept`)"))


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, its number in a row (None: not measured) and how it is written."""

    heading: str
    form: str
    value: Callable[[Row], float | None]

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


def _at(*path: str, scale: float = 1.0) -> Callable[[Row], float | None]:
    """The number at a path of keys."""

    def value(row: Row) -> float | None:
        found: Any = row
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return None if found is None else found * scale

    return value


def _both(heading: str, key: str, form: str = ".3f") -> tuple[Column, Column]:
    """The two columns of a share that is measured before and after."""
    before, after = (_at("evaluation", when, key) for when in ("before", "after"))
    return Column(f"{heading} before", form, before), Column(heading, form, after)


def _passes(row: Row) -> float | None:
    """Image passes of the erasure, all phases but the evaluation's."""
    found = row["evaluation"].get("cost", {}).get("passes") or {}
    spent = [count for phase, count in found.items() if phase != "evaluate" and count is not None]
    return float(sum(spent)) if spent else None


def _probed(name: str, when: str, key: str = "share") -> Callable[[Row], float | None]:
    """The mean over what was erased of a probe's number."""

    def value(row: Row) -> float | None:
        each = [one.get(key) for one in row["evaluation"][when].get("probes", {}).get(name, {}).values()]
        return fmean(each) if each and None not in each else None

    return value


UA = Column("UA", ".3f", _at("evaluation", "after", "unlearning_accuracy"))
DRIFT = Column("drift", ".4f", _at("evaluation", "side_effects", "paired", "mse"))
REVIVAL = _both("revival", "revival", ".2f")
UNASKED = _both("unasked", "unconditional_share")
PASSES = Column("passes", ".0f", _passes)
SECONDS = Column("erase s", ".1f", lambda row: sum(row["seconds"].values()) if row["seconds"] else None)
COLUMNS = (
    UA,
    Column("seen before", ".3f", _at("evaluation", "before", "forget_accuracy")),
    *_both("held-out words", "paraphrase_accuracy"),
    *_both("kept, own kind", "in_domain_accuracy"),
    *_both("kept, other kind", "cross_domain_accuracy"),
    *_both("kept, held out", "kept_held_out_accuracy"),
    *_both("described", "implicit_accuracy"),
    *_both("other languages", "language_accuracy"),
    *_both("kept, beside it", "binomial_accuracy"),
    *_both("look-alikes", "look_alike_accuracy"),
    DRIFT,
    Column("drift, held out", ".4f", _at("evaluation", "held_out_effect", "paired", "mse")),
    Column("SSIM", ".3f", _at("evaluation", "side_effects", "paired", "ssim")),
    *REVIVAL,
    *UNASKED,
    Column("KID ×10³", ".2f", _at("evaluation", "distances", "kid", "after", scale=1e3)),
    Column("trained", ".3%", _at("trained_fraction")),
    Column("kB", ".0f", _at("bytes", scale=1e-3)),
    PASSES,
    SECONDS,
)
WORDS = (
    "UA: share of the erased thing's samples in which the judge no longer sees it; seen before: share in which it did. "
    "held-out words: share seen by words and sentences that the erasure did not know. kept: judged right on what stays, of "
    "the same kind and of the other, by prompts that the erasure knew; held out: by words and sentences that it did not. drift "
    "and SSIM: paired with the original's samples of what stays, same seeds (images in [-1, 1]). revival: share that the best "
    "of several learned vectors brings back. unasked: share of the erased thing among samples without a condition (w = 1). "
    "KID: of what stays, against the original's own samples, a drift in features. trained: numbers that could change, as a "
    "share of the denoiser's. passes: images through the denoiser during the erasure (a backward pass counts two). erase s: "
    "wall clock. ±: standard deviation over seeds of the mean over what was erased. A dash is what was not measured."
)
BRACKETS = " In brackets after a name: what the judge calls most of its samples now."
PROBES = (
    "Share that each probe without training brings back, from the original and from the edited model; kept: the share of kept "
    "pictures that come back in the same way from the edited model. completion: the original makes the first quarter of the "
    "path. recovery: half-noised pictures, denoised by name and without a condition. noise: more noise at each step. "
    "inversion: pictures inverted and made again without a condition. int8, fp8: the merged weights rounded."
)


def write_page(path: Path, works: Sequence[Path]) -> list[Sequence[Row]]:
    """Write `page` of the rows in the folders ``works`` and their shards, and beside it its pictures, a CSV and a JSON file.

    Returns the rows of each section after their protocol. Raises InputError if there are none, or of different protocols.
    """
    folders = [folder for work in works for folder in (work, *sorted(work.glob("shard-*-of-*")))]
    found = {file: [folder / file for folder in folders if (folder / file).is_file()] for file, _ in SECTIONS}
    sections = {title: merged_rows(found[file]) for file, title in SECTIONS if found[file]}
    if not sections:
        raise InputError(f"no rows of a benchmark in {', '.join(map(str, works))}")
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for title, (_, *rows) in sections.items():
        name = f"{path.stem}-{title.split()[0].lower()}.svg"
        if rows:
            write_text(replaceable(path.with_name(name)), front(points(rows), title))
            pictures[title] = name
    every = [row for _, *rows in sections.values() for row in rows]
    columns = {column.heading: column.value for column in (*_measured(COLUMNS, every), *_probe_columns(every))}
    write_data(path, sections, columns, {title: list(_means(rows)) for title, (_, *rows) in sections.items()})
    write_text(path, page(sections, pictures))
    return list(sections.values())


def _measured(columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
    return [column for column in columns if any(column.value(row) is not None for row in rows)]


def _means(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """The mean of every column over what a method erased one at a time, and over how many rows."""
    for (method, kind), group in _by_method(rows).items():
        means = {column.heading: _mean(column, group) for column in (*COLUMNS, *_probe_columns(rows))}
        known = {heading: mean for heading, mean in means.items() if mean is not None}
        yield {"method": method, "title": group[0]["title"], "kind": kind, "rows": len(group), "means": known}


def points(rows: Sequence[Row]) -> list[Point]:
    """A point of the fronts for each method and kind: means over what was erased one at a time."""
    found = []
    for (method, kind), group in _by_method(rows).items():
        seconds, passes = (_mean(column, group) for column in (SECONDS, PASSES))
        values = {name: _mean(column, group) for name, column in FRONT.items()}
        measured = {**values, "seconds": seconds, "passes": passes}
        found.append(Point(group[0]["title"], method == "default", measured, kind))
    return found


FRONT = {"drift": DRIFT, "revival": REVIVAL[1], "unasked": UNASKED[1], "UA": UA}


def _mean(column: Column, rows: Sequence[Row]) -> float | None:
    values = [value for row in rows if (value := column.value(row)) is not None]
    return fmean(values) if len(values) == len(rows) else None


def _by_method(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """The rows that erased one thing, by method and kind."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if "+" not in row["erased"]:
            found.setdefault((row["method"], row["kind"]), []).append(row)
    return found


def page(sections: Mapping[str, list[Row]], pictures: Mapping[str, str] = MappingProxyType({})) -> str:
    """Markdown of the rows of each section, the protocol first; a section without rows is left out."""
    shared = "Written by `semu benchmark`: all rows of a table share protocol, seeds and judge."
    text = [f"<!-- {MARK} -->", "# Results", "", shared, "", WORDS + BRACKETS]
    for title, (protocol, *rows) in sections.items():
        if rows:
            text += ["", f"# {title}", "", _protocol(protocol["protocol"], rows)]
            text += ["", f"![The front]({pictures[title]})"] if title in pictures else []
            text += _section(rows)
    return "\n".join(text) + "\n"


def _probe_columns(rows: Sequence[Row]) -> list[Column]:
    """Those of the probes without training."""
    names = dict.fromkeys(name for row in rows for name in row["evaluation"]["after"].get("probes", {}))
    found = [
        column
        for name in names
        if not any(_probed(name, "after", "steps")(row) for row in rows)  # those that learn are the revival
        for column in (
            Column(f"{name} before", ".2f", _probed(name, "before")),
            Column(name, ".2f", _probed(name, "after")),
            Column(f"{name}, kept", ".2f", _probed(name, "after", "control")),
        )
    ]
    return _measured(found, rows)


def _section(rows: list[Row]) -> Iterator[str]:
    columns, probes = _measured(COLUMNS, rows), _probe_columns(rows)
    groups = _by_method(rows)
    several = len({kind for _, kind in groups}) > 1
    for title, chosen in (("By method (in brackets: over how many)", columns), ("Probes without training", probes)):
        if chosen:
            yield from ("", f"## {title}", "", *([PROBES, ""] if chosen is probes else []), _head("method", chosen))
            for (_, kind), found in groups.items():
                count = len({row["erased"] for row in found})
                yield _line(f"{found[0]['title']}{f', {kind}s' if several else ''} ({count})", found, chosen)
    for method, title in dict.fromkeys((row["method"], row["title"]) for row in rows):
        yield from ("", f"## {title}", "", _head("erased", columns))
        own = [row for row in rows if row["method"] == method]
        for erased in dict.fromkeys(row["erased"] for row in own):
            found = [row for row in own if row["erased"] == erased]
            yield _line(_erased(found[0]), found, columns)


def _protocol(protocol: dict[str, Any], rows: list[Row]) -> str:
    judges = "; ".join(
        f"{kind}s by {judge['name']} (weights {judge['sha256'][:12]})" for kind, judge in protocol["judges"].items()
    )
    commits = ", ".join(sorted({str(row.get("git_commit")) for row in rows}))
    how = "; ".join(
        f"{name}: Adam, {probe['steps']} steps of {probe['batch_size']} for each of {probe['restarts']} vectors, "
        f"{probe['screened']} samples of each to choose by, {probe['samples']} of the best"
        for name, probe in protocol["probes"].items()
        if "steps" in probe
    )
    numbers = sorted({row.get("seed", 0) for row in rows})
    seeds = f"seed{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
    return (
        f"Protocol: {protocol['images_per_condition']} images of every condition, {protocol['unconditional_samples']} without "
        f"one, before and after, {protocol['sampler']} {protocol['steps']} steps, w = {protocol['guidance_scale']:g}, {seeds}. "
        f"Judges: {judges}. Model {protocol['model']}, weights {protocol['weights']}."
        + (f" Revival, {how}." if how else "")
        + _tuning(protocol.get("tuning"))
        + f" Commit {commits}."
    )


def _tuning(found: Mapping[str, Any] | None) -> str:
    """The search before the rows, if there was one: over what, on what, by what."""
    if found is None:
        return ""
    spaces: dict[str, list[str]] = {}
    for name, (setting, factors) in found["knobs"].items():
        spaces.setdefault(f"{setting}, {' and '.join(f'{factor:g}' for factor in factors)} times its own", []).append(name)
    said = "; ".join(f"{space}, of {', '.join(names)}" for space, names in spaces.items())
    on = f"{', '.join(found['erased'])} (seed {found['seed']})"
    return (
        f" Tuned before on {on}, which is not reported, by the {found['criterion']}: {said}; the others have nothing to tune."
    )


def _head(first: str, columns: Sequence[Column]) -> str:
    """The two lines of Markdown that begin a table."""
    return f"| {first} | " + " | ".join(column.heading for column in columns) + " |\n|---|" + "---:|" * len(columns)


def _line(first: str, rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A line of Markdown with the means over ``rows``."""
    return f"| {first} | " + " | ".join(column.text(rows) for column in columns) + " |"


def _erased(row: Row) -> str:
    """What was erased, and what the judge calls most of its samples now."""
    seen = []
    for shares in (row["evaluation"]["after"].get("judged_as") or {}).values():
        most = max(shares, key=lambda name: shares[name], default=None)
        seen += [] if most is None else [f"{most} {shares[most]:.0%}"]
    return f"{row['erased']} ({', '.join(seen)})" if seen else str(row["erased"])
