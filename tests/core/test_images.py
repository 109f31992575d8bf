"""Images as pictures: levels, grids, and what is refused or said."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.families import CONFIGS

import jebm
from jebm import images, methods
from jebm.runs import run as runs
from jebm.runs import samples as sampling

LEVELS = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)


def test_levels_go_there_and_back():
    np.testing.assert_array_equal(images.to_uint8(images.from_uint8(LEVELS)), LEVELS)
    assert images.to_uint8(np.array([-9.0, -1.0, 0.0, 1.0, 9.0])).tolist() == [0, 0, 128, 255, 255]
    assert images.to_uint8(jnp.array([-1.0, 0.0, 1.0], jnp.bfloat16)).tolist() == [0, 128, 255]


@pytest.mark.parametrize("convert", [np.asarray, images.from_uint8, jnp.asarray], ids=["uint8", "float", "jax"])
def test_a_grid_of_levels_or_of_floats_is_the_same_picture(convert):
    picture = images.grid(convert(LEVELS), columns=3)
    assert (picture.shape, picture.dtype) == ((19, 28, 1), np.uint8)
    for i, (top, left) in enumerate([(1, 1), (1, 10), (1, 19), (10, 1)]):
        np.testing.assert_array_equal(picture[top : top + 8, left : left + 8], LEVELS[i])
        picture[top : top + 8, left : left + 8] = 255
    assert (picture == 255).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: images.grid(LEVELS.astype(np.int32)), "floating in .* or uint8 in .*, got int32"),
        (lambda: images.to_uint8(LEVELS > 3), "got bool"),
        (lambda: images.to_uint8(np.array([0.0, np.nan])), "not finite"),
        (lambda: images.from_uint8(np.zeros(3, np.float32)), "must be uint8, got float32"),
        (lambda: images.grid(LEVELS[0]), r"shape \[n, H, W, C\]"),
        (lambda: images.grid(LEVELS[:0]), "n at least 1"),
        (lambda: images.grid(LEVELS, columns=0), "columns must be an int of at least 1, got 0"),
        (lambda: images.grid(LEVELS, columns=2.0), "columns must be an int"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


# What a model takes


@pytest.mark.parametrize("family", [name for name in CONFIGS if methods.build(CONFIGS[name]).reconstruct])
def test_reconstructions_are_of_a_models_own_images_only(family):
    """Energies: `tests/methods/test_protocol.py`."""
    method = methods.build(CONFIGS[family])
    refused = [
        (np.zeros((5, 12, 12, 1), np.float32), r"have shape \[8, 8, 1\], got \[12, 12, 1\]"),
        (np.zeros((5, 8, 8, 2), np.float32), "images of this model have shape"),
        (np.zeros((8, 8, 1), np.float32), r"have shape \[n, 8, 8, 1\], got \[8, 8, 1\]"),
        (np.zeros((5, 8, 8, 1), np.uint8), r"floating in \[-1, 1\], got uint8"),
        (np.zeros((5, 8, 8, 1), np.int32), "got int32"),
        (np.full((5, 8, 8, 1), 255.0, np.float32), "use jebm.data.to_float"),
    ]
    for given, message in refused:
        with pytest.raises(ValueError, match=message) as error:
            method.reconstruct(jax.random.key(0), None, given)
        assert "\n" not in str(error.value)


# What a loaded run says


def test_strays_are_counted_in_one_warning():
    fine = np.random.default_rng(0).choice([-1.0, 1.0], (4, 8, 8, 1))  # black and white: the largest true images
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images.warn_of_strays(fine)
        images.warn_of_strays(1.9 * fine)
        images.warn_of_strays(fine[:0])
        jax.jit(lambda x: images.warn_of_strays(3.0 * x))(fine)
    far = fine.copy()
    far[[0, 2]] *= 3.0
    far[3, 0, 0, 0] = np.inf
    with pytest.warns(UserWarning, match="^of 4 images, 1 are not finite and 2 lie far outside") as caught:
        images.warn_of_strays(far)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="^of 1 images, 1 lie far outside"):
        images.warn_of_strays(far[:1])


def test_a_loaded_run_says_where_its_images_strayed(finished_run, tmp_path, monkeypatch, capsys):
    run = jebm.load(finished_run)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = run.method.generate(jax.random.key(0), run.state, 2)
    method = run.method
    factor = 5.0 / jnp.sqrt(jnp.mean(drawn**2))
    strayed = method._replace(generate=lambda key, state, n: factor * drawn[:1].repeat(n, 0))
    monkeypatch.setattr(runs, "method_of", lambda directory: strayed)
    run = jebm.load(finished_run)
    with pytest.warns(UserWarning, match="lie far outside") as caught:
        run.method.generate(jax.random.key(0), run.state, 2)
    assert caught[0].filename == __file__
    jax.jit(lambda state: run.method.generate(jax.random.key(0), state, 2))(run.state)
    with pytest.warns(UserWarning, match="lie far outside"):
        sampling.draw_to(tmp_path / "x.npz", run, 2)
    with pytest.raises(ValueError, match="images of this model have shape"):
        run.energy(np.zeros((28, 28, 1), np.float32))
