"""The image losses: closed facts, other implementations, and the one interface."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.integrate
import scipy.ndimage
import scipy.special
from jax.tree_util import Partial

from jebm import losses
from jebm.losses import transforms
from jebm.losses.robust import YUV, general, log_partition, negative_log_density
from jebm.losses.watson import THRESHOLDS

NAMES = ("squared_error", "watson_dft", "watson_dct", "robust", "ssim")


@pytest.fixture
def pair(key):
    """An image and its target, with neither black blocks nor flat ones."""
    one, two = jax.random.split(key)
    target = jax.random.uniform(one, (16, 24, 3), minval=-0.8, maxval=0.8)
    return target + 0.1 * jax.random.normal(two, target.shape), target


# --- the interface ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_is_a_finite_scalar_of_one_pair(name, pair):
    image, target = pair
    value, gradient = jax.jit(jax.value_and_grad(losses.get(name)))(image, target)
    assert value.shape == ()
    assert value.dtype == jnp.float32
    assert bool(jnp.isfinite(gradient).all())
    assert float(jnp.abs(gradient).max()) > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_small_step_against_the_gradient_lowers_the_loss(name, pair):
    image, target = pair
    loss = jax.jit(losses.get(name))
    value, gradient = jax.jit(jax.value_and_grad(loss))(image, target)
    expected = 0.05 * (value - loss(target, target))
    step = expected / jnp.sum(gradient**2)
    np.testing.assert_allclose(value - loss(image - step * gradient, target), expected, rtol=0.15)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_vmap_and_bfloat16_is_read_as_float32(name, pair):
    image, target = (a.astype(jnp.bfloat16) for a in pair)
    loss = jax.jit(losses.get(name))
    batch = jax.vmap(loss)(jnp.stack([image, target]), jnp.stack([target, image]))
    assert batch.dtype == jnp.float32
    image, target = image.astype(jnp.float32), target.astype(jnp.float32)
    expected = [loss(image, target), loss(target, image)]
    np.testing.assert_allclose(batch, expected, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_equal_images_are_a_minimum(name, pair):
    image, target = pair
    loss = jax.jit(losses.get(name))
    least, gradient = jax.jit(jax.value_and_grad(loss))(target, target)
    assert bool(jnp.isfinite(gradient).all())
    assert float(least) < float(loss(target + 0.3 * (image - target), target)) < float(loss(image, target))


def test_the_zero_of_each_loss(pair):
    _, target = pair
    assert float(losses.squared_error(target, target)) == 0
    assert abs(float(losses.ssim_loss(target, target))) < 1e-6
    # ε = 1e-10 per coefficient under the fourth root
    np.testing.assert_allclose(losses.watson_dct(target, target), (16 * 24 * 1e-10) ** 0.25, rtol=1e-4)
    # alpha = 1, scale = 1: log Z(1) = 1 + log 2 K_1(1) for each of the coefficients
    log_z = 1 + np.log(2 * scipy.special.k1(1.0))
    np.testing.assert_allclose(losses.robust_loss(target, target), target.size * log_z, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES[1:])
def test_the_unit_forms_take_images_in_zero_to_one(name, pair):
    image, target = pair
    unit = getattr(losses, f"{name}_unit")
    value = unit((image + 1) / 2, (target + 1) / 2)
    np.testing.assert_allclose(losses.get(name)(image, target), value, rtol=1e-6)


def test_bound_parameters_are_leaves_and_recompile_nothing(pair):
    traces = []

    @jax.jit
    def value(loss, image, target):
        traces.append(1)
        return loss(image, target)

    parameters = losses.watson_dft_parameters()
    louder = parameters._replace(log_thresholds=parameters.log_thresholds - np.log(2.0))
    values = [value(Partial(losses.watson_dft, parameters=p), *pair) for p in (parameters, louder)]
    assert len(traces) == 1
    assert float(values[1]) > 1.05 * float(values[0])


@pytest.mark.parametrize("name", ["watson_dft", "watson_dct", "robust"])
def test_parameters_can_be_learnt(name, pair):
    start = {
        "watson_dct": losses.watson_dct_parameters(),
        "watson_dft": losses.watson_dft_parameters(),
        "robust": losses.RobustParameters(jnp.zeros((16, 24, 3)), jnp.zeros((16, 24, 3))),
    }[name]
    gradient = jax.jit(jax.grad(lambda p: losses.get(name)(*pair, parameters=p)))(start)
    for leaf in jax.tree.leaves(gradient):
        assert bool(jnp.isfinite(leaf).all())
        assert float(jnp.abs(leaf).max()) > 0


def test_names():
    assert tuple(losses.LOSSES) == NAMES
    with pytest.raises(ValueError, match=r"'watson': choose one of squared_.*ssim; did you mean 'watson_d"):
        losses.get("watson")
    with pytest.raises(ValueError, match=r"'xyz': choose one of squared_error, watson_dft, .*, ssim$"):
        losses.get("xyz")


@pytest.mark.parametrize("name", NAMES)
def test_shapes_that_do_not_fit_are_one_line(name):
    with pytest.raises(ValueError, match=r"\(8, 8, 3\).*\(8, 16, 3\)") as error:
        losses.get(name)(jnp.zeros((8, 8, 3)), jnp.zeros((8, 16, 3)))
    assert "\n" not in str(error.value)


def test_other_refusals():
    with pytest.raises(ValueError, match="vmap"):
        losses.ssim_loss(jnp.zeros((2, 8, 8, 3)), jnp.zeros((2, 8, 8, 3)))
    with pytest.raises(ValueError, match=r"8 divides, got \(12, 16\)"):
        losses.watson_dct(jnp.zeros((12, 16, 3)), jnp.zeros((12, 16, 3)))
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        losses.watson_dft(jnp.zeros((8, 8, 2)), jnp.zeros((8, 8, 2)))
    with pytest.raises(ValueError, match="log_phase_weights"):
        losses.watson_dft(jnp.zeros((8, 8, 3)), jnp.zeros((8, 8, 3)), losses.watson_dct_parameters())
    with pytest.raises(ValueError, match="3 channels"):
        losses.robust_loss(jnp.zeros((8, 8, 1)), jnp.zeros((8, 8, 1)))


def test_shifted_crops_the_padded_pair(pair):
    image, target = (np.asarray(a) for a in pair)
    crop = lambda a: np.pad(a, ((4, 4), (4, 4), (0, 0)), "edge")[1:17, 6:30]  # noqa: E731
    offset = jnp.array([1, 6])
    value = losses.shifted(losses.squared_error, offset)(image, target)
    np.testing.assert_allclose(value, np.sum((crop(image) - crop(target)) ** 2), rtol=1e-5)
    assert jax.tree.leaves(losses.shifted(losses.watson_dft, offset))[0] is offset
    centred = losses.shifted(losses.ssim_loss, jnp.array([4, 4]))
    np.testing.assert_array_equal(centred(image, target), losses.ssim_loss(image, target))


# --- squared error ------------------------------------------------------------------------------------------


def test_squared_error_by_hand():
    image = jnp.zeros((2, 2, 3)).at[0, 1, 2].set(0.5)
    assert float(losses.squared_error(image, jnp.full((2, 2, 3), -1.0))) == 11 + 2.25


# --- transforms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (1, 7)])
def test_dct_agrees_with_scipy(key, shape):
    image = jax.random.normal(key, (2, *shape))
    expected = scipy.fft.dctn(np.asarray(image), axes=(1, 2), norm="ortho")
    np.testing.assert_allclose(transforms.dct(image), expected, atol=1e-5)


def test_blocks_are_in_reading_order_and_leave_remainders_out():
    plane = jnp.arange(17 * 25).reshape(17, 25)
    result = transforms.blocks(plane)
    assert result.shape == (6, 8, 8)
    np.testing.assert_array_equal(result[1], plane[:8, 8:16])
    np.testing.assert_array_equal(result[3], plane[8:16, :8])


# --- Watson -------------------------------------------------------------------------------------------------


def watson_dct_in_numpy(image, target):
    """The untrained distance of two grey images in [0, 1], block by block."""
    transform = lambda a, i, j: scipy.fft.dctn(a[i : i + 8, j : j + 8], norm="ortho")  # noqa: E731
    corners = [(i, j) for i in range(0, image.shape[0], 8) for j in range(0, image.shape[1], 8)]
    luminance = np.mean([transform(target, *corner)[0, 0] for corner in corners])
    total = 0.0
    for corner in corners:
        c, other = transform(target, *corner), transform(image, *corner)
        t = THRESHOLDS * (c[0, 0] / luminance) ** 0.649
        masked = np.abs(c) ** 0.7 * t**0.3
        share = np.exp(t) / (np.exp(t) + np.exp(masked))
        total += np.sum(np.abs((c - other) / (t * share + masked * (1 - share))) ** 4 + 1e-10)
    return total**0.25


def test_watson_dct_of_a_grey_image_in_numpy(pair):
    image, target = (a[..., :1] for a in pair)
    expected = watson_dct_in_numpy(*((np.asarray(a[..., 0], float) + 1) / 2 for a in (image, target)))
    np.testing.assert_allclose(losses.watson_dct(image, target), expected, rtol=1e-5)


def test_watson_hides_errors_in_bright_blocks():
    bright_and_dark = jnp.full((8, 16, 1), 0.8).at[:, 8:].set(-0.6)
    checks = 0.1 * (-1.0) ** (jnp.arange(8)[:, None] + jnp.arange(8)[None])[..., None]
    for loss in (losses.watson_dct, losses.watson_dft):
        in_bright = loss(bright_and_dark.at[:, :8].add(checks), bright_and_dark)
        in_dark = loss(bright_and_dark.at[:, 8:].add(checks), bright_and_dark)
        assert float(in_dark) > 1.05 * float(in_bright)


def test_watson_luminance_of_a_batch(pair):
    batch = jnp.stack(pair)
    for loss, mean in (
        (losses.watson_dct, losses.mean_luminance_dct),
        (losses.watson_dft, losses.mean_luminance_dft),
    ):
        own = mean(batch[1:])
        np.testing.assert_allclose(loss(*pair, luminance=own), loss(*pair), rtol=1e-6)
        assert float(loss(*pair, luminance=2 * own)) > 1.005 * float(loss(*pair))
    # c_00 of an 8 x 8 block is 8 times its mean; the chroma of grey is 1/2
    grey = jnp.full((1, 8, 16, 3), 0.5)
    np.testing.assert_allclose(losses.mean_luminance_dct(grey), [6.0, 4.0, 4.0], rtol=1e-5)
    np.testing.assert_allclose(losses.mean_luminance_dft(grey), [0.75, 0.5, 0.5], rtol=1e-5)


def test_watson_dft_counts_phases():
    """A shifted cosine has the same amplitudes: only the phases differ, by 2π/8 per pixel at frequency 1."""
    wave = lambda shift: 0.5 * jnp.cos(2 * jnp.pi * (jnp.arange(8) - shift) / 8)  # noqa: E731
    image, target = (jnp.tile(wave(s)[None, :, None], (8, 1, 1)) for s in (1, 0))
    parameters = losses.watson_dft_parameters(1)
    only = jnp.full((1, 8, 5), -jnp.inf).at[0, 0, 1].set(0.0)
    silent = parameters._replace(log_phase_weights=jnp.full((1, 8, 5), -jnp.inf))
    amplitudes = losses.watson_dft(image, target, silent)
    both = losses.watson_dft(image, target, parameters._replace(log_phase_weights=only))
    assert float(amplitudes) < 1e-3
    np.testing.assert_allclose(both - amplitudes, 2 * np.pi / 8, rtol=1e-4)


def test_watson_takes_black_targets(pair):
    image, _ = pair
    for loss in (losses.watson_dct, losses.watson_dft):
        for target in (-1.0, -1.1):
            value, gradient = jax.jit(jax.value_and_grad(loss))(image, jnp.full(image.shape, target))
            assert bool(jnp.isfinite(value))
            assert bool(jnp.isfinite(gradient).all())


# --- structural similarity ----------------------------------------------------------------------------------


def ssim_in_numpy(x, y):
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(a):
        for axis in (0, 1):
            a = scipy.ndimage.correlate1d(a, window, axis=axis, mode="constant")
        return a

    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    ratio = (2 * mx * my + 1e-4) * (2 * vxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    return 1 - ratio.mean()


@pytest.mark.parametrize("shape", [(16, 24, 3), (7, 9, 1)])
def test_ssim_agrees_with_filters_of_scipy(key, shape):
    image, target = jax.random.uniform(key, (2, *shape), minval=-1.0)
    expected = ssim_in_numpy(*((np.asarray(a, float) + 1) / 2 for a in (image, target)))
    np.testing.assert_allclose(losses.ssim_loss(image, target), expected, rtol=1e-5)


def test_ssim_of_constant_images_by_hand():
    """Constants x and y: with m the window's mass inside the image, μ = m x and σ_xy = m (1 - m) x y."""
    x, y = 0.25, 0.75
    weights = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    mass = np.convolve(np.ones(20), weights / weights.sum(), "same")
    m = mass[:, None] * mass
    luminance = (2 * x * y * m**2 + 1e-4) / ((x**2 + y**2) * m**2 + 1e-4)
    contrast = (2 * x * y * m * (1 - m) + 9e-4) / ((x**2 + y**2) * m * (1 - m) + 9e-4)
    loss = losses.ssim_loss(jnp.full((20, 20, 1), 2 * x - 1), jnp.full((20, 20, 1), 2 * y - 1))
    np.testing.assert_allclose(loss, 1 - np.mean(luminance * contrast), rtol=1e-5)
    assert contrast[10, 10] == pytest.approx(1, abs=1e-9)  # no border in sight: the luminance alone is left


def test_ssim_is_symmetric_and_worst_for_inverted_structure(pair):
    image, target = pair
    np.testing.assert_allclose(losses.ssim_loss(image, target), losses.ssim_loss(target, image), rtol=1e-5)
    assert float(losses.ssim_loss(-target, target)) > 1


# --- robust -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (2.0, lambda r: r**2 / 2),
        (1.0, lambda r: np.sqrt(r**2 + 1) - 1),
        (0.0, lambda r: np.log(r**2 / 2 + 1)),
        (-2.0, lambda r: 2 * r**2 / (r**2 + 4)),
        (-np.inf, lambda r: 1 - np.exp(-(r**2) / 2)),
        (np.inf, lambda r: np.exp(r**2 / 2) - 1),
    ],
)
def test_the_named_losses_among_the_general_ones(alpha, expected):
    x = np.linspace(-4, 4, 33)
    np.testing.assert_allclose(general(x, alpha, 0.5), expected(x / 0.5), rtol=2e-5, atol=1e-7)
    slopes = jax.jit(jax.vmap(jax.grad(general), (0, None, None)))(jnp.asarray(x, jnp.float32), alpha, 0.5)
    assert bool(jnp.isfinite(slopes).all())
    numeric = (expected((x + 1e-5) / 0.5) - expected((x - 1e-5) / 0.5)) / 2e-5
    np.testing.assert_allclose(slopes, numeric, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.001, 0.3, 1.0, 1.5, 1.999, 2.0])
def test_log_partition_is_the_integral(alpha):
    if alpha in (0.0, 2.0):
        expected = {0.0: np.log(np.pi * np.sqrt(2)), 2.0: np.log(2 * np.pi) / 2}[alpha]
    else:
        b = 2 - alpha
        rho = lambda x: b / alpha * np.expm1(alpha / 2 * np.log1p(x * x / b))  # noqa: E731
        height = lambda u: np.exp(-rho(np.sinh(u))) * np.cosh(u)  # noqa: E731
        quad = lambda low, high: scipy.integrate.quad(height, low, high, epsabs=1e-12, limit=400)[0]  # noqa: E731
        expected = np.log(2 * (quad(0, 1) + quad(1, 5) + quad(5, 30)))
    np.testing.assert_allclose(log_partition(alpha), expected, atol=1e-6)


def test_the_adaptive_density_is_normalised():
    x = np.linspace(-400, 400, 400_001)
    parameters = losses.RobustParameters(jnp.array(1.2), jnp.array(-0.5))
    density = np.exp(-np.asarray(negative_log_density(x, parameters), float))
    np.testing.assert_allclose(scipy.integrate.trapezoid(density, x), 1.0, rtol=1e-4)


def test_adaptive_colours_keep_volume_and_frequencies_keep_energy(pair):
    image, target = pair
    assert abs(np.linalg.det(YUV)) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(YUV @ np.ones(3), [YUV[0].sum(), 0, 0], atol=1e-6)  # grey has no chroma
    # alpha near 2, scale 1: half the squared error in YUV, whatever the basis, plus a constant
    flat = losses.RobustParameters(jnp.array(30.0), jnp.array(0.0))
    excess = losses.robust_loss(image, target, flat) - losses.robust_loss(target, target, flat)
    yuv = np.asarray((image - target) / 2) @ YUV.T
    np.testing.assert_allclose(excess, np.sum(yuv**2) / 2, rtol=2e-2)


def test_robust_parameters_have_their_ranges():
    extreme = losses.RobustParameters(jnp.array([-40.0, 0.0, 40.0]), jnp.array([-40.0, 0.0, 40.0]))
    np.testing.assert_allclose(extreme.alpha, [0.001, 1.0, 1.999], rtol=1e-5)
    np.testing.assert_allclose(extreme.scale, [1e-5, 1.0, 40 + np.log(np.e - 1)], rtol=1e-4)
