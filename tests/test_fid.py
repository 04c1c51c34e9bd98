"""FID: closed forms, own rounding, and the extractor that is named is the one that ran."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from saved_models import saved_model

from semu_diffusion.errors import InputError
from semu_diffusion.eval.images import save_images, to_float, to_uint8
from semu_diffusion.eval.judges.class_mapping import ClassMapping
from semu_diffusion.eval.judges.judge import Judge
from semu_diffusion.eval.judges.networks import JudgeNetwork
from semu_diffusion.eval.metrics import fid
from semu_diffusion.eval.metrics.fid import SmallSampleWarning, frechet_distance, load_fid_extractor
from semu_diffusion.pipelines.data.images import load_plain_images
from semu_diffusion.pipelines.runs.config import EraseClassConfig
from semu_diffusion.pipelines.runs.domains import load_classes
from semu_diffusion.pipelines.runs.scorer import make_scorer


def exactly(mean: torch.Tensor, covariance: torch.Tensor, count: int, seed: int = 0) -> torch.Tensor:
    """``count`` rows whose sample mean and unbiased sample covariance are the given ones."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, len(mean), generator=generator, dtype=torch.float64)
    rows = rows - rows.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(rows.T)), rows.T, upper=False).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def spread(dim: int, seed: int) -> torch.Tensor:
    a = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a @ a.T + torch.eye(dim, dtype=torch.float64)


def test_equal_sets_have_distance_zero() -> None:
    rows = exactly(torch.full((8,), 5.0, dtype=torch.float64), spread(8, 1), 200)
    assert frechet_distance(rows, rows.flip(0), warn_below=0) == pytest.approx(0, abs=1e-6)


def test_a_shift_of_the_mean_costs_its_squared_length() -> None:
    covariance, shift = spread(6, 2), torch.arange(6, dtype=torch.float64)
    a = exactly(torch.zeros(6, dtype=torch.float64), covariance, 100, seed=3)
    b = exactly(shift, covariance, 150, seed=4)
    assert frechet_distance(a, b, warn_below=0) == pytest.approx(float(shift.square().sum()), rel=1e-9)


def test_commuting_covariances_cost_the_squared_difference_of_their_deviations() -> None:
    zero = torch.zeros(4, dtype=torch.float64)
    first = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    second = torch.tensor([2.0, 2.0, 1.0, 7.0], dtype=torch.float64)
    a, b = exactly(zero, first.square().diag(), 64), exactly(zero, second.square().diag(), 80, seed=9)
    assert frechet_distance(a, b, warn_below=0) == pytest.approx(float((first - second).square().sum()), rel=1e-9)


def test_any_two_gaussians_have_the_distance_of_the_symmetric_formula() -> None:
    s, t, shift = spread(5, 5), spread(5, 6), torch.ones(5, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(s)
    root = vectors @ values.sqrt().diag() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ t @ root).sqrt().sum()
    expected = float(shift.square().sum() + s.trace() + t.trace() - 2 * cross)
    a, b = exactly(0 * shift, s, 90), exactly(shift, t, 70, seed=2)
    assert frechet_distance(a, b, warn_below=0) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a, warn_below=0) == pytest.approx(expected, rel=1e-9)


def test_few_images_raise_a_warning_and_enough_do_not(recwarn: pytest.WarningsRecorder) -> None:
    rows = exactly(torch.zeros(2, dtype=torch.float64), spread(2, 1), 10_000)
    frechet_distance(rows, rows)
    assert not [w for w in recwarn if issubclass(w.category, SmallSampleWarning)]
    with pytest.warns(SmallSampleWarning, match="9,999 images"):
        frechet_distance(rows, rows[:-1])


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (torch.zeros(5, 3), torch.zeros(5, 4), "one width"),
        (torch.zeros(1, 3), torch.zeros(5, 3), "two images"),
        (torch.full((5, 3), float("nan")), torch.zeros(5, 3), "finite"),
    ],
)
def test_features_that_give_no_distance_are_refused(a: torch.Tensor, b: torch.Tensor, said: str) -> None:
    with pytest.raises(InputError, match=said):
        frechet_distance(a, b)


def test_images_are_rounded_not_truncated_and_survive_png(tmp_path: Path) -> None:
    levels = torch.arange(256) / 255
    below, above = (levels - 0.4 / 255).clamp(min=0), (levels + 0.4 / 255).clamp(max=1)
    assert torch.equal(to_uint8(below), torch.arange(256).to(torch.uint8))
    assert torch.equal(to_uint8(above), torch.arange(256).to(torch.uint8))
    assert torch.equal(to_uint8(torch.tensor([-0.3, 1.7])), torch.tensor([0, 255], dtype=torch.uint8))
    for channels in (1, 3):
        images = torch.rand(3, channels, 5, 7, generator=torch.Generator().manual_seed(channels))
        folder = save_images(images, tmp_path / f"{channels}")
        assert torch.equal(to_uint8(load_plain_images(folder, (channels, 5, 7)) / 2 + 0.5), to_uint8(images))
        assert torch.equal(to_uint8(to_float(to_uint8(images))), to_uint8(images))


def test_a_folder_of_images_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    broken = [torch.zeros(3, 4, 4), torch.zeros(2, 4, 4)]
    with pytest.raises(InputError, match="channels"):
        save_images(broken, tmp_path / "cat")
    assert list(tmp_path.iterdir()) == []
    save_images(torch.zeros(2, 3, 4, 4), tmp_path / "cat")
    with pytest.raises(InputError, match="already"):
        save_images(torch.ones(2, 3, 4, 4), tmp_path / "cat")
    assert Image.open(tmp_path / "cat" / "00000.png").getextrema() == ((0, 0),) * 3


def mean_colour_judge() -> Judge:
    network = JudgeNetwork(
        name="colours", sha256="0" * 64, classes=3, categories=("r", "g", "b"), dim=3, channels=3, chunk=4,
        logits=lambda x: x.mean((2, 3)), features=lambda x: x.mean((2, 3)),
    )  # fmt: skip
    return Judge(network, ("r", "g", "b"), ClassMapping(torch.arange(3), ()), torch.device("cpu"))


def test_without_inception_the_judge_serves_and_the_name_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    extractor = load_fid_extractor(None, mean_colour_judge())
    assert extractor is not None
    assert (extractor.name, extractor.dim, extractor.sha256) == ("colours features (3-d)", 3, "0" * 64)
    images = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(extractor(images), extractor(to_uint8(images)))
    assert load_fid_extractor(None, None) is None


def test_missing_or_foreign_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.pth"):
        load_fid_extractor(tmp_path / "nowhere.pth")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="Inception"):
        load_fid_extractor(tmp_path / "other.pth")


def test_nothing_is_downloaded_unasked_and_a_failed_download_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def unreachable(url: str, *args: object, **kwargs: object) -> None:
        asked.append(url)
        raise OSError("network is unreachable")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    load_fid_extractor(None, mean_colour_judge())
    assert not asked
    with pytest.raises(InputError, match="unreachable"):
        load_fid_extractor(None, mean_colour_judge(), download=True)
    assert asked == [fid.INCEPTION_URL]
    asked.clear()
    settings = {"classifier": "none", "inception_weights": "download", "sampling_steps": 2}
    asked_for = load_classes(EraseClassConfig(model=saved_model(tmp_path / "model"), forget=("red",), **settings))
    with pytest.raises(InputError, match="unreachable"):  # before anything is sampled
        make_scorer(asked_for)
    assert asked == [fid.INCEPTION_URL]


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Inception's architecture with random weights, saved where torch.hub keeps the published ones."""
    from torch_fidelity import feature_extractor_inceptionv3 as original

    file = tmp_path_factory.mktemp("torch") / "hub" / "checkpoints" / fid.INCEPTION_FILE
    file.parent.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.setattr(original, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(original.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        network = original.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), file)
    yield file
    file.unlink()


def test_inception_features_are_those_of_torch_fidelity_whatever_the_batch(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    monkeypatch.setenv("TORCH_HOME", str(stand_in.parents[2]))
    monkeypatch.setattr(fid, "_CHUNK", 2)
    state = torch.random.get_rng_state()
    extractor = load_fid_extractor(None, mean_colour_judge())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert extractor is not None
    assert extractor.dim == 2048
    assert extractor.name.startswith("inception-v3-compat (2048-d, other weights")

    images = torch.rand(3, 3, 400, 400, generator=torch.Generator().manual_seed(1))
    images[2] = images[2, 0]  # a grey one
    features = extractor(images)
    reference = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(stand_in))
    expected = reference(to_uint8(images[:1]))[0]
    # noise made smaller: with antialiasing the features would differ by a quarter of their length
    assert float((features[:1] - expected).norm() / expected.norm()) < 1e-5
    assert torch.equal(extractor(images[2:, :1]), features[2:])
