"""The benchmark's rows as one Markdown page: the protocol in words, methods beside each other on the same things, every row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from semu_diffusion.errors import InputError
from semu_diffusion.files import write_text
from semu_diffusion.peers.methods import METHODS, Method
from semu_diffusion.pipelines.benchmark.rows import FILES, Row, merged_rows
from semu_diffusion.pipelines.report.columns import COLUMNS, PROBES, WORDS, Column, measured, probe_columns, with_before
from semu_diffusion.pipelines.report.data import write_data
from semu_diffusion.pipelines.report.expected import beside_table
from semu_diffusion.pipelines.report.front import Axes, Point, front
from semu_diffusion.pipelines.report.mark import MARK, replaceable

__all__ = ["COMPARED", "Comparison", "Table", "comparisons", "page", "points", "tables", "things", "write_page"]

SECTIONS = ((FILES["class"], "Classes (`erase-class`)"), (FILES["concept"], "Concepts (`erase-concept`)"))
OURS = ("default", "closed-form", "trained")
KINDS = {"class": "classes"}  # in the plural; the others take an s
COMPARED, PROBED, ALONE = "Compared", "Probes without training", "Each by itself"  # parts of a section
BRACKETS = " In brackets after a name: what the judge calls its samples most often now."
SHARED = (
    "Written by `semu benchmark`: all rows of a section share protocol and judge. A table of several things compares the "
    "methods that erased all of them, one at a time, by their means over these things alone. Its first line is the original "
    "model, asked the same."
)


@dataclass(frozen=True)
class Comparison:
    """Methods beside each other: the rows of each, all of the same ``things`` of a ``kind``, erased one at a time, and from the
    same seeds."""

    kind: str
    things: tuple[str, ...]
    methods: Mapping[str, list[Row]]
    seeds: tuple[int, ...] = (0,)

    @property
    def rows(self) -> list[Row]:
        return [row for rows in self.methods.values() for row in rows]

    @property
    def title(self) -> str:
        seeds = f", {len(self.seeds)} seeds" if len(self.seeds) > 1 else ""
        if len(self.things) == 1:
            return f'The {self.kind} "{self.things[0]}"{seeds}'
        return f"{len(self.things)} {KINDS.get(self.kind, f'{self.kind}s')}{seeds}: {', '.join(self.things)}"


def comparisons(rows: Sequence[Row]) -> list[Comparison]:
    """For each set of things and seeds that a method was measured with, all methods that have these: a mean over ten things
    says nothing beside one over two of them, nor does a spread over seeds of different things. Larger sets first."""
    found = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        by_method: dict[str, list[Row]] = {}
        for row in rows:
            if row["kind"] == kind and "+" not in row["erased"]:
                by_method.setdefault(row["method"], []).append(row)
        sets = {method: frozenset(map(_asked, own)) for method, own in by_method.items()}
        whole = dict.fromkeys(one for asked in sets.values() for one in _of_the_same_seeds(asked))
        for asked in sorted(whole, key=len, reverse=True):
            methods = {
                method: [row for row in own if _asked(row) in asked]
                for method, own in by_method.items()
                if asked <= sets[method]
            }
            first = next(iter(methods.values()))
            things = dict.fromkeys(row["erased"] for row in first)
            found.append(Comparison(kind, tuple(things), methods, tuple(sorted({seed for _, seed in asked}))))
    return found


def _of_the_same_seeds(asked: Collection[tuple[str, int]]) -> Iterator[frozenset[tuple[str, int]]]:
    """What was measured, in sets in which every thing has every seed: of the things of each seed, with all seeds that have
    them."""
    by_seed: dict[int, set[str]] = {}
    for thing, seed in asked:
        by_seed.setdefault(seed, set()).add(thing)
    for things in by_seed.values():
        yield frozenset((thing, seed) for seed, own in by_seed.items() if things <= own for thing in things)


def _asked(row: Row) -> tuple[str, int]:
    return row["erased"], row.get("seed", 0)


def points(rows: Sequence[Row]) -> list[Point]:
    """A point of the front for each method of `shared`."""
    return [
        Point(group[0]["title"], method in OURS, {column.heading: column.mean(group) for column in COLUMNS}, one.kind)
        for one in shared(rows)
        for method, group in one.methods.items()
    ]


def things(rows: Sequence[Row]) -> str:
    """What the `points` are of, in words."""
    return "; ".join(one.title[0].lower() + one.title[1:] for one in shared(rows))


def shared(rows: Sequence[Row]) -> list[Comparison]:
    """Of every kind, the things that most methods have in common."""
    by_kind: dict[str, list[Comparison]] = {}
    for one in comparisons(rows):
        by_kind.setdefault(one.kind, []).append(one)
    return [max(found, key=lambda one: len(one.methods)) for found in by_kind.values()]


def write_page(
    path: Path, works: Sequence[Path], methods: Mapping[str, Method] = METHODS, axes: Axes | None = None
) -> list[Sequence[Row]]:
    """Write `page` of the rows in the folders ``works`` and their shards, and beside it its pictures, a CSV and a JSON file.

    ``methods``: those of which something is known elsewhere. The pictures are of these ``axes``, or of the front's own. Returns
    the rows of each section after their protocol. Raises InputError if there are none, or of different protocols.
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
            write_text(replaceable(path.with_name(name)), front(points(rows), f"{title}: {things(rows)}", axes))
            pictures[title] = name
    every = [row for _, *rows in sections.values() for row in rows]
    columns = with_before((*measured(COLUMNS, every), *probe_columns(every)))
    values = {column.heading: column.value for column in measured(columns, every)}
    write_data(path, sections, values, {title: list(_means(rows)) for title, (_, *rows) in sections.items()})
    write_text(path, page(sections, pictures, methods))
    return list(sections.values())


def _means(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """The means of every comparison's methods, and over how many rows."""
    columns = with_before((*COLUMNS, *probe_columns(rows)))
    for one in comparisons(rows):
        for method, group in one.methods.items():
            means = {column.heading: mean for column in columns if (mean := column.mean(group)) is not None}
            about = {"method": method, "title": group[0]["title"], "kind": one.kind, "erased": one.things}
            yield {**about, "rows": len(group), "means": means}


def page(
    sections: Mapping[str, list[Row]],
    pictures: Mapping[str, str] = MappingProxyType({}),
    methods: Mapping[str, Method] = METHODS,
) -> str:
    """Markdown of the rows of each section, the protocol first; a section without rows is left out."""
    text = [f"<!-- {MARK} -->", "# Benchmark results", "", SHARED, "", WORDS + BRACKETS]
    for title, (protocol, *rows) in sections.items():
        if rows:
            text += ["", f"# {title}", "", _protocol(protocol["protocol"], rows)]
            text += ["", f"![The front]({pictures[title]})"] if title in pictures else []
            text += [*_section(rows), *beside_table(methods, [protocol, *rows])]
    return "\n".join(text) + "\n"


def _section(rows: Sequence[Row]) -> Iterator[str]:
    part = COMPARED
    for table in tables(rows):
        if table.part == PROBED:
            yield from ("", f"## {PROBED}", "", PROBES) if part != PROBED else ()
            yield from ("", f"{table.title}:", "")
        else:
            yield from ("", f"## {table.title}" if table.part == COMPARED else f"## {ALONE}: {table.title}", "")
        part = table.part
        yield f"| {' | '.join(table.columns)} |"
        yield "|---|" + "---:|" * (len(table.columns) - 1)
        yield from (f"| {' | '.join(line)} |" for line in table.lines)


@dataclass(frozen=True)
class Table:
    """A table of a ``part`` of the page: its title, the columns' headings, and lines of as many texts, the first a name."""

    part: str
    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def tables(rows: Sequence[Row]) -> Iterator[Table]:
    """Every table of a section: each of the `comparisons`, by the judge and by the probes, then the rows that are in none for
    one thing alone, by themselves."""
    columns, probes = measured(COLUMNS, rows), probe_columns(rows)
    compared = comparisons(rows)
    for part, shown in ((COMPARED, columns), (PROBED, probes)):
        for one in compared if shown else ():
            yield _table(part, one.title, "method", _by_method(one), shown)
    methods = {row["method"]: [one for one in rows if one["method"] == row["method"]] for row in rows}
    alone = {(method, *one.things) for one in compared if len(one.things) == 1 for method in one.methods}  # have a table
    several = [own for method, own in methods.items() if any((method, row["erased"]) not in alone for row in own)]
    if several:
        asked = [column for column in columns if column.before is not None]
        yield _table(ALONE, "the original", "asked for", _one_by_one(rows, True), asked)
    for own in several:
        yield _table(ALONE, own[0]["title"], "erased", _one_by_one(own), columns)


Line = tuple[str, Sequence[Row], bool]  # its name, its rows, whether the original's numbers of these rows are meant


def _by_method(compared: Comparison) -> Iterator[Line]:
    yield "the original", compared.rows, True
    for rows in compared.methods.values():
        yield f"{rows[0]['title']}{_became(rows)}", rows, False


def _one_by_one(rows: Sequence[Row], original: bool = False) -> Iterator[Line]:
    for erased in dict.fromkeys(row["erased"] for row in rows):
        found = [row for row in rows if row["erased"] == erased]
        yield f"{erased}{'' if original else _became(found)}", found, original


def _table(part: str, title: str, first: str, lines: Iterator[Line], columns: Sequence[Column]) -> Table:
    """The means over each line's rows. What cannot be said of the original is empty."""

    def cell(column: Column, rows: Sequence[Row], original: bool) -> str:
        if original:
            return "" if column.before is None else column.original.text(rows)
        return column.text(rows)

    texts = ((name, *(cell(column, rows, original) for column in columns)) for name, rows, original in lines)
    return Table(part, title, (first, *(column.heading for column in columns)), tuple(texts))


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
        + _errors(protocol)
        + _tuning(protocol.get("tuning"), {row["method"] for row in rows if ", tuned: " in row["title"]})
        + f" Commit {commits}."
    )


def _errors(protocol: Mapping[str, Any]) -> str:
    """The standard error of one row's share of n samples: sqrt(p (1 - p) / n), at most half of 1 / sqrt(n)."""
    samples = [("revival", probe["samples"]) for probe in protocol["probes"].values() if "steps" in probe]
    samples.append(("unprompted share", protocol["unconditional_samples"]))
    said = [f"of its {name} {0.5 / n**0.5:.2f} ({n} samples)" for name, n in samples if n]
    return f" Standard errors of a row, at most: {', '.join(said)}." if said else ""


def _tuning(found: Mapping[str, Any] | None, tuned: Collection[str]) -> str:
    """The search before the rows of the ``tuned`` methods, if there was one: over what, on what, by what."""
    if found is None or not tuned:
        return ""
    spaces: dict[str, list[str]] = {}
    for name, (setting, factors) in ((name, knob) for name, knob in found["knobs"].items() if name in tuned):
        spaces.setdefault(f"{setting}, {' and '.join(f'{factor:g}' for factor in factors)} times its own", []).append(name)
    said = "; ".join(f"{space}, of {', '.join(names)}" for space, names in spaces.items())
    said += f", {found['edge']}" if "edge" in found else ""
    on = f"{', '.join(found['erased'])} (seed {found['seed']})"
    by = f"which is not reported, by the {found['criterion']}"
    return f" Tuned before on {on}, {by}: {said}; the others have their own settings."


def _became(rows: Sequence[Row]) -> str:
    """What the judge calls the erased thing's samples most often now, of all seeds; nothing of several things."""
    if len({row["erased"] for row in rows}) > 1:
        return ""
    found: dict[str, Counter[str]] = {}
    for row in rows:
        for name, shares in (row["evaluation"]["after"].get("judged_as") or {}).items():
            found.setdefault(name, Counter()).update(shares)
    seen = [f"{most} {share / len(rows):.0%}" for shares in found.values() for most, share in shares.most_common(1)]
    return f" ({', '.join(seen)})" if seen else ""
