"""Promises of the data set loader: every layout gives the same images, and bad input is named in one line."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from semu_diffusion.errors import InputError
from semu_diffusion.pipelines.data.images import load_images, load_plain_images, spread

NAMES = ("ant", "bee", "cow")


def pictures(count: int = 6, size: int = 8, grey: bool = False) -> np.ndarray:
    shape = (count, size, size) if grey else (count, size, size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def encoded(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def write_parquet(path: Path, arrays: np.ndarray, labels: list[int], column: str = "img", named: bool = True) -> None:
    images = [{"bytes": encoded(array), "path": None} for array in arrays]
    table = pa.table({column: images, "label": pa.array(labels, pa.int64())})
    if named:
        features = {"info": {"features": {"label": {"names": list(NAMES), "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def test_all_layouts_give_the_same_images(tmp_path: Path) -> None:
    arrays, labels = pictures(), [0, 0, 1, 1, 2, 2]
    write_parquet(tmp_path / "flat" / "train-00000-of-00001.parquet", arrays, labels)
    for part in range(2):
        file = tmp_path / "deep" / "data" / f"train-0000{part}-of-00002.parquet"
        write_parquet(file, arrays[3 * part : 3 * part + 3], labels[3 * part : 3 * part + 3], column="image")
    for index, (array, label) in enumerate(zip(arrays, labels, strict=True)):
        file = tmp_path / "classes" / NAMES[label] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(array))
    flat, deep, classes = (load_images(tmp_path / name) for name in ("flat", "deep", "classes"))
    assert torch.equal(flat.images, torch.from_numpy(arrays).permute(0, 3, 1, 2))
    for other in (deep, classes):
        assert torch.equal(flat.images, other.images)
        assert torch.equal(flat.labels, other.labels)
        assert flat.fingerprint == other.fingerprint
        assert other.class_names == NAMES
    assert flat.image_shape == (3, 8, 8)
    assert torch.equal(flat.of_class(1), flat.images[2:4])


def test_the_split_is_the_one_asked_for(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", pictures(4), [0, 1, 2, 0])
    write_parquet(tmp_path / "test-0.parquet", pictures(2), [2, 1])
    assert len(load_images(tmp_path)) == 4
    assert load_images(tmp_path, "test").labels.tolist() == [2, 1]
    with pytest.raises(InputError, match="validation"):
        load_images(tmp_path, "validation")


def test_a_hub_id_is_read_from_its_snapshot_and_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def download(source: str, repo_type: str, allow_patterns: list[str]) -> str:
        if source != "someone/insects":
            raise OSError("404\nnot found")
        assert (repo_type, allow_patterns) == ("dataset", ["*test*.parquet"])
        return str(tmp_path / "0123abc")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    write_parquet(tmp_path / "0123abc" / "plain_text" / "test-00000-of-00001.parquet", pictures(2), [2, 1])
    data = load_images("someone/insects", "test")
    assert (data.labels.tolist(), data.class_names, data.fingerprint) == ([2, 1], NAMES, "0123abc")
    with pytest.raises(InputError, match=r"loading it from the Hub failed \(404\)"):
        load_images("someone/else")


def test_the_name_of_a_file_says_its_split_before_its_folder(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        write_parquet(tmp_path / "test" / f"{split}-0.parquet", pictures(count), [0, 1, 2, 0][:count])
    assert len(load_images(tmp_path / "test", "test")) == 2
    assert len(load_images(tmp_path / "test", "train")) == 4


@pytest.mark.parametrize(("total", "count"), [(3, 10), (10, 10), (19, 10), (999, 500), (10_000, 500)])
def test_a_part_of_a_sorted_set_reaches_from_its_first_to_its_last(total: int, count: int) -> None:
    chosen = spread(total, count)
    assert len(chosen) == len(set(chosen)) == min(total, count)
    assert chosen[0] == 0
    assert total - chosen[-1] <= -(-total // count)


def test_two_data_sets_in_one_folder_are_not_mixed(tmp_path: Path) -> None:
    for name in ("small", "large"):
        write_parquet(tmp_path / name / "train-0.parquet", pictures(2), [0, 1])
    with pytest.raises(InputError, match="large, small"):
        load_images(tmp_path)


def test_two_files_that_number_their_classes_otherwise_are_not_mixed(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", pictures(2), [0, 1])
    write_parquet(tmp_path / "train-1.parquet", pictures(2), [0, 1])
    path = tmp_path / "train-1.parquet"
    features = {"info": {"features": {"label": {"names": list(NAMES[::-1]), "_type": "ClassLabel"}}}}
    pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": json.dumps(features)}), path)
    with pytest.raises(InputError, match="numbers its classes as cow, bee, ant, the files before it as ant, bee, cow"):
        load_images(tmp_path)


def test_classes_without_names_are_called_by_their_index(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", pictures(3, grey=True), [0, 1, 1], named=False)
    data = load_images(tmp_path)
    assert data.class_names == ("0", "1")
    assert data.image_shape == (1, 8, 8)


def test_the_fingerprint_tells_other_pixels_and_other_labels_apart(tmp_path: Path) -> None:
    arrays = pictures(3)
    changed = arrays.copy()
    changed[0, 0, 0, 0] ^= 1
    prints = set()
    for index, (these, labels) in enumerate([(arrays, [0, 1, 2]), (changed, [0, 1, 2]), (arrays, [0, 2, 1])]):
        write_parquet(tmp_path / str(index) / "train.parquet", these, labels)
        prints.add(load_images(tmp_path / str(index)).fingerprint)
    assert len(prints) == 3


def test_a_broken_data_set_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "cut" / "ant").mkdir(parents=True)
    (tmp_path / "cut" / "ant" / "1.png").write_bytes(encoded(pictures()[0])[:60])
    (tmp_path / "mixed" / "ant").mkdir(parents=True)
    for size in (8, 9):
        (tmp_path / "mixed" / "ant" / f"{size}.png").write_bytes(encoded(pictures(1, size)[0]))
    write_parquet(tmp_path / "labels" / "train.parquet", pictures(2), [0, 7])
    pq_without_labels = tmp_path / "columns" / "train.parquet"
    pq_without_labels.parent.mkdir()
    pq.write_table(pa.table({"img": [b"1"]}), pq_without_labels)
    (tmp_path / "file.txt").write_text("no folder")
    expected = {
        "empty": "no data set",
        "broken": "not a readable parquet",
        "cut": "cannot be read as an image",
        "mixed": "8x8.*9x9",
        "labels": "labels from 0 to 7, but 3 class names",
        "columns": "no column label",
        "file.txt": "is a file",
        "absent": "no such folder",
    }
    for name, message in expected.items():
        with pytest.raises(InputError, match=message) as caught:
            load_images(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"^nowhere/: no such folder, and not a Hub id"):
        load_images("nowhere/")


def test_plain_images_come_in_the_order_of_their_paths_and_in_the_networks_range(tmp_path: Path) -> None:
    arrays = pictures(3)
    arrays[0], arrays[1] = 0, 255
    for name, array in zip(("b.png", "deeper/c.bmp", "deeper/d.PNG"), arrays, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(array).save(tmp_path / name)
    images = load_plain_images(tmp_path, (3, 8, 8))
    assert images.shape == (3, 3, 8, 8)
    assert images.dtype == torch.float32
    assert images[0].eq(-1).all()
    assert images[1].eq(1).all()
    back = images[2].add(1).mul(127.5).round().to(torch.uint8)
    assert torch.equal(back, torch.from_numpy(arrays[2]).permute(2, 0, 1))


def test_plain_images_of_a_data_set_are_its_training_images(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", pictures(4), [0, 1, 2, 0])
    write_parquet(tmp_path / "test.parquet", pictures(2), [0, 1])
    assert load_plain_images(tmp_path, (3, 8, 8)).shape == (4, 3, 8, 8)


def test_plain_images_that_do_not_fit_the_model_are_refused(tmp_path: Path) -> None:
    for name, array in {"size": pictures(1, 9)[0], "grey": pictures(1, grey=True)[0]}.items():
        (tmp_path / name).mkdir()
        Image.fromarray(array).save(tmp_path / name / "x.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "x.jpg").write_text("not a picture")
    expected = {"size": "9x9 RGB.*8x8 RGB", "grey": "8x8 grey.*8x8 RGB", "empty": "no images", "text": "x.jpg cannot be"}
    for name, message in expected.items():
        with pytest.raises(InputError, match=message):
            load_plain_images(tmp_path / name, (3, 8, 8))
