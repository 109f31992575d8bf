"""Null models and real images beside the scores of generated ones, and what is said of them."""

import json

import jax
import numpy as np
import pytest
from scipy.spatial import cKDTree

from jebm import evaluation
from jebm.data import Source, load, to_float
from jebm.data.source import with_validation
from jebm.evaluation import Record, space
from jebm.evaluation.yardsticks import YARDSTICKS, is_yardstick, nearest_training, verdict
from jebm.methods.base import Method
from jebm.metrics.kernel import duplicate_rate, duplicate_threshold, nearest_distances
from jebm.report import scores

SHAPE = (2, 3, 1)
PIXELS = evaluation.Features(lambda x: np.asarray(to_float(x)).reshape(len(x), -1), {"feature_space": "pixels"})
SIGMA = 20.0  # levels


def images(n, seed=0):
    drawn = np.random.default_rng(seed).normal(127, SIGMA, (n, *SHAPE))
    return np.clip(np.rint(drawn), 0, 255).astype(np.uint8)


def method() -> Method:
    functions = dict.fromkeys(("init", "update", "energy", "scores", "networks"))
    return Method(image_shape=SHAPE, generate=lambda key, state, n: None, **functions)


def subject(generated, source, features=PIXELS, **settings):
    made = evaluation.Samples(generated, 0.0)
    return evaluation.Subject(method(), None, source, features=features, samples=made, **settings)


def evaluated(key, given):
    return {record.metric: record for record in evaluation.evaluate_generation(key, given)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JEBM_CACHE", str(tmp_path))
    return tmp_path


def a_source(train=700, test=400):
    x = images(train + test)
    return Source("gaussian", x[:train], x[train:], None, None, None, "")


# neighbours


def test_nearest_distances_over_blocks():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2300, 3)), random.normal(size=(1100, 3))
    np.testing.assert_allclose(nearest_distances(x, y), cKDTree(y).query(x)[0], rtol=1e-6)
    np.testing.assert_allclose(nearest_distances(x), cKDTree(x).query(x, 2)[0][:, 1], rtol=1e-6)
    assert nearest_distances(np.concatenate([x, x + 0]) + 1e3).max() == 0.0
    with pytest.raises(ValueError, match="1 points have no neighbours"):
        nearest_distances(x[:1])


def test_duplicates_of_real_images_are_at_the_nominal_rate():
    random, n = np.random.default_rng(1), 1500
    real, other = random.normal(size=(2, n, 4))
    threshold = duplicate_threshold(real)
    # neighbours come in pairs, and the threshold has its own error
    assert duplicate_rate(other, threshold) == pytest.approx(0.01, abs=5 * np.sqrt(2 * 2 * 0.01 / n))
    assert duplicate_rate(np.repeat(other[:150], 10, 0), threshold) == 1.0
    half = np.concatenate([other[:750], np.repeat(other[:1], 750, 0) + 1e-4 * real[:750]])
    assert duplicate_rate(half, threshold) == pytest.approx(0.5, abs=0.02)
    assert duplicate_rate(np.repeat(real[:2], 9, 0), duplicate_threshold(np.repeat(real[:2], 9, 0))) == 1.0


def test_the_distance_to_training_images_is_in_levels():
    training = images(300)
    moved = training[:50].copy()
    moved[:, 0, 0] ^= 1  # one number of six, by one level
    found = nearest_training(moved, training)
    assert found.value == pytest.approx(np.sqrt(1 / 6))
    assert nearest_training(training[:50], training).value == 0.0
    assert (found.about["n_nearest"], found.about["n_training"]) == (50, 300)


# records


def test_yardsticks_of_gaussian_images(key):
    source, n, d = a_source(), 600, 6
    found = evaluated(key, subject(images(n, seed=1), source))
    for suffix in YARDSTICKS:
        for metric in ("frechet_distance", "kernel_distance", "precision", "recall", "duplicates", "nearest_training"):
            record = found[f"{metric}_{suffix}"]
            assert is_yardstick(record.metric)
            assert record.n == n
            assert record.protocol["split"] == "test"
            assert record.protocol["features"] == {"feature_space": "pixels"}
    # fitted on 700, drawn 600, against 400: a bias of each; no less for the model, but for the fit
    bias = lambda *sizes: (SIGMA / 127.5) ** 2 * (d + d * (d + 1) / 4) * sum(1 / size for size in sizes)  # noqa: E731
    spread = 5 * np.sqrt(2 / 27)
    for name, sizes in (("frechet_distance_gaussian", (600, 700, 400)), ("frechet_distance", (600, 400))):
        assert 0.2 * bias(*sizes) < found[name].value < (1 + spread) * bias(*sizes)
        assert found[name].protocol["standard_error"] < found[name].value
    assert found["frechet_distance_mixture"].value < 3 * bias(600, 700, 400)
    assert found["frechet_distance_repeats"].value > 2 * found["frechet_distance"].value
    assert found["duplicates_repeats"].value == 1.0
    assert max(found[name].value for name in ("duplicates", "duplicates_real", "duplicates_gaussian")) < 0.08
    assert found["recall_repeats"].value < 0.6 < found["recall_real"].value
    # held-out images are as far from training images as those of the same law; repetitions are such images
    assert found["nearest_training_repeats"].value == 0.0
    assert found["nearest_training"].value == pytest.approx(found["nearest_training_real"].value, rel=0.1)
    assert found["frechet_distance_mixture"].protocol["seconds_to_fit"] > 0
    assert found["frechet_distance_repeats"].protocol["k"] == 60


def test_a_second_evaluation_measures_the_model_alone(key, cache):
    seen = []
    counting = PIXELS._replace(function=lambda x: (seen.append(len(x)), PIXELS.function(x))[1])
    source = a_source(200, 100)
    first = evaluated(key, subject(images(60, seed=1), source, counting))
    once, seen[:] = sum(seen), []
    again = evaluated(key, subject(images(60, seed=2), source, counting))
    assert sum(seen) == 60 + 100 < once  # generated images and the reference
    for name, record in again.items():
        assert record.value == first[name].value or not is_yardstick(name)
    assert again["frechet_distance"].value != first["frechet_distance"].value
    # other images, another number or another space are measured
    for other in (subject(images(61), source, counting), subject(images(60), a_source(201, 100), counting)):
        seen[:] = []
        others = evaluated(key, other)
        assert sum(seen) > 160 + 60
        assert others["frechet_distance_gaussian"].value != first["frechet_distance_gaussian"].value
    for path in (cache / "yardsticks").iterdir():
        path.write_text("{")
    assert evaluated(key, subject(images(60, seed=1), source))["recall_mixture"].value == first["recall_mixture"].value
    whole = [text for path in (cache / "yardsticks").iterdir() if (text := path.read_text()) != "{"]
    assert [sorted(json.loads(text)["result"]) for text in whole] == [sorted(YARDSTICKS)]


def test_null_models_know_training_images_alone(key):
    dark, bright = images(300) // 4, images(100) // 4 + 150
    found = evaluated(key, subject(dark[:60], Source("two", dark, bright, None, None, None, ""), reference="train"))
    for name in ("gaussian", "mixture", "repeats"):
        assert found[f"frechet_distance_{name}"].value < 0.1 * found["frechet_distance_real"].value


# the space


def test_a_space_that_sees_nothing_is_weak():
    source = load("digits")
    sees = space.space_quality(source, PIXELS)
    assert sees["n"] == 500
    assert sees["weak"] == []
    assert set(sees["distances"]) == {name for pair in space.ORDER for name in pair}
    blind = PIXELS._replace(
        function=lambda x: np.random.default_rng(0).normal(size=(len(x), 3)), declaration={"feature_space": "blind"}
    )
    assert "blur weak is no farther than real" in space.space_quality(source, blind)["weak"]
    few = Source("few", source.train[:59], source.test, None, None, None, "")
    assert space.space_quality(few, PIXELS)["weak"] == ["59 training images are too few to judge it"]


@pytest.mark.parametrize(
    ("accuracy", "changed", "weak"),
    [
        (None, {}, []),
        (0.97, {}, []),
        (0.46, {}, ["its classifier is right in 46% of test images"]),
        (0.97, {"one_class": 3.0}, ["one class is no farther than half of the classes"]),
        (0.97, {"noise_strong": 0.5}, ["noise strong is no farther than noise weak"]),
        (0.97, {"real": 2.0}, ["blur weak is no farther than real", "noise weak is no farther than real"]),
    ],
)
def test_why_a_space_is_weak(accuracy, changed, weak):
    distances = {
        "real": 0.0, "noise_weak": 1.0, "noise_strong": 2.0, "blur_weak": 1.0, "blur_strong": 2.0,
        "half_of_the_classes": 4.0, "one_class": 9.0,
    }  # fmt: skip
    assert sorted(space.weaknesses({**distances, **changed}, accuracy)) == weak


# what is said


def some(metric, value, error=1.0, **protocol):
    about = {"step": 3, "features": {"feature_space": "A"}, "standard_error": error, **protocol}
    return Record(metric, value, 100, about)


def test_a_run_behind_a_null_model_is_told_so():
    nulls = [
        some("frechet_distance_gaussian", 60.0), some("frechet_distance_mixture", 20.0),
        some("frechet_distance_repeats", 32.5),
    ]  # fmt: skip
    assert verdict([some("frechet_distance", 30.0), *nulls]) == (
        "frechet_distance 30: behind the mixture of Gaussians (20), level with the repeated training images (32.5), "
        "ahead of the pixel Gaussian (60)"
    )
    assert "behind" not in verdict([some("frechet_distance", 10.0), *nulls])
    # two standard errors of the difference, sqrt(3² + 1): 6.3
    assert "level with the mixture" in verdict([some("frechet_distance", 26.0, 3.0), *nulls])
    assert "behind the mixture" in verdict([some("frechet_distance", 27.0, 3.0), *nulls])
    assert verdict([some("frechet_distance", 30.0)]) is None
    assert verdict([some("frechet_distance", 30.0), some("frechet_distance_mixture", 20.0, step=2)]) is None
    assert verdict(nulls) is None
    weak = {"space": {"weak": ["its classifier is right in 46% of test images", "b"]}}
    said = verdict([some("frechet_distance", 30.0, **weak), *nulls])
    assert said == "A is a weak space (its classifier is right in 46% of test images; b): it ranks nothing"


def test_the_table_of_the_command():
    records = [
        some("frechet_distance", 30.0),
        some("frechet_distance_real", 5.0),
        some("frechet_distance_mixture", 20.0),
    ]
    _, heads, row, said = scores.beside(records)
    assert heads.split() == ["this", "model", *YARDSTICKS]
    assert row.split() == ["frechet_distance", "30", "5", "-", "20", "-"]
    assert said == f"  {verdict(records)}"
    assert scores.beside(records[:1]) == []
    assert scores.direction(records[0], {}) == "lower"
    assert scores.direction(some("frechet_distance", 1.0, space={"weak": ["a"]}), {}) is None


# validation images


def test_validation_images_are_training_images_that_are_left_out():
    source = load("digits")
    assert with_validation(source, 0.0) is source
    found = with_validation(source, 0.1)
    assert (len(found.train), len(found.validation), len(found.test)) == (1350, 150, 297)
    together = lambda x, y: sorted(image.tobytes() + bytes([label]) for image, label in zip(x, y, strict=True))  # noqa: E731
    both = (
        np.concatenate([found.train, found.validation]),
        np.concatenate([found.train_labels, found.validation_labels]),
    )
    assert together(*both) == together(source.train, source.train_labels)
    np.testing.assert_array_equal(found.validation, with_validation(source, 0.1).validation)
    assert found.fingerprint != source.fingerprint
    assert len(np.unique(found.validation_labels)) == 10
    with pytest.raises(ValueError, match="a validation split needs at least 2"):
        with_validation(Source("one", source.train[:1], source.test, None, None, None, ""), 0.5)


def test_an_evaluation_on_validation_images_sees_no_test_image(key):
    whole = a_source()
    source = with_validation(whole, 0.3)
    hidden = Source(**{**source.__dict__, "test": np.zeros_like(source.test)})
    given = [subject(images(100, seed=1), s, reference="validation") for s in (source, hidden)]
    first, second = (evaluated(key, one) for one in given)
    assert {name: r.value for name, r in first.items()} == {name: r.value for name, r in second.items()}
    assert first["recall"].protocol["split"] == "validation"
    assert first["recall"].protocol["n_reference"] == 210
    reconstruct = method()._replace(reconstruct=lambda key, state, x: x)
    (record,) = evaluation.evaluate_reconstruction(
        key, given[0]._replace(method=reconstruct, state=jax.numpy.zeros(()))
    )
    assert (record.n, record.protocol["split"]) == (210, "validation")
    with pytest.raises(ValueError, match="no validation images; train one with --set data.validation"):
        evaluated(key, subject(images(100), whole, reference="validation"))
