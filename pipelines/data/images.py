"""Images from disk or from the Hub: labelled data sets, and plain folders of pictures.

Three layouts are read: a Hub id or a folder with parquet files in the Hub's layout (``train-*.parquet``, also below
``data/``), and an image folder with one sub-folder per class (``train/cat/1.png`` or ``cat/1.png``).
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semu_diffusion.errors import InputError
from semu_diffusion.models.hub import folder_or_snapshot

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["ImageSet", "load_images", "load_plain_images", "spread"]

IMAGE_COLUMNS = ("img", "image", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label")
SPLITS = ("train", "test", "validation")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class ImageSet:
    """Labelled images in memory: uint8 ``images`` (N, C, H, W) with C = 1 or 3, int64 ``labels`` (N,).

    ``fingerprint`` is the Hub commit, or the SHA-256 over the pixels and labels in order.
    """

    images: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]
    source: str
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
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


def load_images(source: str | Path, split: str = "train") -> ImageSet:
    """Read the ``split`` of a data set: a folder (parquet or one folder per class) or a Hub id ``owner/name``.

    Raises InputError, one line, for a source, split or image that cannot be read, and for images of several sizes.
    """
    folder, revision = _local_folder(str(source), split)
    parquet = _parquet_files(folder, split)
    if parquet:
        pixels, labels, names = _from_parquet(parquet)
    elif any(folder.rglob("*.parquet")):
        raise InputError(f"{source} has no parquet file of the split {split!r} (expected {split}-*.parquet)")
    else:
        pixels, labels, names = _from_class_folders(folder, split, str(source))
    return _image_set(pixels, labels, names, str(source), revision)


def load_plain_images(source: str | Path, image_shape: tuple[int, int, int]) -> torch.Tensor:
    """All images of a folder (searched recursively; labels are ignored) or of a data set's train split.

    Returns float32 (N, C, H, W) in [-1, 1], files in the order of their paths. Raises InputError for an empty folder, an
    unreadable file, and images whose size or channel count is not ``image_shape`` = (C, H, W).
    """
    import torch

    folder = Path(source).expanduser()
    files = _image_files(folder) if folder.is_dir() else []
    if files:
        pixels = [_decoded(path.read_bytes(), str(path)) for path in _progress(files, "reading images")]
        for path, image in zip(files, pixels, strict=True):
            _require_shape(str(path), _shape(image), image_shape)
        images = torch.from_numpy(_stacked(pixels, str(source)))
    elif folder.is_dir() and not any(folder.rglob("*.parquet")):
        raise InputError(f"{source} holds no images (looked for {', '.join(SUFFIXES)} in it and below)")
    else:
        images = load_images(source).images
        channels, height, width = images.shape[1:]
        _require_shape(str(source), (channels, height, width), image_shape)
    return images.float().div(127.5).sub(1)


def _require_shape(what: str, found: tuple[int, int, int], wanted: tuple[int, int, int]) -> None:
    if found != wanted:
        kinds = {1: "grey", 3: "RGB"}
        one, other = (f"{w}x{h} {kinds.get(c, f'{c}-channel')}" for c, h, w in (found, wanted))
        raise InputError(f"{what} is {one}, but the model makes {other} images; convert the images first")


def _local_folder(source: str, split: str) -> tuple[Path, str | None]:
    """Folder of a local path or of a Hub snapshot (only the split's files), and the commit of the latter."""
    takes = "a data set is a folder or a Hub id"
    folder, revision = folder_or_snapshot(source, takes, [f"*{split}*.parquet"], "dataset", ownerless=True)
    if revision is not None and not any(folder.rglob("*.parquet")):
        raise InputError(f"{source} has no parquet files of the split {split!r} on the Hub; download it and name its folder")
    return folder, revision


def _parquet_files(folder: Path, split: str) -> list[Path]:
    """Files of the split, by their name (``train-00000-of-00001.parquet``, ``train.parquet``) or folder (``train/``).

    The name goes first: ``test/train-0.parquet`` is of the training images.
    """

    def of(path: Path) -> str:
        named = [one for one in SPLITS if path.name.startswith((f"{one}-", f"{one}."))]
        return named[0] if named else path.parent.name

    found = sorted(path for path in folder.rglob("*.parquet") if of(path) == split)
    folders = sorted({str(path.parent.relative_to(folder)) for path in found})
    if len(folders) > 1:
        raise InputError(f"{folder} holds several data sets ({', '.join(folders[:4])}); download it and name one folder")
    return found


def _from_parquet(files: list[Path]) -> tuple[list[np.ndarray], list[int], tuple[str, ...]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pixels: list[np.ndarray] = []
    labels: list[int] = []
    names: tuple[str, ...] = ()
    for path in files:
        try:
            schema = pq.read_schema(path)
            image_column = _column(path, schema.names, IMAGE_COLUMNS)
            label_column = _column(path, schema.names, LABEL_COLUMNS)
            table = pq.read_table(path, columns=[image_column, label_column])
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} is not a readable parquet file ({' '.join(str(error).split())[:150]})") from error
        names = _class_names(schema.metadata, label_column) or names
        if table[label_column].null_count or not pa.types.is_integer(table[label_column].type):
            raise InputError(f"{path}: the column {label_column!r} must hold a whole number for every image")
        labels += table[label_column].to_pylist()
        for row, entry in enumerate(_progress(table[image_column].to_pylist(), f"decoding {path.name}")):
            pixels.append(_decoded(_image_bytes(entry), f"image {row} of {path}"))
    return pixels, labels, names


def _column(path: Path, present: list[str], wanted: tuple[str, ...]) -> str:
    for name in wanted:
        if name in present:
            return name
    raise InputError(f"{path} has no column {' or '.join(wanted)}; it has {', '.join(present)}")


def _class_names(metadata: Mapping[bytes, bytes] | None, column: str) -> tuple[str, ...]:
    """Names from the Hub's schema metadata; () where it has none."""
    try:
        content = json.loads((metadata or {})[b"huggingface"])
        return tuple(str(name) for name in content["info"]["features"][column]["names"])
    except (KeyError, ValueError, TypeError):
        return ()


def _image_bytes(entry: Any) -> bytes | None:
    return entry.get("bytes") if isinstance(entry, dict) else entry if isinstance(entry, bytes) else None


def _from_class_folders(folder: Path, split: str, source: str) -> tuple[list[np.ndarray], list[int], tuple[str, ...]]:
    root = folder / split if (folder / split).is_dir() else folder
    if root == folder and split != "train":
        raise InputError(f"{source} has no split {split!r}: neither {split}-*.parquet nor a folder {split}/")
    classes = sorted(path for path in root.iterdir() if path.is_dir() and _image_files(path))
    if not classes:
        raise InputError(f"{source} is no data set: neither parquet files nor one folder of images per class")
    pairs = [(path, index) for index, sub in enumerate(classes) for path in _image_files(sub)]
    pixels = [_decoded(path.read_bytes(), str(path)) for path, _ in _progress(pairs, "reading images")]
    return pixels, [index for _, index in pairs], tuple(sub.name for sub in classes)


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _decoded(content: bytes | None, what: str) -> np.ndarray:
    """Encoded image -> uint8 (C, H, W): grey stays one channel, everything else becomes RGB."""
    import numpy as np
    from PIL import Image

    if not content:
        raise InputError(f"{what} is empty")
    try:
        with Image.open(io.BytesIO(content)) as image:
            array = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{what} cannot be read as an image ({type(error).__name__})") from error
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _shape(image: np.ndarray) -> tuple[int, int, int]:
    channels, height, width = image.shape
    return channels, height, width


def _stacked(pixels: list[np.ndarray], source: str) -> np.ndarray:
    import numpy as np

    shapes = {_shape(image) for image in pixels}
    if len(shapes) > 1:
        some = " and ".join(f"{w}x{h} with {c} channels" for c, h, w in sorted(shapes)[:2])
        raise InputError(f"{source} mixes images of several sizes ({some}); make them equal first")
    return np.stack(pixels)


def _image_set(
    pixels: list[np.ndarray], labels: list[int], names: tuple[str, ...], source: str, revision: str | None
) -> ImageSet:
    import torch

    if not pixels:
        raise InputError(f"{source} holds no images")
    stacked = _stacked(pixels, source)
    names = names or tuple(str(index) for index in range(max(labels) + 1))
    if min(labels) < 0 or max(labels) >= len(names):
        raise InputError(f"{source} has labels from {min(labels)} to {max(labels)}, but {len(names)} class names")
    if revision is None:
        digest = hashlib.sha256(stacked.tobytes())
        digest.update(torch.tensor(labels).numpy().tobytes())
        revision = digest.hexdigest()
    return ImageSet(torch.from_numpy(stacked), torch.tensor(labels), names, source, revision)


def _progress(items: Iterable[Any], what: str) -> Iterator[Any]:
    from tqdm import tqdm

    return iter(tqdm(items, desc=what, disable=not sys.stderr.isatty(), leave=False))
