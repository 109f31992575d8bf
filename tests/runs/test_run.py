"""A run in a notebook: what it shows of itself, and that it composes with other runs and with kernels."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import toy
from helpers.runs import VAE, fresh_run

import jebm
from jebm import restoration
from jebm.errors import ConfigError
from jebm.methods import HatEBMConfig
from jebm.methods.hat.chains import ChainConfig

KEY = jax.random.key(5)
HAT = HatEBMConfig(
    image_size=8, channels=1, latent_size=4, energy_width=4, generator_width=4, temperature=0.1,
    chain=ChainConfig(num_steps=2), test_chain=ChainConfig(num_steps=2), bank_size=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def vae(folder):
    return fresh_run(folder / "vae", VAE)


@pytest.fixture(scope="module")
def hat(folder):
    return fresh_run(folder / "hat", HAT, seed=1)


@pytest.fixture(scope="module")
def gaussian(folder):
    return fresh_run(folder / "toy", toy.ToyConfig())


def test_it_generates_what_the_method_does_and_compiles_once(vae, monkeypatch):
    drawn = vae.generate(KEY, 3)
    assert (drawn.shape, drawn.dtype.name) == ((3, 8, 8, 1), "float32")
    np.testing.assert_allclose(drawn, vae.method.generate(KEY, vae.state, 3), atol=1e-5)
    traces = []
    method = vae.method._replace(generate=lambda *given: traces.append(1) or vae.method.generate(*given))
    run = dataclasses.replace(vae, method=method)
    for key in jax.random.split(KEY, 3):
        run.generate(key, 2)
    assert len(traces) == 1
    with pytest.raises(ValueError, match="n must be an int of at least 1, got 0"):
        run.generate(KEY, 0)


def test_it_warns_of_images_that_left_the_data(vae):
    far = vae.method._replace(generate=lambda key, state, n: jnp.full((n, 8, 8, 1), 9.0))
    with pytest.warns(UserWarning, match="of 2 images, 2 lie far outside"):
        dataclasses.replace(vae, method=far).generate(KEY, 2)


def test_generator_and_reconstruction(vae, hat):
    z = jax.random.normal(KEY, (4,))
    np.testing.assert_allclose(vae.generator(z), vae.method.generator(vae.state)(z))
    batch = vae.generate(KEY, 2)
    again = vae.reconstruct(KEY, batch)
    np.testing.assert_allclose(again, vae.method.reconstruct(KEY, vae.state, batch), atol=1e-5)
    with pytest.raises(ValueError, match=r"images of this model have shape \[8, 8, 1\], got \[28, 28, 1\]"):
        vae.reconstruct(KEY, jnp.zeros((2, 28, 28, 1)))
    with pytest.raises(ConfigError, match="hat holds a model without an encoder"):
        hat.reconstruct(KEY, batch)


def test_the_kernel_is_trainings_chain(hat, vae):
    kernel = hat.kernel()
    x = vae.generate(KEY, 1)[0]
    state, _ = kernel.step(KEY, kernel.init(x))
    chain = hat.method.chain
    by_hand = jebm.langevin(hat.energy, chain.step_size * 0.1, max_drift=chain.max_drift)
    np.testing.assert_array_equal(state.position, by_hand.step(KEY, by_hand.init(x))[0].position)
    without = dataclasses.replace(hat, method=hat.method._replace(chain=None))
    with pytest.raises(ConfigError, match=r"no chain on images in training; take jebm.langevin\(run.energy, step"):
        without.kernel()


def test_products_differences_and_conditioning_over_two_runs(vae, hat):
    x = np.asarray(vae.generate(KEY, 3))
    e, h = (jax.jit(jax.vmap(run.energy)) for run in (vae, hat))
    product = jebm.energy.sum(vae.energy, hat.energy)
    unlike = jebm.energy.sum(vae.energy, jebm.energy.negate(hat.energy, 0.5))
    near = jebm.energy.condition(product, x[0], 2.0)
    seen = jebm.energy.latent(hat.energy, vae.generator, jebm.energy.standard_normal)  # one's energy, other's generator
    np.testing.assert_allclose(jax.vmap(product)(x), e(x) + h(x), rtol=1e-4)
    np.testing.assert_allclose(jax.vmap(unlike)(x), e(x) - 0.5 * h(x), rtol=1e-4)
    squares = np.sum((np.asarray(x) - x[0]) ** 2, (1, 2, 3))
    np.testing.assert_allclose(jax.vmap(near)(x), e(x) + h(x) + 2 * squares, rtol=1e-4)
    z = jnp.ones(4)
    np.testing.assert_allclose(seen(z), hat.energy(vae.generator(z)) + 2.0, rtol=1e-4)
    ends = jebm.sample_chains(KEY, jebm.langevin(near, 1e-3), x, 3)[0].position
    assert np.isfinite(ends).all()
    assert (ends != x).all()


def test_restoration_with_one_runs_generator_and_two_runs_energies(vae, hat):
    operator = restoration.Inpainting.of(restoration.box_mask(8))
    y = jax.vmap(operator.apply)(vae.generate(KEY, 2))
    settings = restoration.RestorationConfig(restarts=1, descent_steps=2, num_steps=2, step_size=1e-5)

    def restored(energy):
        prior = restoration.Prior(generator=vae.generator, energy=energy, latent=jnp.zeros(4))
        return np.asarray(restoration.restore(KEY, prior, operator, y, settings).images)

    both = restored(jebm.energy.sum(vae.energy, hat.energy))
    np.testing.assert_allclose(jax.vmap(operator.apply)(both), y, atol=1e-5)
    assert np.abs(both - restored(vae.energy)).max() > 0


def test_its_line(vae, gaussian):
    assert re.fullmatch(r"Run\('.*/vae', ec_vae, step 0, [\d,]+ parameters\)", repr(vae))
    assert repr(gaussian).endswith("/toy', toy, step 0, 65,601 parameters)")  # 8 x 8 + 1 + 64 x 1024
    assert str([vae]) == f"[{vae!r}]"


def record(run, metric, value, step=0, weights="ema"):
    folder = run.directory.evaluation
    folder.mkdir(exist_ok=True)
    protocol = {"step": step, "weights": weights}
    path = folder / f"{metric}-{weights}-{step}.json"
    path.write_text(json.dumps({"metric": metric, "value": value, "n": 2, "protocol": protocol}))


def test_its_page(folder):
    run = fresh_run(folder / "<shown>", VAE)
    page = run._repr_html_()
    assert page.count("data:image/png;base64,") == 1
    assert "&lt;shown&gt;" in page
    assert "score" not in page
    for metric, value in {"frechet_distance": 7.625, "reconstruction_error": 0.0625, "psnr": 3.0}.items():
        record(run, metric, value)
        record(run, metric, 99.0, step=1)
        record(run, metric, 98.0, weights="raw")
    (run.directory.evaluation / "damaged.json").write_text("{")
    page = run._repr_html_()
    assert re.findall(r"<td>(\w+)</td><td>([\d.]+)</td>", page) == [
        ("frechet_distance", "7.625"), ("reconstruction_error", "0.0625"),
    ]  # fmt: skip
    run.directory.samples.mkdir()
    (run.directory.samples / "step_0000000.png").write_bytes(b"the grid that training drew")
    assert "dGhlIGdyaWQgdGhhdCB0cmFpbmluZyBkcmV3" in run._repr_html_()
