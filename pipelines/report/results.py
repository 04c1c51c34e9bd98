"""The benchmark's rows as one Markdown page: the protocol in words, the means by method, every row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semu_diffusion.files import write_text
from semu_diffusion.pipelines.benchmark.rows import Row, read_rows

__all__ = ["page", "write_page"]

SECTIONS = (("classes.jsonl", "Classes (`erase-class`)"), ("concepts.jsonl", "Concepts (`erase-concept`)"))


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, where in a row its number stands and how it is written."""

    heading: str
    form: str
    path: tuple[str, ...]
    scale: float = 1.0

    def value(self, row: Row) -> float | None:
        found: Any = row
        for key in self.path:
            found = found.get(key) if isinstance(found, dict) else None
        return None if found is None else found * self.scale

    def mean(self, rows: Sequence[Row]) -> str:
        """The mean over ``rows``, formatted; a dash if one of them was not measured."""
        values = [self.value(row) for row in rows]
        if not values or any(value is None for value in values):
            return "–"
        return format(sum(value for value in values if value is not None) / len(values), self.form)


def _both(heading: str, key: str, form: str = ".3f") -> tuple[Column, Column]:
    """The two columns of a share that is measured before and after."""
    before, after = (("evaluation", when, key) for when in ("before", "after"))
    return Column(f"{heading} before", form, before), Column(heading, form, after)


COLUMNS = (
    Column("UA", ".3f", ("evaluation", "after", "unlearning_accuracy")),
    Column("seen before", ".3f", ("evaluation", "before", "forget_accuracy")),
    *_both("held-out words", "paraphrase_accuracy"),
    *_both("kept, own kind", "in_domain_accuracy"),
    *_both("kept, other kind", "cross_domain_accuracy"),
    Column("drift", ".4f", ("evaluation", "side_effects", "paired", "mse")),
    Column("SSIM", ".3f", ("evaluation", "side_effects", "paired", "ssim")),
    *_both("revival", "revival", ".2f"),
    *_both("unasked", "unconditional_share"),
    Column("KID ×10³", ".2f", ("evaluation", "distances", "kid", "after"), 1e3),
    Column("trained", ".3%", ("trained_fraction",)),
    Column("kB", ".0f", ("bytes",), 1e-3),
    Column("erase s", ".1f", ("erase_seconds",)),
)
WORDS = (
    "UA: share of the erased thing's samples in which the judge no longer sees it; seen before: share in which it did. "
    "held-out words: share seen by words and sentences that the erasure did not know. kept: judged right on what stays, of "
    "the same kind and of the other. drift and SSIM: paired with the original's samples of what stays, same seeds (images "
    "in [-1, 1]). revival: share that one learned vector brings back. unasked: share of the erased thing among samples "
    "without a condition (w = 1). KID: of what stays, against the original's own samples, a drift in features. trained: "
    "numbers that could change, as a share of the denoiser's. erase s: wall clock. A dash is what was not measured."
)
BRACKETS = " In brackets after a name: what the judge calls most of its samples now."


def write_page(path: Path, work: Path) -> None:
    """Write `page` of the rows in ``work``; makes the folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page({title: read_rows(work / file) for file, title in SECTIONS if (work / file).is_file()}))


def page(sections: dict[str, list[Row]]) -> str:
    """Markdown of the rows of each section, the protocol first; a section without rows is left out."""
    text = [
        "# Results",
        "",
        "Written by `semu benchmark`: all rows of a table share protocol, seeds and judge.",
        "",
        WORDS + BRACKETS,
    ]
    for title, (protocol, *rows) in sections.items():
        if rows:
            text += ["", f"# {title}", "", *_section(protocol["protocol"], rows)]
    return "\n".join(text) + "\n"


def _section(protocol: dict[str, Any], rows: list[Row]) -> Iterator[str]:
    for row in rows:
        row["erase_seconds"] = sum(row["seconds"].values())
    columns = [column for column in COLUMNS if any(column.value(row) is not None for row in rows)]
    yield _protocol(protocol, rows)
    yield from ("", "## By method (in brackets: over how many)", "", _head("method", columns))
    groups = list(dict.fromkeys((row["method"], row["title"], row["kind"]) for row in rows if "+" not in row["erased"]))
    several = len({kind for _, _, kind in groups}) > 1
    for method, title, kind in groups:
        found = [r for r in rows if (r["method"], r["kind"]) == (method, kind) and "+" not in r["erased"]]
        yield _line(f"{title}{f', {kind}s' if several else ''} ({len(found)})", found, columns)
    for method, title in dict.fromkeys((row["method"], row["title"]) for row in rows):
        yield from ("", f"## {title}", "", _head("erased", columns))
        yield from (_line(_erased(row), [row], columns) for row in rows if row["method"] == method)


def _protocol(protocol: dict[str, Any], rows: list[Row]) -> str:
    judges = "; ".join(
        f"{kind}s by {judge['name']} (weights {judge['sha256'][:12]})" for kind, judge in protocol["judges"].items()
    )
    commits = ", ".join(sorted({str(row.get("git_commit")) for row in rows}))
    how = "; ".join(
        f"{name}: one vector, Adam, {probe['steps']} steps of {probe['batch_size']}, {probe['samples']} samples"
        for name, probe in protocol["probes"].items()
    )
    return (
        f"Protocol: {protocol['images_per_condition']} images of every condition, {protocol['unconditional_samples']} without "
        f"one, before and after, {protocol['sampler']} {protocol['steps']} steps, w = {protocol['guidance_scale']:g}, seed "
        f"{protocol['seed']}. Judges: {judges}. Model {protocol['model']}, weights {protocol['weights']}."
        + (f" Revival, {how}." if how else "")
        + f" Commit {commits}."
    )


def _head(first: str, columns: Sequence[Column]) -> str:
    """The two lines of Markdown that begin a table."""
    return f"| {first} | " + " | ".join(column.heading for column in columns) + " |\n|---|" + "---:|" * len(columns)


def _line(first: str, rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A line of Markdown with the means over ``rows``."""
    return f"| {first} | " + " | ".join(column.mean(rows) for column in columns) + " |"


def _erased(row: Row) -> str:
    """What was erased, and what the judge calls most of its samples now."""
    seen = []
    for shares in (row["evaluation"]["after"].get("judged_as") or {}).values():
        most = max(shares, key=lambda name: shares[name], default=None)
        seen += [] if most is None else [f"{most} {shares[most]:.0%}"]
    return f"{row['erased']} ({', '.join(seen)})" if seen else str(row["erased"])
