"""Promises of the picture reader: what cameras, scanners, archives and notebooks leave is read rightly, and it is said."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageCms, ImageOps
from tiny_models import NAMES, tiny_model

from semu_diffusion.errors import InputError
from semu_diffusion.pipelines.data import folders
from semu_diffusion.pipelines.data.findings import Findings
from semu_diffusion.pipelines.data.images import load_images, load_plain_images
from semu_diffusion.pipelines.data.pictures import decoded
from semu_diffusion.pipelines.runs.inputs import forget_images, retain_images

SHAPE = (3, 8, 8)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def read(content: bytes) -> tuple[np.ndarray, str]:
    findings = Findings()
    return decoded(content, "it", findings), findings.line("it", 1)


def plain(value: Any = (200, 40, 0), size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, value)


def put(folder: Path, name: str, image: Image.Image | None = None) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (plain() if image is None else image).save(path)
    return path


def png_of_16_bits(rgb: tuple[int, int, int], side: int = 8) -> bytes:
    """Pillow cannot write these."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + struct.pack(">3H", *rgb) * side for _ in range(side))
    head = struct.pack(">IIBBBBB", side, side, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# ------------------------------------------------------------------ one picture


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_upright_as_its_exif_says(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    content = encoded(image, exif=exif)
    pixels, said = read(content)
    assert np.array_equal(pixels.transpose(1, 2, 0), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content)))))
    assert ("upright" in said) is (orientation != 1)


def test_sixteen_bits_are_read_as_eight_without_turning_white() -> None:
    ramp = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    expected = (ramp / 257).round()
    for form in ("PNG", "TIFF"):
        pixels, said = read(encoded(Image.fromarray(ramp), form))
        assert pixels.shape == (1, 16, 16)
        assert np.abs(pixels[0] - expected).max() <= 1
        assert "16 bits, read as 8" in said
    pixels, said = read(png_of_16_bits((51400, 10280, 0)))
    assert pixels[:, 0, 0].tolist() == [200, 40, 0]
    assert "16 bits" in said


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.full((4, 4), 0.5, np.float32), 128),
        (np.full((4, 4), 128.0, np.float32), 128),
        (np.full((4, 4), 128, np.int32), 128),
        (np.full((4, 4), 32896, np.int32), 128),
    ],
)
def test_floats_and_wide_integers_keep_their_grey(values: np.ndarray, expected: int) -> None:
    assert int(read(encoded(Image.fromarray(values), "TIFF"))[0][0, 0, 0]) == expected


@pytest.mark.parametrize("value", [-1.0, 70000.0, float("nan")])
def test_values_of_no_known_scale_are_refused(value: float) -> None:
    with pytest.raises(InputError, match=r"it has values from .* no known scale"):
        read(encoded(Image.fromarray(np.full((4, 4), value, np.float32)), "TIFF"))


def test_transparency_is_laid_on_white_and_said() -> None:
    half = plain((0, 0, 0, 0), mode="RGBA")
    pixels, said = read(encoded(half))
    assert (pixels == 255).all()
    assert "1 with transparency, laid on white" in said
    assert "transparency" not in read(encoded(plain((9, 9, 9, 255), mode="RGBA")))[1]
    grey, _ = read(encoded(plain((0, 0), mode="LA")))
    assert grey.shape == (1, 8, 8)
    assert (grey == 255).all()
    palette = plain().convert("P", palette=Image.Palette.ADAPTIVE)
    keyed, _ = read(encoded(palette, transparency=palette.getpixel((0, 0))))
    assert (keyed == 255).all()
    assert (read(encoded(plain(), transparency=(200, 40, 0)))[0] == 255).all()


@pytest.mark.parametrize(
    ("mode", "form", "channels"),
    [
        ("1", "PNG", 1), ("L", "PNG", 1), ("LA", "PNG", 1), ("P", "PNG", 3), ("RGBA", "PNG", 3), ("CMYK", "JPEG", 3),
        ("CMYK", "TIFF", 3), ("YCbCr", "JPEG", 3), ("P", "GIF", 3), ("RGB", "TIFF", 3), ("RGB", "BMP", 3), ("RGB", "WEBP", 3),
        ("LAB", "TIFF", 3),
    ],
)  # fmt: skip
def test_every_mode_is_grey_or_rgb_in_its_colours(mode: str, form: str, channels: int) -> None:
    if mode == "LAB":
        image = plain((128, 128, 128), mode="LAB")
        expected = [image.convert("RGB").getpixel((0, 0))[i] for i in range(3)]  # type: ignore[index]
    else:
        image = plain().convert(mode)
        expected = list(image.convert("RGB").getpixel((0, 0)))  # type: ignore[arg-type]
    pixels, _ = read(encoded(image, form))
    assert pixels.shape == (channels, 8, 8)
    assert np.abs(pixels[:, 4, 4].astype(int) - expected[:channels]).max() < 12


def test_the_first_of_several_frames_is_taken_and_said() -> None:
    for form in ("GIF", "TIFF", "WEBP"):
        content = encoded(plain((255, 0, 0)), form, save_all=True, append_images=[plain((0, 0, 255))])
        pixels, said = read(content)
        assert pixels[0].mean() > 200 > 50 > pixels[2].mean()
        assert "several frames, of which the first is taken" in said


def wide_gamut() -> bytes:
    """The profile of Display P3, by its primaries and a power of 2.2."""

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(number, values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + b"\0\0"
    said = b"Display P3\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(said)) + said + bytes(81), b"wtpt": xyz(0.9642, 1, 0.8249),
        b"rXYZ": xyz(0.5151, 0.2412, -0.0011), b"gXYZ": xyz(0.2920, 0.6922, 0.0419), b"bXYZ": xyz(0.1571, 0.0666, 0.7841),
        b"rTRC": curve, b"gTRC": curve, b"bTRC": curve,
    }  # fmt: skip
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    head = struct.pack(
        ">I4sI4s4s4s12x4s28x", 128 + len(table) + len(body), b"\0" * 4, 0x02100000, b"mntr", b"RGB ", b"XYZ ", b"acsp"
    )
    white = number(0.9642) + number(1) + number(0.8249)
    return (head + white).ljust(128, b"\0") + table + body


def test_the_colours_of_a_phone_are_those_that_one_sees() -> None:
    pixels, said = read(encoded(plain((200, 40, 0)), icc_profile=wide_gamut()))
    assert np.abs(pixels[:, 0, 0].astype(int) - (218, 0, 0)).max() <= 4  # as Display P3 is defined
    assert "1 of another colour profile, turned into sRGB" in said
    grey, _ = read(encoded(plain((128, 128, 128)), icc_profile=wide_gamut()))
    assert np.abs(grey.astype(int) - 128).max() <= 3
    usual = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (usual, b"broken" * 30):
        pixels, said = read(encoded(plain((200, 40, 0)), icc_profile=profile))
        assert pixels[:, 0, 0].tolist() == [200, 40, 0]
        assert "profile" not in said


def test_whatever_a_decoder_raises_is_one_line_that_names_the_file() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    content = encoded(noise, "GIF", save_all=True, append_images=[noise.rotate(90)])
    draw = np.random.default_rng(0)
    for _ in range(150):
        broken = bytearray(content)
        for place in draw.integers(0, 200, 3):
            broken[place] = int(draw.integers(0, 256))
        with suppress(InputError):  # anything else is a failure
            read(bytes(broken))


def test_a_picture_of_a_12_bit_camera_is_said_to_be_dark() -> None:
    said = read(encoded(Image.fromarray(np.linspace(0, 4095, 64).reshape(8, 8).astype(np.uint16)), "TIFF"))[1]
    assert "1 nearly black, as values of a 12-bit camera" in said
    assert "black" not in read(encoded(Image.fromarray(np.full((8, 8), 60000, np.uint16)), "TIFF"))[1]
    big = Image.fromarray(np.full((8, 8), 60000, ">u2"), "I;16B")
    assert read(encoded(big, "TIFF"))[0][0, 0, 0] == 233  # of 65,535


# ------------------------------------------------------------------ folders


def messy(folder: Path) -> Path:
    for name in ("cat/0.png", "cat/1.PNG", "dog/0.jpg", "cat/.ipynb_checkpoints/0.png", ".ipynb_checkpoints/9.png"):
        put(folder, name)
    put(folder, "__MACOSX/cat/0.png")
    (folder / "cat" / "._0.png").write_bytes(b"\x00\x05\x16\x07" + bytes(60))
    (folder / "cat" / "Thumbs.db").write_bytes(b"x")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "dog" / "0.txt").write_text("a caption")
    return folder


def test_what_systems_and_programs_leave_is_no_picture_and_no_class(tmp_path: Path) -> None:
    lines: list[str] = []
    data = load_images(messy(tmp_path / "data"), note=lines.append)
    assert (data.class_names, data.labels.tolist()) == (("cat", "dog"), [0, 0, 1])
    assert len(load_plain_images(tmp_path / "data", SHAPE)) == 3
    (line,) = lines
    assert "3 images of 2 classes (cat 2, dog 1)" in line
    assert "hidden" in line
    assert "1 of .txt" in line


def test_a_reader_that_nobody_listens_to_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_images(messy(tmp_path / "data"))
    assert capsys.readouterr() == ("", "")


PARTS = [("Training", "Testing"), ("TRAIN", "val"), ("training_set", "test_set"), ("train", "Valid")]


@pytest.mark.parametrize(("train", "test"), PARTS)
def test_parts_of_the_data_are_known_in_any_writing(tmp_path: Path, train: str, test: str) -> None:
    for part, count in ((train, 2), (test, 1)):
        for name in ("cat", "dog"):
            for index in range(count):
                put(tmp_path, f"archive/{part}/{name}/{index}.png")
    lines: list[str] = []
    data = load_images(tmp_path, note=lines.append)  # below the archive's own folder
    assert (data.class_names, len(data)) == (("cat", "dog"), 4)
    assert f"read {train}/ alone" in lines[0]
    assert len(load_plain_images(tmp_path, SHAPE)) == 4
    other = "test" if "est" in test else "validation"
    assert len(load_images(tmp_path, other)) == 2
    with pytest.raises(InputError, match="no split"):
        load_images(tmp_path, "validation" if other == "test" else "test")


def test_a_class_that_may_be_a_part_of_the_data_is_asked_for(tmp_path: Path) -> None:
    for name in ("cat", "dog", "test"):
        put(tmp_path, f"{name}/0.png")
    with pytest.raises(InputError, match="test/ stands beside cat, dog"):
        load_images(tmp_path)


def test_pictures_of_trains_beside_those_of_buses_are_a_class(tmp_path: Path) -> None:
    for value, name in enumerate(("bus", "car", "train")):
        put(tmp_path, f"{name}/0.png", plain((value, value, value)))
    assert load_images(tmp_path).class_names == ("bus", "car", "train")
    images = load_plain_images(tmp_path, SHAPE, ("bus",))
    assert images.eq(-1).all()
    assert len(images) == 1


def test_the_data_to_train_on_is_no_class_beside_what_is_none(tmp_path: Path) -> None:
    put(tmp_path, "train/0.png")
    (tmp_path / "annotations").mkdir()
    assert len(load_plain_images(tmp_path, SHAPE, ("cat",))) == 1
    put(tmp_path, "masks/0.png")
    (tmp_path / "annotations").rmdir()
    with pytest.raises(InputError, match="is train/ a class beside masks/, or the data to train on"):
        load_plain_images(tmp_path, SHAPE, ("cat",))


def test_a_table_of_something_else_is_left_alone_and_a_picture_may_be_a_link(tmp_path: Path) -> None:
    for value, name in enumerate(("cat", "dog")):
        put(tmp_path / "data", f"{name}/0.png", plain((value, 0, 0)))
    table = tmp_path / "data" / "metadata.csv"
    for content in (b"filepath,label\n0.png,x\n", b"caf\xe9,x\n", b"file_name\n0.png\n"):
        table.write_bytes(content)
        assert load_images(tmp_path / "data").class_names == ("cat", "dog")
    links = tmp_path / "links"
    links.mkdir()
    for name in ("cat", "dog"):
        (links / f"{name}.png").symlink_to(tmp_path / "data" / name / "0.png")
    (links / "metadata.csv").write_text("file_name,label\ncat.png, cat \ndog.png,dog\n")
    assert load_images(links).class_names == ("cat", "dog")
    (links / "metadata.jsonl").write_text("[" * 100_000)
    with pytest.raises(InputError, match="no readable table"):
        load_images(links)


def test_a_table_beside_the_pictures_says_their_classes(tmp_path: Path) -> None:
    for index in range(4):
        put(tmp_path, f"train/{index}.png", plain((index, 0, 0)))
    rows = [{"file_name": f"{index}.png", "label": ("dog", "cat")[index % 2]} for index in range(4)]
    table = tmp_path / "train" / "metadata.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    data = load_images(tmp_path)
    assert (data.class_names, data.images[:, 0, 0, 0].tolist()) == (("cat", "dog"), [1, 3, 0, 2])
    assert len(load_plain_images(tmp_path, SHAPE, ("cats",))) == 2
    table.unlink()
    (tmp_path / "train" / "metadata.csv").write_text("\ufefffile_name,label\n0.png,10\n1.png,9\n")
    assert load_images(tmp_path).class_names == ("9", "10")
    for broken, said in (
        ("7.png,1", "no file 7.png"), ("../x.png,1", "no file"), ("0.png,", "a whole number or a word"),
        ("0.png,  ", "a whole number or a word"), (f'"a\n{"b" * 5000}",1', "no file a b{98} in its folder"),
    ):  # fmt: skip
        (tmp_path / "train" / "metadata.csv").write_text(f"file_name,label\n{broken}\n")
        with pytest.raises(InputError, match=said) as caught:
            load_images(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "table",
    [
        "file_name;label\n0.png;cat\n1.png;dog\n",
        "file_name\tclass\n0.png\tcat\n1.png\tdog\n",
        "Class,file_name\ncat,0.png\ndog,1.png\n",
        "file_name,label\ncafe\\0.png,cat\ncafe\\1.png,dog\n",
    ],
)
def test_a_table_as_other_programs_write_it_tells_the_classes_apart(tmp_path: Path, table: str) -> None:
    """A table that is not understood would leave all pictures to be those of the class to forget."""
    for index in range(2):
        put(tmp_path, f"{'cafe/' if 'cafe' in table else ''}{index}.png", plain((index, 0, 0)))
    (tmp_path / "metadata.csv").write_text(table)
    assert load_images(tmp_path).class_names == ("cat", "dog")
    assert len(load_plain_images(tmp_path, SHAPE, ("cat",))) == 1


def test_a_table_beside_the_folders_of_the_splits_says_the_classes_of_each(tmp_path: Path) -> None:
    for index, split in enumerate(("train", "train", "test")):
        put(tmp_path, f"{split}/{index}.png", plain((index, 0, 0)))
    (tmp_path / "metadata.csv").write_text("file_name,label\ntrain/0.png,cat\ntrain/1.png,dog\ntest/2.png,cat\n")
    assert load_images(tmp_path).images[:, 0, 0, 0].tolist() == [0, 1]
    assert load_images(tmp_path, "test").class_names == ("cat",)
    assert len(load_plain_images(tmp_path, SHAPE, ("cat",))) == 1


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["cat", "cat ", "caf\u00e9", "cafe\u0301"], ("caf\u00e9", "cat"), [1, 1, 0, 0]),
        ([0.0, 1.0, 0.0, 1.0], ("0", "1"), [0, 1, 0, 1]),
        ([True, False, True, False], ("False", "True"), [1, 0, 1, 0]),
    ],
)
def test_labels_of_one_class_are_one_however_a_table_holds_them(
    tmp_path: Path, labels: list[Any], names: tuple[str, ...], numbers: list[int]
) -> None:
    write_table(tmp_path / "train.parquet", [encoded(plain())] * 4, labels)
    data = load_images(tmp_path)
    assert (data.class_names, data.labels.tolist()) == (names, numbers)
    write_table(tmp_path / "train.parquet", [encoded(plain())] * 2, ["cat", " "])
    with pytest.raises(InputError, match="a whole number or a word for every image"):
        load_images(tmp_path)
    write_table(tmp_path / "train.parquet", ["iVBORw0KGgo" * 1000], ["cat"])
    with pytest.raises(InputError, match="no such file iVBORw0KGgo") as caught:
        load_images(tmp_path)
    assert len(str(caught.value)) < 600


def test_whole_numbers_in_a_table_are_numbers_as_pandas_writes_them(tmp_path: Path) -> None:
    for index in range(2):
        put(tmp_path, f"{index}.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\n0.png,10.0\n1.png,9.0\n")
    assert load_images(tmp_path).class_names == ("9", "10")


def test_names_of_folders_are_text_without_blanks_around_them(tmp_path: Path) -> None:
    put(tmp_path, "cat /0.png")
    put(tmp_path, "dog/0.png")
    assert load_images(tmp_path).class_names == ("cat", "dog")
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    put(tmp_path, os.fsdecode(b"caf\xe9/0.png"))
    with pytest.raises(InputError, match="not in UTF-8: rename it"):
        load_images(tmp_path)


def test_formats_of_today_are_pictures_and_others_are_named(tmp_path: Path) -> None:
    (tmp_path / "photo.HEIC").write_bytes(b"x")
    with pytest.raises(InputError, match=r"holds no images .*skipped 1 of \.heic"):
        load_plain_images(tmp_path, SHAPE)
    for suffix in ("avif", "jp2", "ppm", "tga"):
        put(tmp_path, f"0.{suffix}")
    assert len(load_plain_images(tmp_path, SHAPE)) == 4


def test_linked_folders_are_read_and_circles_end(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/0.png")
    put(tmp_path, "data/dog/0.png")
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "dog" / "again").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    data = load_images(tmp_path / "data")
    assert data.class_names == ("cat", "dog")
    lines: list[str] = []
    load_plain_images(tmp_path / "elsewhere", SHAPE, note=lines.append)
    assert lines == [f"{tmp_path / 'elsewhere'}: 1 image"]


def test_names_are_composed_and_one_class_has_one_folder(tmp_path: Path) -> None:
    put(tmp_path, "cafe\u0301/0.png")
    put(tmp_path, "bar/0.png")
    assert load_images(tmp_path).class_names == ("bar", "caf\u00e9")
    put(tmp_path, "Bar/0.png")
    with pytest.raises(InputError, match="mean the same class"):
        load_images(tmp_path)


def test_grey_among_colour_is_read_as_rgb_and_said(tmp_path: Path) -> None:
    put(tmp_path, "cat/0.png")
    put(tmp_path, "dog/0.png", plain(77, mode="L"))
    lines: list[str] = []
    data = load_images(tmp_path, note=lines.append)
    assert data.images[1].eq(77).all()
    assert data.image_shape == SHAPE
    assert "1 grey among colour, read as RGB" in lines[0]
    assert load_plain_images(tmp_path, SHAPE).shape == (2, *SHAPE)


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, "cat/0.png")

    def fail(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied", "x")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with pytest.raises(InputError, match=r"0\.png cannot be read \(Permission denied\)"):
            load_plain_images(tmp_path, SHAPE)
    with monkeypatch.context() as patch:
        patch.setattr(folders.os, "scandir", fail)
        with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)"):
            load_images(tmp_path)
    for content, name in ((b"", "empty.png"), (path.read_bytes()[:40], "cut.png")):
        (tmp_path / "cat" / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            load_plain_images(tmp_path, SHAPE)
        (tmp_path / "cat" / name).unlink()


# ------------------------------------------------------------------ tables


def write_table(path: Path, column: list[Any], labels: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": column, "label": labels}), path)


@pytest.mark.parametrize("entry", [lambda name: name, lambda name: {"bytes": None, "path": name}])
def test_a_table_of_paths_is_read(tmp_path: Path, entry: Any) -> None:
    for index in range(2):
        put(tmp_path, f"files/{index}.png", plain((index, 0, 0)))
    names = ["files/0.png", str(tmp_path / "files" / "1.png")]
    write_table(tmp_path / "train.parquet", [entry(name) for name in names], ["dog", "cat"])
    data = load_images(tmp_path)
    assert (data.class_names, data.labels.tolist()) == (("cat", "dog"), [1, 0])
    assert data.images[:, 0, 0, 0].tolist() == [0, 1]
    write_table(tmp_path / "train.parquet", [entry("files/7.png")], [0])
    with pytest.raises(InputError, match=r"no such file files/7\.png"):
        load_images(tmp_path)


def test_pictures_of_one_kind_need_no_labels(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [encoded(plain())] * 3, "text": ["a", "b", "c"]}), tmp_path / "train.parquet")
    assert len(load_plain_images(tmp_path, SHAPE, ("red",))) == 3
    with pytest.raises(InputError, match="has no column label"):
        load_images(tmp_path)


@pytest.mark.parametrize(
    ("column", "labels", "said"),
    [
        ([[1, 2, 3]], [0], "image 0 of .* is a list, not an encoded picture"),
        ([b"x"], [2_000_000_000], "has the label 2000000000: number its classes from 0"),
        ([None], [0], "image 0 of .* is empty"),
    ],
)
def test_columns_that_hold_something_else_are_named(tmp_path: Path, column: list[Any], labels: list[int], said: str) -> None:
    write_table(tmp_path / "train.parquet", column, labels)
    with pytest.raises(InputError, match=said):
        load_images(tmp_path)


def test_a_table_of_the_hub_reads_no_file_outside_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = put(tmp_path, "home/secret.png")
    snapshot = tmp_path / "snapshots" / "0123"
    write_table(snapshot / "train.parquet", [os.path.relpath(secret, snapshot)], [0])
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(snapshot))
    with pytest.raises(InputError, match="outside of the data set"):
        load_images("someone/else")


# ------------------------------------------------------------------ what an erasure reads


def labelled(folder: Path, *names: str) -> Path:
    for index, name in enumerate(names):
        for number in range(2):
            put(folder, f"{name}/{number}.png", plain((index, index, index)))
    return folder


@pytest.mark.parametrize("folder", ["Red", "red", "reds", "RED"])
def test_only_the_folder_of_the_class_to_forget_is_read(tmp_path: Path, folder: str) -> None:
    labelled(tmp_path, "blue", folder)
    lines: list[str] = []
    images = forget_images(str(tmp_path), tiny_model(), ("red",), lines.append)
    assert images is not None
    assert len(images) == 2
    assert torch.allclose(images, torch.tensor(1 / 127.5 - 1))
    assert f"read {folder}/ of 2 folders" in lines[0]


def test_folders_none_of_which_is_the_class_are_refused(tmp_path: Path) -> None:
    labelled(tmp_path / "data", "blue", "green")
    with pytest.raises(InputError, match=r"several classes \(blue, green\), and none of them is called 'red'"):
        forget_images(str(tmp_path / "data"), tiny_model(), ("red",))
    write_table(tmp_path / "table" / "train.parquet", [encoded(plain())] * 2, ["blue", "green"])
    with pytest.raises(InputError, match="none of them is called 'red'"):
        forget_images(str(tmp_path / "table"), tiny_model(), ("red",))
    write_table(tmp_path / "table" / "train.parquet", [encoded(plain()), encoded(plain((1, 1, 1)))], ["Red", "green"])
    images = forget_images(str(tmp_path / "table"), tiny_model(), ("red",))
    assert images is not None
    assert len(images) == 1
    assert len(load_plain_images(labelled(tmp_path / "one", "whatever"), SHAPE, ("red",))) == 2  # one folder is it


def test_every_kept_class_in_any_writing_is_retained_and_the_rest_is_said(tmp_path: Path) -> None:
    labelled(tmp_path, "Red", "GREEN", "purple")
    lines: list[str] = []
    found = retain_images(str(tmp_path), tiny_model(), ("red",), lines.append)
    assert found is not None
    assert {NAMES[row] for row in found.labels.tolist()} == {"green"}
    assert "the model has no such class: purple" in lines[0]
    assert "no images of the kept blue" in lines[0]
