"""Two-dimensional sets as images of one pixel: what they hold, and that the family `ebm` takes them everywhere."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jebm import config, data, energy, images, methods, problems
from jebm.commands.main import main
from jebm.data import points
from jebm.data.named import load
from jebm.evaluation.likelihood import evaluate_points
from jebm.evaluation.subject import Subject
from jebm.metrics.features import source_features
from jebm.metrics.kernel import energy_distance
from jebm.metrics.outlier_sets import outliers

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("name", ["two_moons", "banana"])
def test_a_set_is_its_problem_in_a_square(name):
    source, problem = load(f"points:{name}"), problems.PROBLEMS[name]()
    assert (source.train.shape, source.train.dtype) == ((20_000, 1, 1, 2), np.uint8)
    assert len(source.test) == 4_000
    assert source.fingerprint == load(f"points:{name}").fingerprint
    x = points.to_plane(name, np.asarray(data.to_float(source.train)))
    spread = np.sqrt(np.diag(problem.covariance))
    assert (abs(x.mean(0) - problem.mean) < 5 * spread / np.sqrt(len(x)) + 1e-3 * problem.extent).all()
    level = problem.extent / 127.5
    # the same points before they were rounded, but for the border
    raw = points.unrounded(name)
    inside = np.abs(raw).max((1, 2, 3)) < 1
    assert inside.mean() > 0.999
    there = points.to_plane(name, np.asarray(data.to_float(source.test)))
    assert np.abs(there - points.to_plane(name, raw))[inside].max() < 0.51 * level
    second = np.cov(x.T)
    np.testing.assert_allclose(second, problem.covariance, atol=0.06 * problem.covariance.max())


def test_sets_that_are_not_there():
    with pytest.raises(data.DataError, match="no set of points 'moons'; there are banana, checkerboard"):
        load("points:moons")


def test_points_have_no_size(tmp_path, capsys):
    assert load("points:rings", 1).image_shape == (1, 1, 2)
    words = ["train", "configs/digits/ebm.py", "--workdir", str(tmp_path / "run"), "--set", "data.source=points:rings"]
    assert main(words) == 2
    assert "points are images of one pixel, not of 8: set method.image_size=1" in capsys.readouterr().err


def test_points_are_marked_in_a_square():
    corners = np.array([[-1.0, -1.0], [1.0, 1.0], [1.0, 1.0]]).reshape(3, 1, 1, 2)
    picture = images.grid(corners)
    assert picture.shape == (260, 260, 1)
    dark = np.argwhere(picture[..., 0] < 255)
    assert set(map(tuple, dark)) == {(i + 255, j) for i in range(4) for j in range(4)} | {
        (i, j + 255) for i in range(4) for j in range(4)
    }
    assert picture[0, 255] < picture[255, 0]  # two marks are darker than one


def test_outliers_of_points():
    sets = outliers(jax.random.key(0), load("points:two_moons").test[:10])
    assert set(sets) == {"uniform_noise", "interpolation"}


def test_energy_distance_of_two_known_laws():
    """Of N(0, 1) and N(Δ, 1) on a line: ``2 E|Z√2 + Δ| - 4/√π``; unbiased, so 0 in the mean for one law."""
    rng, shift = np.random.default_rng(0), 0.7
    normal = shift / math.sqrt(2.0)
    cdf, pdf = 0.5 * math.erfc(-normal / math.sqrt(2)), math.exp(-(normal**2) / 2) / math.sqrt(2 * math.pi)
    expected = 2 * math.sqrt(2.0) * (2 * pdf + normal * (2 * cdf - 1)) - 4 / math.sqrt(math.pi)
    for mean, law in ((shift, expected), (0.0, 0.0)):
        values = [energy_distance(rng.normal(size=(60, 1)), rng.normal(mean, 1, (40, 1))) for _ in range(300)]
        assert abs(np.mean(values) - law) < 5 * np.std(values) / np.sqrt(300)
    large = energy_distance(rng.normal(size=(2500, 1)), rng.normal(shift, 1, (1500, 1)))  # more than one block
    assert abs(large - expected) < 0.05
    with pytest.raises(ValueError, match="wanted are"):
        energy_distance(np.zeros((3, 2)), np.zeros((3, 1)))


def test_the_likelihood_of_points_is_exact():
    """A model that is the problem's own density has its likelihood; a Gaussian one that of its formula."""
    name = "banana"
    problem, source = problems.PROBLEMS[name](), load(f"points:{name}")
    method = methods.build(methods.EBMConfig(image_size=1, channels=2, num_halvings=0, width=2))
    plane = lambda x: jnp.asarray(problem.mean, jnp.float32) + problem.extent * x.reshape(2)  # noqa: E731
    test = points.unrounded(name)
    test = test[np.abs(test).max((1, 2, 3)) < 1].reshape(-1, 2).astype(np.float64)
    models = {
        "own": lambda x: 3.0 + problem.energy(plane(x)),
        "gaussian": energy.bind(lambda m, x: 40.0 * jnp.sum((x.reshape(2) - m) ** 2), jnp.array([0.1, -0.2])),
    }
    found = {}
    for model, function in models.items():
        subject = Subject(method._replace(energy=lambda state, f=function: f), None, source)
        found[model] = {record.metric: record.value for record in evaluate_points(subject)}
    assert found["own"]["log_partition"] == pytest.approx(
        problem.log_normalizer - 3.0 - 2 * np.log(problem.extent), abs=2e-3
    )
    assert found["own"]["negative_log_likelihood"] == pytest.approx(
        found["own"]["negative_log_likelihood_real"], abs=2e-3
    )
    squares = 40.0 * np.sum((test - [0.1, -0.2]) ** 2, 1)
    expected = squares.mean() + np.log(np.pi / 40.0) + 2 * np.log(problem.extent)
    assert found["gaussian"]["negative_log_likelihood"] == pytest.approx(expected, abs=1e-3)


def test_points_through_every_verb(tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["train", "configs/small/ebm_points.py", "--workdir", str(folder), "--set", "training.num_steps=2"]
    words += ["method.bank_size=512", "method.width=4", "method.num_steps=2", "method.generate_steps=2"]
    assert main([*words, "evaluation.num_samples=40"]) == 0
    assert main(["sample", str(folder), "--num", "9", "--out", str(tmp_path / "x.png")]) == 0
    assert main(["sample", str(folder), "--num", "9", "--out", str(tmp_path / "x.npz")]) == 0
    assert np.load(tmp_path / "x.npz")["x"].shape == (9, 1, 1, 2)
    assert main(["evaluate", str(folder), "--metrics", "generation,likelihood"]) == 0
    found = {json.loads(path.read_text())["metric"] for path in (folder / "evaluation").glob("*.json")}
    assert {
        "energy_distance", "energy_distance_real", "kernel_distance", "precision", "negative_log_likelihood",
        "negative_log_likelihood_real",
    } <= found  # fmt: skip
    assert main(["report", str(folder)]) == 0
    assert "Nearest" not in (folder / "report.html").read_text()
    capsys.readouterr()


def test_the_configuration_of_points():
    settings = config.load_file("configs/small/ebm_points.py")
    assert settings.data.source == "points:two_moons"
    assert settings.method.image_shape == points.SHAPE
    assert source_features(load("points:rings")).declaration["feature_space"] == "coordinates"
