"""Labelled pictures from parquet files in the Hub's layout."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

from semu_diffusion.errors import InputError, reason
from semu_diffusion.pipelines.data.folders import hidden

__all__ = ["column_of", "label_of", "parquet_files", "read_tables"]

IMAGE_COLUMNS = ("img", "image", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "class_name", "category")
SPLITS = ("train", "test", "validation")
MAX_CLASSES = 100_000  # of labels without names


def parquet_files(folder: Path, split: str | None) -> list[Path]:
    """Files of the split, by their name (``train-00000-of-00001.parquet``, ``train.parquet``) or folder (``train/``); all for
    None.

    The name goes first: ``test/train-0.parquet`` is of the training images. Raises InputError if they lie in several folders.
    """

    def of(path: Path) -> str:
        named = [one for one in SPLITS if path.name.startswith((f"{one}-", f"{one}."))]
        return named[0] if named else path.parent.name

    every = sorted(path for path in folder.rglob("*.parquet") if not any(map(hidden, path.relative_to(folder).parts)))
    if split is None:
        return every
    found = [path for path in every if of(path) == split]
    folders = sorted({str(path.parent.relative_to(folder)) for path in found})
    if len(folders) > 1:
        raise InputError(f"{folder} holds several data sets ({', '.join(folders[:4])}); download it and name one folder")
    return found


def read_tables(
    files: list[Path], folder: Path, anywhere: bool, labelled: bool = True
) -> tuple[list[tuple[str, Any]], list[int], tuple[str, ...]]:
    """(what it is, its bytes or the file that holds them) of every picture, labels, and names of the classes, () for none.

    A column of paths is read from beside the parquet file or from ``folder``, and, if ``anywhere``, by whole paths.
    Labels are whole numbers, or words, whose classes are then in the order of the alphabet; without ``labelled`` they are 0
    where there is no column of them.
    """
    pictures: list[tuple[str, Any]] = []
    labels: list[Any] = []
    names: tuple[str, ...] = ()
    for path in files:
        rows, column, found = _rows(path, labelled)
        if found and names and found != names:
            said = f"{path} numbers its classes as {', '.join(found[:4])}, the files before it as {', '.join(names[:4])}"
            raise InputError(f"{said}: write them with one list of names, or one at a time")
        names = found or names
        labels += column
        places = (path.parent, folder)
        pictures += [(f"image {row} of {path}", _content(entry, row, path, places, anywhere)) for row, entry in enumerate(rows)]
    if labels and all(isinstance(label, str) for label in labels):
        names = tuple(sorted(set(labels)))
        numbers = {name: index for index, name in enumerate(names)}
        return pictures, [numbers[label] for label in labels], names
    if not all(isinstance(label, int) for label in labels):
        raise InputError(f"{files[0]}: its labels must be whole numbers, or all of them words")
    if not names and labels and max(labels) >= MAX_CLASSES:
        raise InputError(f"{files[0]} has the label {max(labels)}: number its classes from 0, or call them by words")
    return pictures, labels, names


def _rows(path: Path, labelled: bool) -> tuple[list[Any], list[Any], tuple[str, ...]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        image_column = _column(path, schema.names, IMAGE_COLUMNS)
        if not labelled and column_of(schema.names) is None:
            pictures = pq.read_table(path, columns=[image_column])[image_column].to_pylist()
            return pictures, [0] * len(pictures), ()
        label_column = _column(path, schema.names, LABEL_COLUMNS)
        table = pq.read_table(path, columns=[image_column, label_column])
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable parquet file ({reason(error, 150)})") from error
    kind = table[label_column].type
    words = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
    known = words or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    labels = [label_of(one) for one in table[label_column].to_pylist()] if known else [None]
    if None in labels:
        raise InputError(f"{path}: the column {label_column!r} must hold a whole number or a word for every image")
    return table[image_column].to_pylist(), labels, _class_names(schema.metadata, label_column)


def column_of(present: Sequence[str], wanted: tuple[str, ...] = LABEL_COLUMNS) -> str | None:
    """The first of the ``wanted`` columns that is there, in upper or lower case."""
    return next((own for name in wanted for own in present if own.strip().lower() == name), None)


def label_of(given: Any) -> int | str | None:
    """A label as it is compared: a whole number, also as pandas writes it beside gaps (3.0), or a word without blanks around
    it; None for anything else."""
    if isinstance(given, str | bool):
        return normalize("NFC", str(given)).strip() or None
    return int(given) if isinstance(given, int | float) and given == given // 1 else None


def _column(path: Path, present: list[str], wanted: tuple[str, ...]) -> str:
    found = column_of(present, wanted)
    if found is not None:
        return found
    raise InputError(f"{path} has no column {' or '.join(wanted)}; it has {', '.join(present)}")


def _class_names(metadata: Mapping[bytes, bytes] | None, column: str) -> tuple[str, ...]:
    """Names from the Hub's schema metadata; () where it has none."""
    try:
        content = json.loads((metadata or {})[b"huggingface"])
        return tuple(str(name) for name in content["info"]["features"][column]["names"])
    except (KeyError, ValueError, TypeError):
        return ()


def _content(entry: Any, row: int, path: Path, places: tuple[Path, ...], anywhere: bool) -> bytes | Path | None:
    """The bytes of an image column's entry, or the file that its path names."""
    if isinstance(entry, bytes):
        return entry
    given = entry if isinstance(entry, str) else None
    if isinstance(entry, dict):
        if entry.get("bytes"):
            return bytes(entry["bytes"])
        given = entry.get("path")
    elif entry is not None and given is None:
        raise InputError(f"image {row} of {path} is a {type(entry).__name__}, not an encoded picture or the path of one")
    if not given:
        return None
    file = next(_existing(given, places), None)
    if file is None:
        raise InputError(f"image {row} of {path}: no such file {given[:100]} beside it or below {places[-1]}")
    if not anywhere and not file.resolve().is_relative_to(places[-1].resolve()):
        raise InputError(f"image {row} of {path} names {given[:100]}, which is outside of the data set")
    return file


def _existing(given: str, places: tuple[Path, ...]) -> Iterator[Path]:
    return (place / given for place in places if os.path.isfile(place / given))  # False for a picture in base64
