"""Degradation operators: Moore and Penrose's conditions, the adjoint, and independent implementations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import scipy.signal
from PIL import Image

from jebm import restoration
from jebm.losses import ssim_loss
from jebm.restoration import Colorization, Inpainting, Matrix, WalshHadamard, compose
from jebm.restoration.files import measure
from jebm.restoration.images import read_mask
from jebm.restoration.tasks import Task

SIZE, CHANNELS = 16, 3
SHAPE = (SIZE, SIZE, CHANNELS)
RNG = np.random.default_rng(5)

OPERATORS = {
    "average pooling by 2": restoration.average_pooling(SIZE, 2),
    "average pooling by 4": restoration.average_pooling(SIZE, 4),
    "bicubic by 2": restoration.bicubic(SIZE, 2),
    "bicubic by 4": restoration.bicubic(SIZE, 4),
    "box": Inpainting.of(restoration.box_mask(SIZE)),
    "random mask": Inpainting.of(restoration.random_mask(SIZE, 0.3, seed=3)),
    "grey": Colorization(),
    "Gaussian blur": restoration.blur(SIZE, restoration.gaussian_kernel(2.0, 9)),
    "uniform blur": restoration.blur(SIZE, restoration.uniform_kernel()),
    "anisotropic blur": restoration.blur(
        SIZE, restoration.gaussian_kernel(20.0, 9), restoration.gaussian_kernel(1.0, 9)
    ),
    "Walsh-Hadamard": WalshHadamard.of(SIZE, 0.25, seed=2),
    "matrix": Matrix.of(RNG.standard_normal((20, SIZE * SIZE * CHANNELS)) / 16, SHAPE),
}  # fmt: skip
OPERATORS["grey of pooled"] = compose([restoration.average_pooling(SIZE, 2), Colorization()], SHAPE)
OPERATORS["masked blur"] = compose(
    [Colorization(), restoration.blur(SIZE, restoration.gaussian_kernel(1.0, 3)), OPERATORS["box"]], SHAPE
)


@pytest.fixture(scope="module", params=OPERATORS)
def case(request):
    operator = OPERATORS[request.param]
    x, x2 = jnp.asarray(RNG.uniform(-1, 1, (2, *SHAPE)), jnp.float32)
    y = jnp.asarray(RNG.uniform(-1, 1, operator.apply(x).shape), jnp.float32)
    return operator, x, x2, y


def close(a, b):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_inverse_of_a_measurement_has_that_measurement(case):
    operator, x, _, _ = case
    close(operator.apply(operator.pseudo_inverse(operator.apply(x))), operator.apply(x))


def test_the_adjoint(case):
    operator, x, _, y = case
    close(jnp.vdot(operator.apply(x), y) / x.size, jnp.vdot(x, operator.adjoint(y)) / x.size)


def test_range_and_null_part_are_orthogonal_projections(case):
    operator, x, x2, _ = case
    in_range, null = operator.range_part(x), operator.null_part(x)
    close(in_range + null, x)
    close(operator.apply(null), 0)
    close(operator.range_part(in_range), in_range)
    close(jnp.vdot(in_range, operator.null_part(x2)) / x.size, 0)
    assert 0.01 < float(jnp.vdot(null, null) / jnp.vdot(x, x)) < 0.99  # neither part is empty


def test_the_inverse_is_the_smallest_and_nearest(case):
    operator, _, x2, y = case
    x = operator.pseudo_inverse(y)
    scale = max(1.0, float(jnp.abs(x).max()))
    close(operator.null_part(x) / scale, 0)  # smallest: nothing in the null space
    close(operator.adjoint(y - operator.apply(x)) / scale, 0)  # nearest: the normal equations
    changed = operator.consistent(x2, operator.apply(x))
    close(operator.apply(changed) / scale, operator.apply(x) / scale)
    close(operator.null_part(changed) / scale, operator.null_part(x2) / scale)


def test_operators_are_arguments_of_programs_not_constants(case):
    operator, x, _, _ = case
    traces = []

    @jax.jit
    def apply(operator, x):
        traces.append(1)
        return operator.apply(x)

    np.testing.assert_allclose(apply(operator, x), operator.apply(x), atol=1e-5)
    apply(jax.tree.map(lambda a: a + 0, operator), x)
    assert len(traces) == 1


# --- against other implementations ------------------------------------------------------------------------------------

IMAGE = jnp.asarray(RNG.uniform(-1, 1, (32, 32, 3)), jnp.float32)


def test_pooling_is_block_means_and_repetition():
    skimage = pytest.importorskip("skimage.measure")
    operator = restoration.average_pooling(32, 4)
    y = operator.apply(IMAGE)
    close(y, skimage.block_reduce(np.asarray(IMAGE), (4, 4, 1), np.mean))
    close(operator.pseudo_inverse(y), np.repeat(np.repeat(y, 4, 0), 4, 1))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_bicubic_is_pillow_inside(factor):
    size = 12 * factor
    image = RNG.uniform(-1, 1, (size, size)).astype(np.float32)
    expected = np.asarray(Image.fromarray(image).resize((12, 12), Image.Resampling.BICUBIC))
    y = restoration.bicubic(size, factor).apply(jnp.asarray(image)[..., None])[..., 0]
    close(y[2:-2, 2:-2], expected[2:-2, 2:-2])
    # at the border: the image mirrored, the edge pixel repeated
    mirrored = np.pad(image, 6 * factor, mode="symmetric")
    expected = np.asarray(Image.fromarray(mirrored).resize((24, 24), Image.Resampling.BICUBIC))
    close(y, expected[6:-6, 6:-6])


@pytest.mark.parametrize(
    ("rows", "columns"),
    [(restoration.gaussian_kernel(0.6, 5), None), (np.array([0.1, 0.7, 0.2]), np.array([0.05, 0.15, 0.8, 0.0, 0.0]))],
)
def test_blur_is_convolution_with_zeros_outside(rows, columns):
    operator = restoration.blur(32, rows, columns)
    expected = scipy.ndimage.convolve1d(np.asarray(IMAGE), rows, axis=0, mode="constant")
    expected = scipy.ndimage.convolve1d(expected, rows if columns is None else columns, axis=1, mode="constant")
    kept = [np.linalg.svd(restoration.operators._band(32, k), compute_uv=False).min() > 0.03 for k in (rows,)]
    assert all(kept)  # nothing was cut off here, so the operator is the convolution itself
    np.testing.assert_allclose(operator.apply(IMAGE), expected, atol=2e-5)


@pytest.mark.parametrize(("deviation", "taps"), [(10.0, 5), (1.0, 9), (0.6, 3)])
def test_the_gaussian_kernel_is_scipys(deviation, taps):
    window = scipy.signal.windows.gaussian(taps, deviation)
    np.testing.assert_allclose(restoration.gaussian_kernel(deviation, taps), window / window.sum(), rtol=1e-12)


def test_masks_by_value():
    known = np.ones((8, 8), bool)
    known[2:6, 2:6] = False
    np.testing.assert_array_equal(restoration.box_mask(8), known)
    np.testing.assert_array_equal(restoration.box_mask(7, 3), np.pad(np.zeros((3, 3), bool), 2, constant_values=True))
    random = restoration.random_mask(8, 0.25, seed=1)
    assert (random.shape, random.sum()) == ((8, 8), 16)
    assert (random != restoration.random_mask(8, 0.25, seed=2)).any()
    np.testing.assert_array_equal(random, restoration.random_mask(8, 0.25, seed=1))


def test_small_singular_values_are_cut_off_in_the_blur_too():
    full = restoration.operators._band(32, restoration.uniform_kernel())
    singular = np.linalg.svd(full, compute_uv=False)
    assert (singular < 0.03).any()
    cut = np.linalg.svd(restoration.blur(32, restoration.uniform_kernel()).rows, compute_uv=False)
    np.testing.assert_allclose(cut, np.where(singular < 0.03, 0, singular), atol=1e-6)


def test_compressed_sensing_is_rows_of_the_hadamard_matrix():
    operator = WalshHadamard.of(16, 0.25, seed=4)
    matrix = scipy.linalg.hadamard(256)[np.asarray(operator.rows)] / 16
    image = IMAGE[:16, :16]
    assert operator.apply(image).shape == (64, 3)
    close(operator.apply(image), matrix @ image.reshape(256, 3))
    assert len(set(np.asarray(operator.rows).tolist())) == 64


def test_a_composition_that_needs_it_is_inverted_as_one():
    assert isinstance(OPERATORS["grey of pooled"], restoration.Composition)
    assert isinstance(OPERATORS["masked blur"], Matrix)
    # the product of the inverses is not the inverse there: it is not even consistent
    blur, box = restoration.blur(SIZE, restoration.gaussian_kernel(1.0, 3)), OPERATORS["box"]
    y = box.apply(blur.apply(jnp.asarray(RNG.uniform(-1, 1, SHAPE), jnp.float32)))
    naive = box.apply(blur.apply(blur.pseudo_inverse(box.pseudo_inverse(y))))
    assert float(jnp.abs(naive - y).max()) > 1e-3


def test_the_matrix_of_a_composition_is_the_composition():
    x = jnp.asarray(RNG.uniform(-1, 1, SHAPE), jnp.float32)
    blur, box = restoration.blur(SIZE, restoration.gaussian_kernel(1.0, 3)), OPERATORS["box"]
    np.testing.assert_allclose(
        OPERATORS["masked blur"].apply(x), box.apply(blur.apply(x.mean(-1, keepdims=True))), atol=3e-4
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: restoration.average_pooling(10, 4), "factor 4: it must be at least 2 and divide the image size 10"),
        (lambda: restoration.bicubic(8, 1), "factor 1"),
        (lambda: restoration.box_mask(8, 8), "box of 8 pixels: it must have 1 to 7 in an image of 8"),
        (lambda: restoration.random_mask(8, 1.5), "fraction 1.5: it must lie between 0 and 1"),
        (lambda: Inpainting.of(np.ones((4, 4))), r"a mask is a boolean array \[H, W\].* got float64 \(4, 4\)"),
        (lambda: WalshHadamard.of(12), "power of two, got 12"),
        (lambda: restoration.blur(8, np.ones(4) / 4), r"odd number of taps, got shape \(4,\)"),
        (lambda: compose([], SHAPE), "at least one operator"),
        (lambda: restoration.gaussian_kernel(0.0), "deviation 0.0: it must be above 0 and finite"),
        (lambda: restoration.gaussian_kernel(float("nan")), "deviation nan: it must be above 0"),
        (lambda: restoration.gaussian_kernel(float("inf")), "deviation inf: it must be above 0"),
        (lambda: restoration.gaussian_kernel(1.0, 4), "4 taps: a kernel has an odd number of them"),
        (lambda: restoration.uniform_kernel(0), "0 taps: a kernel has an odd number of them"),
        (
            lambda: compose(
                [restoration.blur(64, np.ones(3) / 3), Inpainting.of(restoration.box_mask(64))], (64, 64, 3)
            ),
            "too large for a dense one",
        ),
    ],
)  # fmt: skip
def test_mistakes(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# --- by name ----------------------------------------------------------------------------------------------------------

NAMED = {
    "box": (Task("inpaint"), Inpainting.of(restoration.box_mask(SIZE))),
    "random mask": (Task("inpaint", mask="random", seed=4), Inpainting.of(restoration.random_mask(SIZE, 0.5, 4))),
    "few pixels": (Task("inpaint", mask="random", fraction=0.1), Inpainting.of(restoration.random_mask(SIZE, 0.1))),
    "pooling": (Task("superres", factor=4), restoration.average_pooling(SIZE, 4)),
    "bicubic": (Task("superres", downsampling="bicubic"), restoration.bicubic(SIZE, 2)),
    "grey": (Task("colorize"), Colorization(3)),
    "gaussian": (Task("deblur"), restoration.blur(SIZE, restoration.gaussian_kernel(10.0, 5))),
    "uniform": (Task("deblur", kernel="uniform"), restoration.blur(SIZE, np.full(9, 1 / 9))),
    "anisotropic": (Task("deblur", kernel="anisotropic"), OPERATORS["anisotropic blur"]),
    "compressed": (Task("compressed", seed=3), WalshHadamard.of(SIZE, 0.25, 3)),
    "less": (Task("compressed", fraction=0.1), WalshHadamard.of(SIZE, 0.1, 0)),
}


@pytest.mark.parametrize("name", NAMED)
def test_the_operator_of(name):
    task, operator = NAMED[name]
    x = jnp.asarray(RNG.uniform(-1, 1, SHAPE), jnp.float32)
    np.testing.assert_array_equal(task.operator(SHAPE).apply(x), operator.apply(x))


def test_a_mask_is_white_from_128_on(tmp_path):
    pixels = np.full((4, 4), 127, np.uint8)
    pixels[1, 2] = 128
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    assert np.argwhere(read_mask(tmp_path / "mask.png", 4)).tolist() == [[1, 2]]


def test_what_is_measured_of_restored_images():
    random = np.random.default_rng(0)
    original, restored = (jnp.asarray(random.uniform(-1, 1, (3, 12, 12, 1)), jnp.float32) for _ in range(2))
    operator = restoration.average_pooling(12, 2)
    y = jax.vmap(operator.apply)(original)
    found = measure(restoration.Restored(restored, None, None, None, None), operator, y, original)
    blocks = lambda x: np.asarray(x).reshape(3, 6, 2, 6, 2, 1).mean((2, 4))  # noqa: E731
    np.testing.assert_allclose(
        found["consistency_error"], np.abs(blocks(restored) - blocks(original)).mean((1, 2, 3)), atol=1e-6
    )
    plain = np.repeat(np.repeat(blocks(original), 2, 1), 2, 2)
    for name, x in {"": np.asarray(restored), "_pseudo_inverse": plain}.items():
        error = np.square(x - np.asarray(original)).mean((1, 2, 3))
        np.testing.assert_allclose(found[f"psnr{name}"], 10 * np.log10(4 / error), rtol=1e-5)
        losses = [1 - ssim_loss(jnp.asarray(a), b) for a, b in zip(x, original, strict=True)]
        np.testing.assert_allclose(found[f"ssim{name}"], losses, rtol=1e-5)
    assert set(measure(restoration.Restored(restored, None, None, None, None), operator, y)) == {"consistency_error"}
