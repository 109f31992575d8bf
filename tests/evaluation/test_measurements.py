"""Whole measurements, of a model whose every answer is known; the feature networks."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jebm import data, evaluation, mcmc
from jebm.data import Source, to_float
from jebm.energy import as_partial
from jebm.evaluation.yardsticks import is_yardstick
from jebm.methods.base import Chain, Method
from jebm.metrics.batches import map_batches

SHAPE = (2, 3, 1)
SIGMA = 0.15  # of a pixel, in units of [-1, 1]
STATE = {"shift": jnp.array(0.0)}
PROTOCOL = {"weights": "raw", "step": 7}


def gaussian_images(key: jax.Array, n: int, mean: jax.Array | float = 0.0) -> jax.Array:
    return mean + SIGMA * jax.random.normal(key, (n, *SHAPE))


def source(num_train: int = 3000, num_test: int = 1001) -> Source:
    x = np.asarray(data.to_uint8(gaussian_images(jax.random.key(99), num_train + num_test)))
    return Source("gaussian", x[:num_train], x[num_train:], None, None, None, "0" * 16)


def method(**functions) -> Method:
    """Generates pixels of N(shift, σ²), reconstructs x + shift; the energy is the largest pixel."""
    plain = Method(
        init=lambda key, batch: STATE,
        update=lambda key, state, batch: (state, {}),
        generate=lambda key, state, n: gaussian_images(key, n, state["shift"]),
        energy=lambda state: jnp.max,
        reconstruct=lambda key, state, images: images + state["shift"],
        scores=lambda key, state, batch: {"mean": batch.mean(), "size": jnp.float32(len(batch))},
        networks=lambda state: {"all": state},
        image_shape=SHAPE,
    )
    changed = plain._replace(**functions)
    return changed._replace(energy=lambda state: as_partial(changed.energy(state)))


def subject(model: Method, images: Source, state=STATE, **settings) -> evaluation.Subject:
    """What is measured; intervals of few resamples."""
    return evaluation.Subject(model, state, images, **{"num_resamples": 30, **settings})


def samples(images: np.ndarray) -> evaluation.Samples:
    return evaluation.Samples(images, 0.0)


PIXELS = evaluation.Features(lambda x: np.asarray(to_float(x)).reshape(len(x), -1), {"feature_space": "pixels"})


# generation


def test_generation_at_the_bias_of_real_images(key):
    # d = 6, n against m: d σ² (1/n + 1/m) from the mean, and d (d + 1) / 8 σ² (2/n + 2/m) from the covariance
    n, m, d = 1500, 1001, 6
    generated, real, limit, kernel, precision, recall, *_ = evaluation.evaluate_generation(
        key, subject(method(), source(), num_samples=n, features=PIXELS, protocol=PROTOCOL, batch_size=400)
    )
    assert [r.metric for r in (limit, kernel, precision, recall)] == [
        "frechet_distance_infinity", "kernel_distance", "precision", "recall"
    ]  # fmt: skip
    # the law is the data's: what stays is the reference's own bias, half of the whole and less
    assert abs(limit.value) < generated.value
    assert abs(kernel.value) < 5 * kernel.protocol["standard_error"]
    assert (kernel.protocol["num_blocks"], kernel.protocol["block_size"]) == (10, 100)
    assert min(precision.value, recall.value) > 0.8
    assert precision.protocol["n_compared"] == 1001
    expected = SIGMA**2 * (d + d * (d + 1) / 4) * (1 / n + 1 / m)
    assert (generated.metric, real.metric) == ("frechet_distance", "frechet_distance_real")
    # a sum of some 27 chi-squares: relative deviation sqrt(2 / 27); five of them up, three quarters down
    for record in (generated, real):
        assert record.n == n
        assert 0.25 * expected < record.value < (1 + 5 * np.sqrt(2 / 27)) * expected
    assert generated.protocol["n_reference"] == 1001
    assert generated.protocol["features"] == {"feature_space": "pixels"}
    assert generated.protocol["step"] == real.protocol["step"] == 7
    assert generated.protocol["images_through_method"] == 1500
    assert generated.protocol["network_evaluations_per_image"] == 1
    assert 0 < generated.protocol["generation_time_seconds"] <= generated.protocol["wall_time_seconds"]


def test_generation_sees_a_shift(key):
    state = {"shift": jnp.array(0.2)}
    generated, _, limit, kernel, *_ = evaluation.evaluate_generation(
        key, subject(method(evaluations_per_image=3), source(), state, num_samples=1500, features=PIXELS)
    )
    assert limit.value == pytest.approx(6 * 0.2**2, abs=0.05)
    assert kernel.value > 10 * kernel.protocol["standard_error"]
    # the mean alone: 6 * 0.2², its estimate deviating by 2 * 0.2 * sqrt(6 σ² (1/n + 1/m)) = 0.006
    assert generated.value == pytest.approx(6 * 0.2**2, abs=0.03)
    assert generated.protocol["network_evaluations_per_image"] == 3


def modes(*signs, n, seed=3):
    """uint8 images of N(sign/2, σ²), one mode after the other, ``n`` of each."""
    keys = jax.random.split(jax.random.key(seed), len(signs))
    parts = [gaussian_images(key, n, 0.5 * sign) for key, sign in zip(keys, signs, strict=True)]
    return np.asarray(data.to_uint8(jnp.concatenate(parts)))


def of_modes(train, test):
    return Source("modes", train, test, None, None, None, "0" * 16)


def test_what_is_compared_does_not_depend_on_the_order_of_the_files(key):
    # the reference and the generated images lie one class after the other; 250 of 1200 are compared
    ordered, generated = modes(-1, 0, 1, n=400), modes(1, -1, 0, n=400, seed=4)
    shuffled = np.random.default_rng(0).permutation(ordered)
    values = {}
    for name, real in {"ordered": ordered, "shuffled": shuffled}.items():
        sources = {"test": of_modes(ordered[::40], real), "train": of_modes(real, ordered[::40])}
        for reference, source in sources.items():
            given = subject(method(), source, features=PIXELS, samples=samples(generated), reference=reference)
            records = evaluation.evaluate_generation(key, given, most_compared=250)
            found = {record.metric: record for record in records}
            values[name, reference] = [found[m].value for m in ("precision", "recall")]
            distance = found["kernel_distance"]
            assert distance.protocol["n_compared"] == 250
            # its deviation is 0.02; of one class against another it would be 3
            assert abs(distance.value) < 0.15
            # some 0.88, deviation 0.025; of one class against another 0
            assert min(values[name, reference]) > 0.75
    np.testing.assert_allclose(values["ordered", "test"], values["shuffled", "test"], atol=0.15)
    # fewer images generated than there are real ones: a random part of these is compared
    some = samples(generated[::5])
    few = evaluation.evaluate_generation(
        key, subject(method(), of_modes(ordered[::40], ordered), features=PIXELS, samples=some)
    )
    assert min(record.value for record in few if record.metric in ("precision", "recall")) > 0.75


@pytest.mark.parametrize("share", [1, 2])
def test_records_of_a_model_that_has_some_of_the_modes(key, share):
    # all that it makes is like the data, and it makes 1/3 or 2/3 of them
    real, images = modes(-1, 0, 1, n=300), modes(-1, 0, 1, n=300, seed=4)[: 300 * share]
    records = evaluation.evaluate_generation(
        key, subject(method(), of_modes(real, real), features=PIXELS, samples=samples(images))
    )
    found = {record.metric: record.value for record in records}
    assert found["precision"] > 0.75
    assert 0.6 * share / 3 < found["recall"] < share / 3 + 0.05
    assert found["frechet_distance_real"] < 0.1 * found["frechet_distance"]  # the other split has all of them


def test_only_inceptions_distance_is_called_fid(key, tmp_path, monkeypatch):
    monkeypatch.setenv("JEBM_CACHE", str(tmp_path))
    space = PIXELS._replace(declaration={"feature_space": "Inception"}, logits=lambda x: np.eye(3)[x[:, 0, 0, 0] % 3])
    given = subject(method(), source(200, 100), num_samples=60, features=space, protocol=PROTOCOL, reference="train")
    records = evaluation.evaluate_generation(key, given)
    names = ["fid", "fid_real", "fid_infinity", "kid", "precision", "recall", "classifier_score"]
    beside, records = records[len(names) :], records[: len(names)]
    assert [record.metric for record in records] == names
    assert {"fid_mixture", "kid_real", "kid_gaussian", "duplicates_repeats"} < {record.metric for record in beside}
    assert [record.n for record in records[:2]] == [60, 60]  # of 100 test images as many as were generated
    assert records[0].protocol["split"] == "train"
    assert records[0].protocol["n_reference"] == 200
    assert len(records[0].protocol["reference_statistics_sha256"]) == 64
    assert records[-1].protocol["note"] == "not the Inception score"
    assert 1 < records[-1].value <= 3
    assert len(list((tmp_path / "statistics").iterdir())) == 2  # the reference and the other split, not the samples
    few = evaluation.evaluate_generation(key, subject(method(), source(40, 30), num_samples=20, features=PIXELS))
    # quarters of 5 images in 6 dimensions: there is no line to extrapolate
    assert [record.metric for record in few][:3] == ["frechet_distance", "frechet_distance_real", "kernel_distance"]


def test_generated_images_do_not_depend_on_how_many_are_wanted(key):
    many = evaluation.generate_images(method(), STATE, key, 25, batch_size=10)
    assert many.shape == (25, *SHAPE)
    assert many.dtype == np.uint8
    np.testing.assert_array_equal(evaluation.generate_images(method(), STATE, key, 12, batch_size=10), many[:12])
    assert len({image.tobytes() for image in many}) == 25
    with pytest.raises(ValueError, match="0 images in batches of 10"):
        evaluation.generate_images(method(), STATE, key, 0, batch_size=10)


def test_generation_compiles_once(key):
    traces = []

    def generate(key, state, n):
        traces.append(n)
        return gaussian_images(key, n)

    evaluation.generate_images(method(generate=generate), STATE, key, 25, batch_size=10)
    assert traces == [10]


def test_nan_is_never_a_number(key):
    broken = method(
        generate=lambda key, state, n: gaussian_images(key, n).at[0, 0, 0, 0].set(jnp.nan),
        energy=lambda state: lambda x: jnp.where(x[0, 0, 0] > 0.1, jnp.inf, x.max()),
        reconstruct=lambda key, state, images: images / 0.0,
        scores=lambda key, state, batch: {"gap": jnp.float32(jnp.nan)},
    )
    given = subject(broken, source(50, 40), num_samples=25, features=PIXELS, batch_size=10)
    with pytest.raises(ValueError, match="3 of 25 generated images hold NaN"):
        evaluation.evaluate_generation(key, given)
    with pytest.raises(ValueError, match="reconstruction_error came out as inf"):
        evaluation.evaluate_reconstruction(key, given)
    with pytest.raises(ValueError, match="score_gap came out as nan"):
        evaluation.evaluate_scores(key, given)
    lost = int((to_float(given.source.test)[:, 0, 0, 0] > 0.1).sum())
    with pytest.raises(ValueError, match=f"in_scores: {lost} of 40 are NaN or infinite"):
        evaluation.evaluate_ood(key, given)


# reconstruction and scores


def test_reconstruction_error(key):
    (record,) = evaluation.evaluate_reconstruction(key, subject(method(), source(50, 40), protocol=PROTOCOL))
    assert (record.metric, record.value, record.n) == ("reconstruction_error", 0.0, 40)
    state = {"shift": jnp.array(-0.2)}
    record, psnr = evaluation.evaluate_reconstruction(key, subject(method(), source(50, 40), state, batch_size=17))
    assert record.value == pytest.approx(0.04, rel=1e-5)
    # 20 dB, but for the rounding of 25.5 levels to 25 or 26 and a pixel near black
    assert psnr.metric == "reconstruction_psnr"
    assert psnr.value == pytest.approx(20, abs=0.3)
    assert record.protocol["wall_time_seconds"] > 0
    without = method(reconstruct=None)
    assert evaluation.evaluate_reconstruction(key, subject(without, source(50, 40))) == []


def test_reconstruction_of_a_part_batch_counts_each_image_once(key):
    # the error of an image is its own first pixel, squared: exact mean over 40 images in batches of 17
    images = source(50, 40)
    first = method(reconstruct=lambda key, state, x: x + x[:, :1, :1])
    record = evaluation.evaluate_reconstruction(key, subject(first, images, batch_size=17))[0]
    expected = np.square(np.asarray(to_float(images.test[:, 0, 0, 0]), float)).mean()
    assert record.value == pytest.approx(expected, rel=1e-6)


def test_structural_similarity_of_reconstructions(key):
    images = np.random.default_rng(1).integers(0, 256, (6, 12, 13, 3), dtype=np.uint8)
    darker = method(reconstruct=lambda key, state, x: 0.5 * x - 0.25)
    source = Source("noise", images[:2], images[2:], None, None, None, "")
    records = evaluation.evaluate_reconstruction(key, subject(darker, source, batch_size=3))
    found = {record.metric: record.value for record in records}
    levels = np.asarray(data.to_uint8(0.5 * to_float(images[2:]) - 0.25))
    expected = evaluation.ssim(levels, images[2:], data_range=255).mean()
    assert found["reconstruction_ssim"] == pytest.approx(expected, rel=1e-6)
    assert 0.3 < expected < 0.95
    error = np.square(levels.astype(float) - images[2:]).mean()
    assert found["reconstruction_psnr"] == pytest.approx(10 * np.log10(255**2 / error), rel=1e-6)


def test_scores_average_over_equal_batches(key):
    images = source(50, 40)
    mean, size = evaluation.evaluate_scores(key, subject(method(), images, protocol=PROTOCOL, batch_size=14))
    assert (mean.metric, size.metric) == ("score_mean", "score_size")
    assert (size.value, size.n, mean.n) == (13.0, 39, 39)  # 3 batches of 13 rather than 2 of 14 and one of 12
    levels = images.test[data.permutation(0, 0, 40)[:39]]
    assert mean.value == pytest.approx(float(to_float(levels).mean()), rel=1e-5)


def test_a_batch_of_scores_is_of_all_classes(key):
    # each class alone has the deviation σ, all three together sqrt(σ² + 1/6)
    spread = method(scores=lambda key, state, batch: {"spread": batch.std()})
    images = of_modes(modes(0, n=10), modes(-1, 0, 1, n=100))
    (record,) = evaluation.evaluate_scores(key, subject(spread, images, batch_size=100))
    assert record.value == pytest.approx(np.sqrt(SIGMA**2 + 1 / 6), rel=0.1)


def test_a_batch_has_its_own_key(key):
    drawn = method(scores=lambda key, state, batch: {"draw": jax.random.normal(key)})
    (record,) = evaluation.evaluate_scores(key, subject(drawn, source(50, 40), batch_size=14))
    expected = np.mean([jax.random.normal(jax.random.fold_in(key, i)) for i in range(3)])
    assert record.value == pytest.approx(expected, rel=1e-5)


# outliers


def test_energies_of_outliers(key, tmp_path):
    images = source(50, 300)
    others = {"data:brighter": images.test[:200] // 4 + 191, "larger": np.zeros((60, 4, 4, 3), np.uint8)}
    records = evaluation.evaluate_ood(
        key, subject(method(), images, protocol=PROTOCOL, others=others, batch_size=128, directory=tmp_path)
    )
    values = {record.metric: record for record in records}
    names = ["uniform_noise", "constant", "shuffled", "interpolation", "data_brighter", "larger"]
    assert list(values) == [f"{measure}_{name}" for name in names for measure in ("auroc", "aupr", "fpr95")]
    # the largest pixel stays the largest however pixels are moved: every outlier ties with its own image
    assert values["auroc_shuffled"].value == 0.5
    # a uniform level above the maximum of six N(0, σ²), whose mean is 1.267 σ: 1/2 (1 - 1.267 σ)
    expected = (1 - 1.267 * SIGMA) / 2
    assert values["auroc_constant"].value == pytest.approx(expected, abs=5 * np.sqrt(0.25 / 300))
    assert values["auroc_uniform_noise"].value > 0.9
    assert values["auroc_data_brighter"].value == 1.0
    assert (values["fpr95_data_brighter"].value, values["fpr95_larger"].value) == (0.0, 1.0)
    assert values["auroc_larger"].value == 0.0
    for name in names:
        for measure in ("auroc", "aupr", "fpr95"):
            record = values[f"{measure}_{name}"]
            low, high = record.protocol["bootstrap_interval_95"]
            assert low <= record.value <= high
            assert record.n == 300
            assert f"{measure}_of_compressed_size" in record.protocol
            assert f"{measure}_of_channel_statistics" in record.protocol
    assert values["auroc_constant"].protocol["auroc_of_compressed_size"] < 0.05
    assert values["auroc_larger"].protocol["n_outliers"] == 60
    assert values["auroc_larger"].protocol["images_through_method"] == 360
    assert values["auroc_larger"].protocol["resize"][0] == "centre square"
    # what was saved gives the same values again
    with np.load(tmp_path / "ood_scores-raw-step00000007.npz") as file:
        inside, outside = file["energy/in"], file["energy/interpolation"]
        assert len(file["compressed_size/larger"]) == 60
    assert evaluation.auroc(inside, outside) == values["auroc_interpolation"].value
    with np.load(tmp_path / "openood-raw-step00000007/data_brighter.npz") as file:
        assert (file["label"] == -1).sum() == 200


def test_the_baselines_know_training_images_only(key):
    # training images are dark, test images bright: by brightness these, not the dark outliers, are the outliers
    dark, bright = (np.random.default_rng(i).integers(*levels, (60, 4, 4, 1), dtype=np.uint8) for i, levels in
                    enumerate([(0, 100), (150, 256)]))  # fmt: skip
    others = {"dark": np.random.default_rng(2).integers(0, 100, (60, 4, 4, 1), dtype=np.uint8)}
    records = evaluation.evaluate_ood(
        key, subject(method(), Source("two", dark, bright, None, None, None, ""), others=others)
    )
    values = {record.metric: record.protocol for record in records}
    assert values["auroc_dark"]["auroc_of_channel_statistics"] == 0.0


def test_the_scores_that_histograms_are_drawn_of(key, tmp_path):
    # each set has its own level: energies say which images were scored
    images = {name: np.full((30, *SHAPE), level, np.uint8) for name, level in
              {"train": 10, "test": 20, "samples": 30, "other": 40}.items()}  # fmt: skip
    given = Source("levels", images["train"], images["test"], None, None, None, "")
    drawn = samples(np.concatenate([images["samples"]] * 2))
    others = {"other": images["other"]}
    evaluation.evaluate_ood(key, subject(method(), given, others=others, directory=tmp_path, samples=drawn))
    with np.load(tmp_path / "ood_scores.npz") as file:
        for name, level in {"in": 20, "samples": 30, "other": 40}.items():
            np.testing.assert_allclose(file[f"energy/{name}"], level / 127.5 - 1, rtol=1e-5)
            assert len(file[f"energy/{name}"]) == 30


def test_an_energy_with_the_sign_wrong_shows(key):
    wrong = method(energy=lambda state: lambda x: -jnp.square(x).sum())
    records = evaluation.evaluate_ood(key, subject(wrong, source(50, 300)))
    assert records[0].value < 0.05


# all of them


def test_evaluate_makes_the_records_asked_for(key):
    groups = []
    given = subject(method(), source(120, 60), num_samples=50, protocol=PROTOCOL)
    records = evaluation.evaluate(key, given, on_records=groups.append)
    assert [record.metric for record in records if not is_yardstick(record.metric)] == [
        "frechet_distance", "kernel_distance", "precision", "recall", "duplicates", "nearest_training",
        "reconstruction_error", "score_mean", "score_size",
        *(f"{measure}_{name}" for name in ("uniform_noise", "constant", "shuffled", "interpolation")
          for measure in ("auroc", "aupr", "fpr95")),
    ]  # fmt: skip
    assert sum(groups, []) == records
    assert records[0].protocol["features"]["feature_space"] == "FD-random"
    alone = evaluation.evaluate(key, given, ("ood",))
    assert [record.value for record in alone] == [record.value for record in records[-12:]]
    with pytest.raises(
        ValueError, match="no metric 'fid'; there are generation, reconstruction, scores, ood, likelihood, long_run"
    ):
        evaluation.evaluate(key, given, ("fid",))
    with pytest.raises(ValueError, match="no chain on images in training"):
        evaluation.evaluate(key, given, ("long_run",))


def test_an_outlier_set_called_as_one_that_is_made_is_scored_beside_it(key):
    others = {"constant": np.full((7, *SHAPE), 3, np.uint8)}
    records = evaluation.evaluate_ood(key, subject(method(), source(120, 60), protocol=PROTOCOL, others=others))
    counts = {record.metric: record.protocol["n_outliers"] for record in records}
    assert (counts["auroc_constant"], counts["auroc_constant-given"]) == (60, 7)


def test_records_of_another_split_or_seed_do_not_replace_each_other(tmp_path):
    for protocol in ({}, {"seed": 0, "split": "test"}, {"split": "train"}, {"seed": 5}, {"split": "train", "seed": 5}):
        evaluation.write_record(tmp_path, evaluation.Record("kid", 1.0, 10, protocol))
    names = ["kid-n10.json", "kid-seed5-n10.json", "kid-seed5-train-n10.json", "kid-train-n10.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


# chains that run long


def test_a_long_run_follows_the_law_of_its_chains(key):
    from jebm.evaluation import long_run

    # E = x² / (2 s²): each step multiplies by a = 1 - η / s²; without noise all is known
    s2, eta, steps = 0.01, 1e-4, 5
    quadratic = method(energy=lambda state: lambda x: jnp.square(x).sum() / (2 * s2))
    start = gaussian_images(key, 16)
    kernel = mcmc.langevin(quadratic.energy(STATE), eta, 0.0)
    run = long_run.long_chains(key, kernel, start, steps, (1, 4))
    a = 1 - eta / s2
    assert run.energies.shape == run.gradient_norms.shape == (4,)
    for i, position in zip((1, 4), run.positions, strict=True):
        np.testing.assert_allclose(position, start * a ** (i * steps), rtol=1e-5)
    energies = np.square(start).sum((1, 2, 3)).mean() / (2 * s2) * a ** (2 * steps * np.arange(1, 5))
    np.testing.assert_allclose(run.energies, energies, rtol=1e-4)


def test_the_records_of_a_long_run_are_of_the_steps_that_they_name(key, tmp_path):
    from jebm.evaluation import long_run

    # without noise each step multiplies an image by a: energies and gradients say after how many steps they were taken
    a, steps, multiples = 0.98, 2, (1, 3, 10)
    # in units of T, which tends to 0: the step on T E is η, and there is no noise to be seen
    temperature = 1e-14
    quadratic = method(
        energy=lambda state: lambda x: jnp.square(x).sum() / (2 * temperature),
        chain=Chain(steps, 1 - a), temperature=temperature,
    )  # fmt: skip
    records = long_run.evaluate_long_run(
        key, subject(quadratic, source(50, 400), features=PIXELS, directory=tmp_path), multiples=multiples
    )
    with np.load(tmp_path / "long_run.npz") as file:
        start = file["positions"][0] / a**steps
    values = {record.metric: record for record in records}
    for m in multiples:
        end = start * a ** (m * steps)
        norms = np.sqrt(np.square(end).sum((1, 2, 3)))
        energy = np.square(norms).mean() / 2 / temperature
        assert values[f"long_run_energy_{m}x"].value == pytest.approx(energy, rel=1e-4)
        # the gradient is that of the last step, before it
        assert values[f"long_run_gradient_norm_{m}x"].value == pytest.approx(norms.mean() / a / temperature, rel=1e-4)
        # two images are sqrt(2 · 6) σ apart; 400 of them tell that to some 3 %, and the 256 levels round
        moved = np.sqrt(np.square(end - start).sum((1, 2, 3)).mean()) / np.sqrt(12 * SIGMA**2)
        assert values[f"long_run_feature_drift_{m}x"].value == pytest.approx(moved, rel=0.15, abs=0.01)
        assert values[f"long_run_energy_{m}x"].protocol["chain_steps"] == m * steps


def test_the_unit_of_drift_is_between_images_of_any_two_classes():
    from jebm.evaluation.long_run import _distance_between

    # of one class two images are σ sqrt(12) apart, of any two E = 12 σ² + 6 · 2 · 1/6 squared
    found = _distance_between(modes(-1, 0, 1, n=300), PIXELS)
    assert found == pytest.approx(np.sqrt(12 * SIGMA**2 + 2), rel=0.15)


def test_records_of_a_long_run(key):
    from jebm.evaluation import long_run

    temperature = 0.3
    quadratic = method(
        energy=lambda state: lambda x: jnp.square(x).sum() / (2 * SIGMA**2), temperature=temperature,
        chain=Chain(2, SIGMA**2 / 2 / temperature),  # an autocorrelation of 1/2 a step
    )  # fmt: skip
    given = subject(quadratic, source(50, 400), features=PIXELS, protocol=PROTOCOL)
    records = long_run.evaluate_long_run(key, given, multiples=(1, 10))
    values = {record.metric: record for record in records}
    assert len(values) == 8
    # at stationarity E = d/2 σ_∞²/σ², and an image is unrelated to its start, up to that inflation (4/3)
    assert values["long_run_energy_10x"].value == pytest.approx(3 * 4 / 3, rel=0.5)
    assert values["long_run_feature_drift_1x"].value < 1.05
    assert values["long_run_feature_drift_10x"].value == pytest.approx(np.sqrt(7 / 6), rel=0.2)
    protocol = values["long_run_energy_10x"].protocol
    assert (protocol["chain_steps"], protocol["chain"]["num_steps"]) == (20, 2)
    assert protocol["started_at"] == "generated images"
    # variances of 4/3 against 1: six times (2/sqrt(3) - 1)² σ², and the bias of 200 against 400 images
    bias = SIGMA**2 * (6 * 4 / 3 + 6 * 7 / 4) * (1 / 200 + 1 / 400)
    expected = 6 * SIGMA**2 * (np.sqrt(4 / 3) - 1) ** 2 + bias
    assert values["long_run_distance_10x"].value == pytest.approx(expected, rel=0.6)
    away = given._replace(method=quadratic._replace(chain=Chain(2, 1e9)))
    with pytest.raises(ValueError, match="long_run|NaN or an infinity"):
        long_run.evaluate_long_run(key, away, multiples=(1, 10))


def test_long_runs_from_the_starts_of_training_and_from_the_bank(key, tmp_path):
    from jebm.evaluation import long_run

    # without noise each step multiplies by a: what is left of a start says where it was
    a, temperature = 0.5, 1e-14
    bank = jnp.full((300, *SHAPE), 0.5)
    given = method(
        energy=lambda state: lambda x: jnp.square(x).sum() / (2 * temperature), chain=Chain(1, 1 - a),
        temperature=temperature, chain_starts=lambda key, state, n: jnp.full((n, *SHAPE), -1.0),
        bank=lambda state: bank,
    )  # fmt: skip
    images = of_modes(modes(0, n=60), modes(0, n=60))
    asked = subject(given, images, features=PIXELS, directory=tmp_path, longest=10)
    records = long_run.evaluate_long_run(key, asked)
    assert sorted({record.metric for record in records}) == sorted(
        f"{name}_{what}_{m}x" for name in ("long_run", "long_run_bank") for m in (1, 10)
        for what in ("distance", "energy", "gradient_norm", "feature_drift")
    )  # fmt: skip
    values = {record.metric: record for record in records}
    real = evaluation.statistics(PIXELS.function(images.test))
    for name, level in (("long_run", -1.0), ("long_run_bank", 0.5)):
        with np.load(tmp_path / f"{name}.npz") as file:
            np.testing.assert_allclose(file["positions"][0], level * a, rtol=1e-4)
            assert file["positions"].shape == (2, 200, *SHAPE)
        # one image: its distance is that of means and the variance of the data
        expected = np.square(np.asarray(to_float(data.to_uint8(level * a))) - real.mean).sum() + np.trace(
            real.covariance
        )
        assert values[f"{name}_distance_1x"].value == pytest.approx(expected, rel=1e-5)
    assert values["long_run_bank_energy_1x"].protocol["started_at"] == "persistent chains"
    without = long_run.evaluate_long_run(key, asked._replace(method=given._replace(bank=lambda state: None)))
    assert [(r.metric, r.value) for r in without] == [(r.metric, r.value) for r in records[:8]]


@pytest.mark.parametrize(
    ("fresh", "bank", "word"),
    [
        ({1: 10, 100: 12.5, 1000: 15}, {}, "density"),
        ({1: 10, 100: 12.6, 1000: 15}, {}, "short-run sampler"),
        ({1: 10, 100: 12.5, 1000: 15.1}, {}, "short-run sampler"),
        ({1: 10, 100: 20}, {}, "short-run sampler"),
        ({1: 10, 10: 30, 100: 11}, {}, "unknown"),
        ({1: 10, 1000: 11}, {}, "unknown"),
        ({100: 10}, {}, "unknown"),
        ({}, {}, "unknown"),
        ({1: 10, 100: 10, 1000: 10}, {1: 5, 100: 7, 1000: 7}, "short-run sampler"),
        ({1: 10, 100: 10, 1000: 10}, {1: 5, 100: 6, 1000: 7}, "density"),
    ],
)
def test_what_a_run_is_by_its_long_chains(fresh, bank, word):
    from jebm.evaluation.long_run import nature

    def records(**protocol):
        return [
            evaluation.Record(f"{name}_distance_{m}x", float(value), 200, protocol)
            for name, values in (("long_run", fresh), ("long_run_bank", bank))
            for m, value in values.items()
        ]

    assert nature(records()) == word
    assert nature(records(space={"weak": ["it is blind"]})) == "unknown"


def test_chains_of_training_start_where_their_family_says(key):
    from helpers import families

    from jebm import methods

    tiny = families.CONFIGS
    hat = methods.build(tiny["hat_ebm"])
    state = jax.jit(hat.init)(key, families.IMAGES)
    z = jax.vmap(lambda k: jax.random.normal(jax.random.split(k)[0], hat.latent_shape))(mcmc.chain_keys(key, 3))
    expected = jax.vmap(hat.generator(state))(z)
    scale = tiny["hat_ebm"].test_chain.residual_start_scale
    found = hat.chain_starts(key, state, 3)
    assert float(jnp.abs(found - expected).max()) <= 6 * scale + 1e-5


def test_step_sizes_are_found_and_kept(key, tmp_path):
    temperature = 2.0
    quadratic = method(
        energy=lambda state: lambda x: jnp.square(x).sum() / (2 * temperature * SIGMA**2),
        chain=Chain(2, 0.123), temperature=temperature,
    )  # fmt: skip
    records = evaluation.evaluate(key, subject(quadratic, source(20, 20), protocol=PROTOCOL), ("step_sizes",))
    found = {record.metric: evaluation.read_record(evaluation.write_record(tmp_path, record)) for record in records}
    assert sorted(found) == ["step_size_hmc", "step_size_mala", "step_size_short_run"]
    assert {record.protocol["configured_step_size"] for record in records} == {0.123}
    # images of N(0, σ²) have E‖∇E‖² = D/σ²
    assert found["step_size_short_run"].value == pytest.approx(2 * temperature * SIGMA**2, rel=0.4)
    x = np.sqrt(temperature) * gaussian_images(jax.random.fold_in(key, 1), 4096)  # the law itself
    for name, make in {"mala": mcmc.mala, "hmc": lambda e, s, t: mcmc.hmc(e, s, 5, t)}.items():
        kernel = make(lambda x: jnp.square(x).sum() / (2 * SIGMA**2), found[f"step_size_{name}"].value, temperature)
        keys = jax.random.split(key, len(x))
        rate = jax.vmap(kernel.step)(keys, jax.vmap(kernel.init)(x))[1].acceptance.mean()
        protocol = found[f"step_size_{name}"].protocol
        assert float(rate) == pytest.approx(protocol["target_acceptance"], abs=0.06)
        assert protocol["acceptance"] == pytest.approx(protocol["target_acceptance"], abs=0.06)
    broken = method(energy=lambda state: lambda x: x.sum() * jnp.nan)
    with pytest.raises(ValueError, match="step_size_short_run came out as nan"):
        evaluation.evaluate_step_sizes(key, subject(broken, source(20, 20), protocol=PROTOCOL))


def test_the_chain_of_each_family():
    from jebm import methods

    # the released EC-VAE: s = 1e-6 on f/τ; Hat EBM: ε = 5e-4 at T = 1e-8
    ec, hat = methods.build(methods.ECVAEConfig()), methods.build(methods.HatEBMConfig())
    assert (ec.chain.num_steps, ec.chain.max_drift) == (15, None)
    assert ec.chain.step_size * ec.temperature == pytest.approx(5e-7)
    assert hat.chain == (50, pytest.approx(12.5), 2.5)
    assert 2 * hat.chain.step_size * hat.temperature == pytest.approx(5e-4**2)
    assert methods.build(methods.DenoisingEBMConfig()).chain is None


def test_records_of_an_evaluation_can_be_written(key, tmp_path):
    from jebm.evaluation.records import read_record, write_record

    images = source(120, 60)
    protocol = evaluation.run_protocol(images, seed=0, step=5, weights="ema", config_hash=None)
    for record in evaluation.evaluate(key, subject(method(), images, num_samples=50, protocol=protocol)):
        again = read_record(write_record(tmp_path, record))
        assert (again.metric, again.value, again.n) == (record.metric, record.value, record.n)


def test_map_batches_fills_up_and_drops():
    x = np.arange(11)
    sizes = []

    def double(i, batch):
        sizes.append(len(batch))
        return 100 * i + 2 * batch

    np.testing.assert_array_equal(map_batches(double, x, 4), 2 * x + 100 * (x // 4))
    assert sizes == [4, 4, 4]
    with pytest.raises(ValueError, match="0 images in batches of 4"):
        map_batches(double, x[:0], 4)


# feature networks


@pytest.fixture(scope="module")
def digits() -> Source:
    return data.load("digits")


def test_the_classifier_knows_digits(digits):
    start = time.process_time()
    features = evaluation.source_features(digits)
    seconds = time.process_time() - start
    declaration = features.declaration
    assert declaration["feature_space"] == "FD-classifier-digits"
    assert declaration["test_accuracy"] > 0.97
    assert declaration["trained_on"]["fingerprint"] == digits.fingerprint
    assert len(declaration["weights_sha256"]) == 64
    assert seconds < 60  # processor time of all threads; wall time depends on who else is at work

    real = features.function(digits.test)
    assert real.shape == (297, 64)
    # features tell what pixels' means and variances alone do not: the same digits two pixels to the right
    held_out = evaluation.statistics(real)
    train = evaluation.statistics(features.function(digits.train[:297]))
    moved = evaluation.statistics(features.function(np.roll(digits.test, 2, 2)))
    near, far = (evaluation.frechet_distance(s, held_out) for s in (train, moved))
    assert far > 5 * near
    # an image's features do not depend on the images around it
    np.testing.assert_allclose(features.function(digits.test[7:8]), real[7:8], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"these features are of uint8 images of \(8, 8, 1\)"):
        features.function(digits.test[:, :4])
    with pytest.raises(ValueError, match="got float32 images"):
        features.function(np.zeros((3, 8, 8, 1), np.float32))


def test_training_is_a_function_of_the_seed(digits):
    hashes = [
        evaluation.classifier_features(digits, seed=seed, num_steps=3).declaration["weights_sha256"]
        for seed in (0, 0, 1)
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_random_features(digits):
    features = evaluation.random_features(digits)
    assert features.declaration["feature_space"] == "FD-random"
    assert "test_accuracy" not in features.declaration
    again, other = evaluation.random_features(digits), evaluation.random_features(digits, seed=1)
    assert again.declaration == features.declaration
    assert other.declaration["weights_sha256"] != features.declaration["weights_sha256"]
    statistics = [evaluation.statistics(features.function(x)) for x in (digits.test, np.roll(digits.test, 2, 2))]
    assert evaluation.frechet_distance(*statistics) > 1


@pytest.mark.parametrize("shape", [(28, 28, 1), (5, 9, 3)])
def test_features_of_other_sizes(shape):
    x = np.random.default_rng(0).integers(0, 256, (6, *shape), dtype=np.uint8)
    features = evaluation.source_features(Source("noise", x, x, None, None, None, "0" * 16))
    values = features.function(x)
    assert values.shape == (6, 64)
    assert len(np.unique(values, axis=0)) == 6


def test_a_classifier_needs_labels():
    with pytest.raises(ValueError, match="source 'gaussian' has no labels"):
        evaluation.classifier_features(source(20, 10))
