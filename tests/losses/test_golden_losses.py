"""The image losses of the EC-VAE code: case E8. Sizes and parameters are the file's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jebm import losses
from jebm.losses import robust_unit, ssim_unit, transforms
from jebm.losses.robust import YUV, general, log_partition, negative_log_density

pytestmark = pytest.mark.golden

WATSON = {
    "dct": (losses.watson_dct_unit, losses.watson_dct, losses.mean_luminance_dct, 5e-5),
    "dft": (losses.watson_dft_unit, losses.watson_dft, losses.mean_luminance_dft, 3e-3),
}


@pytest.fixture(scope="module")
def case(golden):
    return golden("E8_losses")


def assert_close(value, expected, of_max):
    value = np.asarray(value)
    assert value.shape == expected.shape
    assert np.abs(value - expected).max() <= of_max * np.abs(expected).max()


def values_and_gradient(each, images):
    """The values [N] that ``each`` gives, and the gradient of their sum."""

    def total(images):
        values = each(images)
        return jnp.sum(values), values

    gradient, values = jax.jit(jax.grad(total, has_aux=True))(images)
    return values, gradient


def watson_parameters(case, kind):
    def stack(name, *shape):
        return jnp.stack([case[f"watson_{kind}/{c}/{name}"].reshape(shape) for c in ("ly", "lcb", "lcr")])

    size = (8, 8) if kind == "dct" else (8, 5)
    return losses.WatsonParameters(
        log_thresholds=stack("t_tild", *size),
        luminance=stack("alpha"),
        contrast_logits=stack("w_tild"),
        pooling=stack("beta"),
        channel_logits=jnp.asarray(case[f"watson_{kind}/w_tild"]),
        log_phase_weights=stack("w_phase_tild", *size) if kind == "dft" else None,
    )


@pytest.mark.parametrize("kind", ["dct", "dft"])
@pytest.mark.parametrize("which", ["default", "params"])
def test_watson(case, kind, which):
    unit, _, mean_luminance, of_max = WATSON[kind]
    parameters = watson_parameters(case, kind) if which == "params" else None
    targets = case["in/b"]
    luminance = mean_luminance(2 * targets - 1)

    def each(images):
        return jax.vmap(lambda x, y: unit(x, y, parameters, luminance))(images, targets)

    values, gradient = values_and_gradient(each, case["in/a"])
    np.testing.assert_allclose(values, case[f"out/watson_{kind}_rgb_{which}"], rtol=2e-5)
    assert_close(gradient, case[f"out/watson_{kind}_rgb_{which}_grad"], of_max)


@pytest.mark.parametrize("kind", ["dct", "dft"])
def test_watson_of_images_in_minus_one_to_one(case, kind):
    """The public functions: the same values, half the slope."""
    _, loss, mean_luminance, of_max = WATSON[kind]
    images, targets = 2 * case["in/a"] - 1, 2 * case["in/b"] - 1
    luminance = mean_luminance(targets)

    def each(images):
        return jax.vmap(lambda x, y: loss(x, y, luminance=luminance))(images, targets)

    values, gradient = values_and_gradient(each, images)
    np.testing.assert_allclose(values, case[f"out/watson_{kind}_rgb_default"], rtol=2e-5)
    assert_close(2 * gradient, case[f"out/watson_{kind}_rgb_default_grad"], of_max)


@pytest.mark.parametrize("kind", ["dct", "dft"])
def test_watson_grey_and_shifted(case, kind):
    unit, _, mean_luminance, _ = WATSON[kind]
    images, targets = case["in/a"], case["in/b"]
    grey = mean_luminance(2 * targets[..., :1] - 1)
    values = jax.jit(jax.vmap(lambda x, y: unit(x, y, luminance=grey)))(images[..., :1], targets[..., :1])
    np.testing.assert_allclose(jnp.sum(values), case[f"out/watson_{kind}_grey_default_sum"], rtol=2e-5)

    offset = jnp.array([3, 5])
    height, width = targets.shape[1:3]
    moved = np.pad(targets, ((0, 0), (4, 4), (4, 4), (0, 0)), "edge")[:, 3 : 3 + height, 5 : 5 + width]
    loss = losses.shifted(jax.tree_util.Partial(unit, luminance=mean_luminance(2 * moved - 1)), offset)
    values = jax.jit(jax.vmap(loss))(images, targets)
    np.testing.assert_allclose(values, case[f"out/watson_{kind}_rgb_shift_3_5"], rtol=2e-5)


def test_ssim(case):
    values, gradient = values_and_gradient(lambda x: jax.vmap(ssim_unit)(x, case["in/b"]), case["in/a"])
    np.testing.assert_allclose(values, case["out/ssim_each"], rtol=2e-5)
    np.testing.assert_allclose(jnp.mean(values), case["out/ssim"], rtol=2e-5)
    assert_close(gradient / len(values), case["out/ssim_grad"], 5e-5)


def test_general_robust_loss(case):
    alpha, scale = (case[f"general/in/{name}"][:, None] for name in ("alpha_clipped", "scale"))
    values = general(case["general/in/x"], alpha, scale)
    # small values in the file carry the rounding of (1 + small) - 1
    np.testing.assert_allclose(values, case["general/out/loss"], rtol=2e-5, atol=1e-6)


def adaptive_parameters(case):
    latents = (case[f"adaptive/latent_{name}_chw"].astype(np.float32) for name in ("alpha", "scale"))
    return losses.RobustParameters(*map(jnp.asarray, latents))


def test_adaptive_loss(case):
    parameters = adaptive_parameters(case)
    assert_close(log_partition(parameters.alpha), case["adaptive/log_partition_chw"], 2e-5)
    parameters = jax.tree.map(lambda a: jnp.moveaxis(a, 0, -1), parameters)
    values = jax.jit(jax.vmap(lambda x, y: robust_unit(x, y, parameters)))(case["in/a"], case["in/b"])
    np.testing.assert_allclose(values, case["out/adaptive_nhwc_params_sum"], rtol=2e-5)


def test_adaptive_loss_in_the_layout_of_the_repository(case):
    """The EC-VAE code hands over [N, C, H, W]: triples of columns play RGB, and the DCT runs over (C, H)."""

    def each(images, parameters):
        residual = (images - case["in/b"]).transpose(0, 3, 1, 2)
        yuv = jnp.reshape(residual.reshape(-1, 3) @ YUV.T, residual.shape)
        coefficients = jnp.moveaxis(transforms.dct(jnp.moveaxis(yuv, -1, 1)), 1, -1)
        return jnp.sum(negative_log_density(coefficients, parameters), axis=(1, 2, 3))

    parameters = adaptive_parameters(case)
    images = jnp.asarray(case["in/a"])
    values, gradient = values_and_gradient(lambda x: each(x, parameters), images)
    np.testing.assert_allclose(values, case["out/adaptive_repo_params_sum"], rtol=2e-5)
    default = jax.tree.map(jnp.zeros_like, parameters)
    np.testing.assert_allclose(each(images, default), case["out/adaptive_repo_default_sum"], rtol=2e-5)
    assert_close(gradient, case["out/adaptive_repo_params_grad"], 5e-5)
