"""Images from disk or from the Hub: labelled data sets, and plain folders of pictures.

Four layouts are read: a Hub id or a folder with parquet files in the Hub's layout (``train-*.parquet``, also below
``data/``), an image folder with one sub-folder per class (``train/cat/1.png`` or ``cat/1.png``), or with a table of labels
beside its pictures (``metadata.jsonl``, ``metadata.csv``).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semu_diffusion.errors import InputError
from semu_diffusion.models.hub import folder_or_snapshot
from semu_diffusion.names.words import match_names
from semu_diffusion.pipelines.cli.progress import bar
from semu_diffusion.pipelines.data.findings import Findings, Note, to_stderr
from semu_diffusion.pipelines.data.folders import NoSplit, class_folders, data_root, picture_bytes, picture_files
from semu_diffusion.pipelines.data.metadata import listed_above, listed_classes
from semu_diffusion.pipelines.data.pictures import SUFFIXES, as_rgb, decoded
from semu_diffusion.pipelines.data.tables import parquet_files, read_tables

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["ImageSet", "load_images", "load_plain_images", "spread", "to_stderr"]

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class ImageSet:
    """Labelled images in memory: uint8 ``images`` (N, C, H, W) with C = 1 or 3, int64 ``labels`` (N,).

    ``fingerprint`` is the Hub commit, or the SHA-256 over the pixels and labels in order; ``found`` says in one line what was
    read, skipped and changed.
    """

    images: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]
    source: str
    fingerprint: str
    found: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> Shape:
        """(channels, height, width) of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def of_class(self, index: int) -> torch.Tensor:
        """The uint8 images (n, C, H, W) of one class, in the data set's order."""
        return self.images[self.labels == index]


def spread(total: int, count: int) -> list[int]:
    """Indices of ``count`` of ``total`` images, or of all, evenly spaced: folders come sorted by class."""
    count = min(count, total)
    return [index * total // count for index in range(count)]


def load_images(source: str | Path, split: str = "train", note: Note | None = None, labelled: bool = True) -> ImageSet:
    """Read the ``split`` of a data set: a folder (parquet, one folder per class, or a table) or a Hub id ``owner/name``.

    Grey among colour is read as RGB. Without ``labelled`` a parquet file may do without labels. ``note`` gets one line of what
    was found, skipped and changed. Raises InputError, one line, for a source, split or image that cannot be read, and for
    images of several sizes.
    """
    findings = Findings()
    folder, revision = _local_folder(str(source), split)
    parquet = parquet_files(folder, split)
    if parquet:
        pictures, labels, names = read_tables(parquet, folder, revision is None, labelled)
    elif parquet_files(folder, None):
        raise NoSplit(f"{source} has no parquet file of the split {split!r} (expected {split}-*.parquet)")
    else:
        pictures, labels, names = _from_class_folders(folder, split, str(source), findings)
    found = _image_set(_pixels(pictures, findings), labels, names, str(source), revision, findings)
    counts = {name: int((found.labels == index).sum()) for index, name in enumerate(found.class_names)}
    found = dataclasses.replace(found, found=findings.line(str(source), len(found), counts))
    if note is not None:
        note(found.found)
    return found


def load_plain_images(
    source: str | Path, image_shape: Shape, names: Sequence[str] = (), note: Note | None = None
) -> torch.Tensor:
    """All images of a folder (searched recursively) or of a data set's train split, without their labels.

    With ``names``, of a folder of several folders or a data set of several classes only the one called so, in any writing.
    Returns float32 (N, C, H, W) in [-1, 1], files in the order of their paths; ``note`` as `load_images`. Raises InputError
    for an empty folder, an unreadable file, folders of which none has the name, and images whose size or channel count is
    not ``image_shape`` = (C, H, W).
    """
    import torch

    findings = Findings()
    folder = Path(source).expanduser()
    files = _plain_files(folder, names, findings) if folder.is_dir() and not parquet_files(folder, None) else []
    if files:
        pixels = _pixels([(str(path), path) for path in files], findings)
        if image_shape[0] == 3 and any(len(image) == 3 for image in pixels):
            pixels = _all_rgb(pixels, findings)
        for path, image in zip(files, pixels, strict=True):
            _require_shape(str(path), _shape(image), image_shape)
        images = torch.from_numpy(_stacked(pixels, str(source)))
    elif folder.is_dir() and not parquet_files(folder, None):
        skipped = f"; {findings.left_out}" if findings.skipped else ""
        raise InputError(f"{source} holds no images (looked for {', '.join(SUFFIXES)} in it and below{skipped})")
    else:
        images = _of_one_class(load_images(source, labelled=False), names, findings)
        _require_shape(str(source), _shape(images[0]), image_shape)
    if note is not None:
        note(findings.line(str(source), len(images)))
    return images.float().div(127.5).sub(1)


def _plain_files(folder: Path, names: Sequence[str], findings: Findings) -> list[Path]:
    root, _ = data_root(folder, "train", findings)
    if not names:
        return picture_files(root, findings)
    aside = Findings()
    listed = listed_classes(root)
    classes = listed or class_folders(root, aside)
    if not classes and root != folder:
        classes = listed = listed_above(root)
    if len(classes) < 2:
        return picture_files(root, findings)
    chosen = _one_of(str(folder), tuple(classes), names)
    findings.skipped.update(aside.skipped)
    what = f"{chosen!r} of {len(classes)} classes in its table" if listed else f"{chosen}/ of {len(classes)} folders"
    findings.remarks.append(f"read {what}")
    return classes[chosen]


def _of_one_class(data: ImageSet, names: Sequence[str], findings: Findings) -> torch.Tensor:
    present = [index for index in range(len(data.class_names)) if bool((data.labels == index).any())]
    if not names or len(present) < 2:
        return data.images
    chosen = _one_of(data.source, tuple(data.class_names[index] for index in present), names)
    findings.remarks.append(f"of its class {chosen!r} alone")
    return data.of_class(data.class_names.index(chosen))


def _one_of(source: str, present: Sequence[str], names: Sequence[str]) -> str:
    meant = [name for name, found in zip(present, match_names(present, names), strict=True) if found is not None]
    if len(meant) != 1:
        shown = ", ".join(present[:6]) + (", …" if len(present) > 6 else "")
        raise InputError(
            f"{source} holds the images of several classes ({shown}), and {'none' if not meant else 'more than one'} of them "
            f"is called {' or '.join(map(repr, names[:3]))}: name the folder of the one that is meant"
        )
    return meant[0]


def _require_shape(what: str, found: Shape, wanted: Shape) -> None:
    if found != wanted:
        kinds = {1: "grey", 3: "RGB"}
        one, other = (f"{w}x{h} {kinds.get(c, f'{c}-channel')}" for c, h, w in (found, wanted))
        raise InputError(f"{what} is {one}, but the model makes {other} images; convert the images first")


def _local_folder(source: str, split: str) -> tuple[Path, str | None]:
    """Folder of a local path or of a Hub snapshot (only the split's files), and the commit of the latter."""
    takes = "a data set is a folder or a Hub id"
    folder, revision = folder_or_snapshot(source, takes, [f"*{split}*.parquet"], "dataset", ownerless=True)
    if revision is not None and not any(folder.rglob("*.parquet")):
        raise NoSplit(f"{source} has no parquet files of the split {split!r} on the Hub; download it and name its folder")
    return folder, revision


def _from_class_folders(
    folder: Path, split: str, source: str, findings: Findings
) -> tuple[list[tuple[str, Any]], list[int], tuple[str, ...]]:
    root, of_split = data_root(folder, split, findings)
    if not of_split and split != "train":
        raise NoSplit(f"{source} has no split {split!r}: neither {split}-*.parquet nor a folder {split}/")
    classes = listed_classes(root) or class_folders(root, findings) or (listed_above(root) if of_split else {})
    if not classes:
        raise InputError(f"{source} is no data set: neither parquet files nor one folder of images per class")
    pictures = [(str(path), path) for files in classes.values() for path in files]
    return pictures, [index for index, files in enumerate(classes.values()) for _ in files], tuple(classes)


def _pixels(pictures: Sequence[tuple[str, Any]], findings: Findings) -> list[np.ndarray]:
    """(C, H, W) uint8 of every picture, given as (what it is, its bytes or its file)."""
    return [
        decoded(picture_bytes(content) if isinstance(content, Path) else content, what, findings)
        for what, content in bar("reading images", pictures)
    ]


def _all_rgb(pixels: list[np.ndarray], findings: Findings) -> list[np.ndarray]:
    grey = sum(len(image) == 1 for image in pixels)
    if grey:
        findings.changed["grey among colour, read as RGB"] += grey
    return [as_rgb(image) for image in pixels]


def _shape(image: Any) -> Shape:
    channels, height, width = image.shape
    return channels, height, width


def _stacked(pixels: list[np.ndarray], source: str) -> np.ndarray:
    import numpy as np

    sizes = sorted({_shape(image)[1:] for image in pixels})
    if len(sizes) > 1:
        some = " and ".join(f"{width}x{height}" for height, width in sizes[:2])
        raise InputError(f"{source} mixes images of several sizes ({some}); make them equal first")
    return np.stack(pixels)


def _image_set(
    pixels: list[np.ndarray], labels: list[int], names: tuple[str, ...], source: str, revision: str | None, findings: Findings
) -> ImageSet:
    import torch

    if not pixels:
        raise InputError(f"{source} holds no images")
    if len({len(image) for image in pixels}) > 1:
        pixels = _all_rgb(pixels, findings)
    stacked = _stacked(pixels, source)
    names = names or tuple(str(index) for index in range(max(labels) + 1))
    if min(labels) < 0 or max(labels) >= len(names):
        raise InputError(f"{source} has labels from {min(labels)} to {max(labels)}, but {len(names)} class names")
    if revision is None:
        digest = hashlib.sha256(stacked.tobytes())
        digest.update(torch.tensor(labels).numpy().tobytes())
        revision = digest.hexdigest()
    return ImageSet(torch.from_numpy(stacked), torch.tensor(labels), names, source, revision)
