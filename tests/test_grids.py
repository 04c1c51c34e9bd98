"""Grids: the pictures that were given, enlarged without smoothing, the erased row marked, nothing silently
dropped.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semu_diffusion.errors import InputError
from semu_diffusion.eval.results import Evaluation, Protocol, Scores, SideEffects
from semu_diffusion.pipelines.report import grid as grids
from semu_diffusion.pipelines.report.grid import before_after, contact_sheet, make_grid, save_png
from semu_diffusion.pipelines.report.mark import replaceable

RED = (0xCF, 0x22, 0x2E)


def flat(value: float, count: int = 2, channels: int = 3, size: int = 8) -> torch.Tensor:
    return torch.full((count, channels, size, size), value)


def has(image: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.asarray(image) == colour).all(-1)


def test_only_the_erased_row_is_marked() -> None:
    rows = {"cat": flat(0.1), "dog": flat(0.2), "fish": flat(0.3)}
    grid = make_grid(rows, rows, ["dog"])
    marked = np.flatnonzero(has(grid, RED).any(1))
    shown = {name: np.flatnonzero(has(grid, (level,) * 3).any(1)) for name, level in zip(rows, (26, 51, 76), strict=True)}
    assert marked.min() < shown["dog"].min()
    assert marked.max() > shown["dog"].max()
    assert marked.min() > shown["cat"].max()
    assert marked.max() < shown["fish"].min()
    assert not has(make_grid(rows, rows, []), RED).any()


def test_before_is_left_and_after_is_right() -> None:
    grid = make_grid({"cat": flat(0.1)}, {"cat": flat(0.2)}, ["cat"])
    left, right = np.flatnonzero(has(grid, (26,) * 3).any(0)), np.flatnonzero(has(grid, (51,) * 3).any(0))
    assert left.max() < right.min()
    assert left.max() - left.min() == right.max() - right.min()


@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_is_shown_enlarged_and_unsmoothed(channels: int) -> None:
    levels = (torch.arange(64 * channels).view(1, channels, 8, 8) + 20) / 255
    grid = np.asarray(contact_sheet({"cat": levels}))
    found = {tuple(int(v) for v in pixel) for pixel in np.unique(grid.reshape(-1, 3), axis=0)}
    first = (20, 20, 20) if channels == 1 else (20, 84, 148)
    assert first in found
    where = np.argwhere((grid == first).all(-1))
    factor = 12
    assert len(where) == factor * factor
    top, left = where[0]
    block = grid[top : top + 8 * factor, left : left + 8 * factor][factor // 2 :: factor, factor // 2 :: factor]
    expected = levels[0].mul(255).round().permute(1, 2, 0).expand(8, 8, 3).numpy()
    assert np.array_equal(block, expected)


@pytest.mark.parametrize(("side", "shown"), [(8, 96), (28, 112), (32, 96), (64, 128), (128, 128), (512, 192)])
def test_pictures_are_large_enough_to_see_and_small_enough_to_print(side: int, shown: int) -> None:
    sheet = contact_sheet({"cat": flat(0.1, count=1, size=side)})
    assert has(sheet, (26,) * 3).any(0).sum() == shown


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], list[str], int, str]]:
    """(rows, rows marked as erased, images of the first, caption) of every grid that is drawn."""
    found: list[tuple[list[str], list[str], int, str]] = []
    draw = grids._draw

    def recording(names: list[str], blocks: list, forgotten: list[str], caption: str) -> Image.Image:
        found.append((list(names), list(forgotten), len(blocks[0][1][names[0]]), caption))
        return draw(names, blocks, forgotten, caption)

    monkeypatch.setattr(grids, "_draw", recording)
    return found


def evaluation(forget: list[str], own: list[str], other: list[str], erased: tuple[str, ...] = ("cat",)) -> Evaluation:
    conditions = {"forget": tuple(forget), "in_domain": tuple(own), "cross_domain": tuple(other)}
    scores = Scores(forget_accuracy=0.9, in_domain_accuracy=0.8)
    protocol = Protocol(0, "DDIM", 50, 3.0, 10, 10, conditions)
    return Evaluation("class", erased, protocol, scores, scores, SideEffects({"mse": 0.1, "ssim": 0.9}))


def test_the_picture_of_an_evaluation_shows_every_class_of_ten_and_its_numbers(drawn: list) -> None:
    kept = [f"class {i}" for i in range(9)]
    samples = {name: flat(0.1, count=10) for name in ("cat", *kept, "")}
    before_after(evaluation(["cat"], kept, []), samples, samples)
    names, forgotten, images, caption = drawn[0]
    assert (names, forgotten, images) == (["cat", *kept], ["cat"], 8)
    assert "DDIM 50 steps · w = 3" in caption
    assert "erased, judged right: 90% to 90%" in caption
    assert "SSIM of what is kept 0.90" in caption
    before_after(evaluation(["cat"], kept, []), samples, samples, images=3)
    assert drawn[1][2] == 3


def test_of_many_prompts_both_domains_are_shown_and_the_rest_is_counted(drawn: list) -> None:
    groups = {kind: [f"{kind} {i}" for i in range(20)] for kind in ("forget", "own", "other")}
    samples = {name: flat(0.1, count=8, size=96) for names in groups.values() for name in names}
    before_after(evaluation(groups["forget"], groups["own"], groups["other"]), samples, samples)
    names, forgotten, images, caption = drawn[0]
    assert len(names) == 12
    assert images == 6  # of large ones fewer fit
    assert len(forgotten) == len([name for name in names if name.startswith("forget")]) == 4
    assert len([name for name in names if name.startswith("own")]) == 4
    assert "32 more kept conditions not shown" in caption
    several = tuple(f"forget {i}" for i in range(6))
    before_after(evaluation(list(several), groups["own"], [], several), samples, samples)
    assert drawn[1][1] == list(several)  # everything that was erased


def test_a_model_without_conditions_is_shown_in_one_row(drawn: list) -> None:
    samples = {"": flat(0.1, count=40)}
    before_after(evaluation([], [], []), samples, samples)
    assert drawn[0][:3] == ([""], [], 32)


def test_a_long_caption_and_a_long_name_stay_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"an extraordinarily long name of a class that nobody reads": flat(0.1, count=1)}
    short = contact_sheet(rows)
    long = contact_sheet(rows, "DDIM 50 steps, guidance 3, the same seeds left and right, " * 3)
    assert long.width == short.width < 600
    assert long.height > short.height
    ink = (np.asarray(long) != 255).any(-1)
    assert not ink[:, :10].any()
    assert not ink[:, -10:].any()
    assert not ink[-5:].any()


def test_pictures_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(InputError, match="same classes"):
        make_grid({"cat": flat(0.1)}, {"dog": flat(0.1)}, ["cat"])
    with pytest.raises(InputError, match="as many images"):
        make_grid({"cat": flat(0.1)}, {"cat": flat(0.1, count=3)}, ["cat"])
    with pytest.raises(InputError, match="fish"):
        make_grid({"cat": flat(0.1)}, {"cat": flat(0.1)}, ["fish"])
    with pytest.raises(InputError, match="one size"):
        contact_sheet({"cat": flat(0.1), "dog": flat(0.1, size=9)})
    with pytest.raises(InputError, match="at least one"):
        contact_sheet({})
    with pytest.raises(InputError, match="at least one image"):
        contact_sheet({"cat": flat(0.1, count=0)})


def test_a_saved_picture_is_whole_and_nothing_is_left_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sheet = contact_sheet({"cat": flat(0.1)})
    path = save_png(sheet, tmp_path / "run" / "grid.png")
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(sheet))
    kept = path.read_bytes()

    def half(self: Image.Image, place: Path, **_: object) -> None:
        place.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="no space"):
        save_png(sheet, path)
    assert path.read_bytes() == kept
    assert [file.name for file in path.parent.iterdir()] == ["grid.png"]


def test_a_pipe_is_never_read_for_the_mark(tmp_path: Path) -> None:
    """As --output /dev/stdout before ``| less``, which would wait for ever."""
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="is no file, but a device or a pipe"):
        replaceable(tmp_path / "pipe.png")
