"""Hat EBM: the laws its chains follow, one evaluation of G a step, the bank, frozen generators, mistakes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers.alternating import Alternating
from helpers.laws import accept, ks_test

import jebm
from jebm.energy import bind
from jebm.errors import ConfigError
from jebm.methods import ChainConfig, HatAutoencoderConfig, HatEBMConfig, with_weights
from jebm.methods import hat_autoencoder as build_autoencoder
from jebm.methods import hat_ebm as build
from jebm.methods.hat import chains as hat_chains
from jebm.methods.hat.ebm import base_generator, draw, hat_network, iterate
from jebm.methods.hat.networks import HatGenerator

JOINT = ChainConfig(num_steps=4, noise_scale=0.05, latent_noise_scale=0.07, residual_precision=3.0, max_drift=0.02)


def curved_hat(weights, x):
    return jnp.sum(jnp.tanh(weights @ x)) + 0.3 * jnp.sum(x**2)


def curved_generator(weights, z):
    return jnp.cosh(weights @ z)


@pytest.fixture
def pair(key):
    """(H, G, z, y): a hat on 5 numbers over a generator from 3."""
    keys = jax.random.split(key, 4)
    hat = bind(curved_hat, jax.random.normal(keys[0], (4, 5)))
    generator = bind(curved_generator, 0.5 * jax.random.normal(keys[1], (5, 3)))
    return hat, generator, jax.random.normal(keys[2], (6, 3)), 0.1 * jax.random.normal(keys[3], (6, 5))


def plain_energy(hat, generator, temperature, tau, prior, x):
    """T U, as it is written."""
    h = hat(generator(x["z"]) + x["y"])
    return h + temperature * (tau * jnp.sum(x["y"] ** 2) + prior * 0.5 * jnp.sum(x["z"] ** 2))


def plain_kernel(pair, config, temperature):
    hat, generator, *_ = pair
    energy = bind(plain_energy, hat, generator, temperature, config.residual_precision, float(config.latent_prior))
    step = lambda scale: jebm.mcmc.from_noise_scale(scale, temperature)  # noqa: E731
    kernel = jebm.langevin(
        energy, {"z": step(config.latent_noise_scale), "y": step(config.noise_scale)}, temperature,
        max_drift={"z": jnp.inf, "y": config.max_drift or jnp.inf},
    )  # fmt: skip
    return Alternating(kernel, ("z", "y"))


@pytest.mark.parametrize("prior", [False, True])
def test_joint_kernel_equals_the_plain_form_draw_for_draw(key, pair, prior):
    hat, generator, z, y = pair
    config, temperature = dataclasses.replace(JOINT, latent_prior=prior), 0.2
    state, _ = jebm.sample_chains(key, plain_kernel(pair, config, temperature), {"z": z, "y": y}, config.num_steps)
    samples = hat_chains.run_chains(key, hat, generator, z, y, config, temperature)
    np.testing.assert_allclose(samples.z, state.position["z"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(samples.y, state.position["y"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(samples.image, jax.vmap(generator)(samples.z) + samples.y, rtol=1e-5)
    bound = config.max_drift
    assert 0.5 * bound < float(samples.residual_drift) < 0.99 * bound  # it bites on some chains, not on all


def evaluations(function, *arguments):
    """How often cosh stands in a program, loops counted once."""
    return str(jax.make_jaxpr(function)(*arguments)).count("= cosh ")


def test_a_joint_step_evaluates_the_generator_once(key, pair):
    hat, generator, z, y = pair
    position = {"z": z[0], "y": y[0]}
    ours, plain = hat_chains.joint_kernel(hat, generator, JOINT, 0.2), plain_kernel(pair, JOINT, 0.2)
    assert evaluations(ours.step, key, ours.init(position)) == 1
    assert evaluations(plain.step, key, plain.init(position)) > 1


def test_a_conditional_chain_evaluates_the_generator_once(key, pair):
    hat, generator, z, y = pair
    calls = []

    def counted(z):
        jax.debug.callback(lambda: calls.append(1))
        return generator(z)

    config = dataclasses.replace(JOINT, latent_noise_scale=0.0)
    hat_chains.run_chains(key, hat, counted, z, y, config, 0.2).image.block_until_ready()
    jax.effects_barrier()
    assert len(calls) in (1, len(z))  # of four steps and six chains
    calls.clear()
    hat_chains.run_chains(key, hat, counted, z, y, JOINT, 0.2).image.block_until_ready()
    jax.effects_barrier()
    assert len(calls) in (5, 5 * len(z))  # the start, and once a step


def test_without_latent_noise_the_joint_kernel_is_the_conditional_one(pair):
    hat, generator, z, y = pair
    config = dataclasses.replace(JOINT, latent_noise_scale=0.0)
    noise = jax.random.normal(jax.random.key(3), (4, 5))
    conditional = hat_chains.conditional_kernel(hat, generator(z[0]), config, 0.2, noise)
    recorded = {"z": jnp.zeros((4, 3)), "y": noise}
    joint = hat_chains.joint_kernel(hat, generator, config, 0.2, recorded)
    one, _ = jebm.sample(jax.random.key(0), conditional, y[0], 4)
    both, _ = jebm.sample(jax.random.key(0), joint, {"z": z[0], "y": y[0]}, 4)
    np.testing.assert_allclose(both.position["y"], one.position, rtol=1e-5)
    np.testing.assert_array_equal(both.position["z"], z[0])


@pytest.mark.parametrize("joint", [False, True])
def test_scaling_hat_and_temperature_alike_changes_nothing(key, pair, joint):
    hat, generator, z, y = pair
    config = dataclasses.replace(JOINT, latent_noise_scale=0.07 if joint else 0.0)
    one = hat_chains.run_chains(key, hat, generator, z, y, config, 0.25)
    scaled = hat_chains.run_chains(key, jebm.energy.scale(hat, 2.0**10), generator, z, y, config, 0.25 * 2.0**10)
    np.testing.assert_array_equal(one.z, scaled.z)
    np.testing.assert_array_equal(one.y, scaled.y)


def half_square(x):
    return 0.5 * jnp.sum(x**2)


def test_stationary_variance_of_a_conditional_chain(key):
    """H = ‖x‖²/2 at T: the variance of x is T / (1 - ε²/(4T)), around 0 wherever G(z) lies."""
    temperature, noise_scale, chains = 0.25, 0.6, 4000
    config = ChainConfig(num_steps=60, noise_scale=noise_scale, max_drift=None)
    z = jnp.full((chains, 2), 1.5)
    samples = hat_chains.run_chains(
        key, bind(half_square), bind(lambda z: 2 * z), z, jnp.zeros_like(z), config, temperature
    )
    x = np.asarray(samples.image)
    expected = temperature / (1 - noise_scale**2 / (4 * temperature))
    assert np.abs(x.mean(0)).max() < 4.5 * np.sqrt(expected / chains)
    np.testing.assert_allclose(x.var(0), expected, rtol=4.5 * np.sqrt(2 / chains))
    np.testing.assert_allclose(samples.y, samples.image - 3.0, atol=1e-6)


def test_law_of_a_joint_chain_with_its_proper_density_options(key):
    """Linear G, H = ‖x‖²/2 at T, prior of z and τ: (z, y) is Gaussian with precision known."""
    temperature, tau, chains = 2.0, 0.8, 8000
    matrix = np.array([[1.0], [-2.0]])
    config = ChainConfig(
        num_steps=400, noise_scale=0.15, latent_noise_scale=0.1, residual_precision=tau, latent_prior=True,
        max_drift=None,
    )  # fmt: skip
    linear = bind(lambda a, z: a @ z, jnp.asarray(matrix, jnp.float32))
    samples = hat_chains.run_chains(
        key, bind(half_square), linear, jnp.zeros((chains, 1)), jnp.zeros((chains, 2)), config, temperature
    )
    full = np.concatenate([matrix, np.eye(2)], axis=1) / np.sqrt(temperature)
    precision = full.T @ full + np.diag([1.0, 2 * tau, 2 * tau])
    found = np.cov(np.concatenate([samples.z, samples.y], axis=1).T)
    np.testing.assert_allclose(found, np.linalg.inv(precision), atol=0.03)


def downhill(x):
    """Unbounded below, as a network of rectifiers."""
    return -jnp.sum(jnp.abs(x))


@pytest.mark.parametrize("joint", [False, True])
def test_a_box_holds_long_chains_of_an_energy_unbounded_below(key, joint):
    chains, latent_noise_scale = 200, 0.05 if joint else 0.0
    free = ChainConfig(num_steps=300, noise_scale=0.3, latent_noise_scale=latent_noise_scale, max_drift=None)
    z, y = jax.random.uniform(key, (chains, 2), minval=-0.4, maxval=0.4), jnp.zeros((chains, 2))

    def images(config):
        return np.asarray(hat_chains.run_chains(key, bind(downhill), bind(jnp.sin), z, y, config, 0.5).image)

    assert np.abs(images(free)).min(1).mean() > 5  # they run away
    inside = images(dataclasses.replace(free, box=1.25))
    assert np.abs(inside).max() <= 1.25 + 1e-6
    assert (np.abs(inside) > 1.0).any()
    # a box that no chain meets changes nothing
    short = dataclasses.replace(free, num_steps=2)
    np.testing.assert_allclose(images(dataclasses.replace(short, box=50.0)), images(short), atol=1e-6)  # rounding


def test_a_box_restricts_the_law_of_a_conditional_chain(key):
    """H = ‖x‖²/2 at T, wherever G(z) is in the box: x is normal of variance T, truncated at ±B."""
    temperature, box, chains = 0.5, 0.6, 6000
    config = ChainConfig(num_steps=300, noise_scale=0.1, max_drift=None, box=box)
    z = jnp.full((chains, 1), 0.4)
    samples = hat_chains.run_chains(key, bind(half_square), bind(jnp.sin), z, jnp.zeros_like(z), config, temperature)
    scale = np.sqrt(temperature)
    accept(ks_test(samples.image, scipy.stats.truncnorm(-box / scale, box / scale, scale=scale).cdf))


SMALL = HatEBMConfig(
    image_size=8, channels=1, latent_size=4, energy_width=8, generator_width=8, bank_size=20,
    chain=ChainConfig(num_steps=3), test_chain=ChainConfig(num_steps=4, max_drift=None),
)  # fmt: skip
FROZEN = dataclasses.replace(
    SMALL, application="refinement", generator="network", temperature=1e-3,
    chain=ChainConfig(num_steps=3, latent_noise_scale=5e-3),
    test_chain=ChainConfig(num_steps=2, latent_noise_scale=5e-3),
)  # fmt: skip


@pytest.fixture
def batch():
    return jnp.clip(jax.random.normal(jax.random.key(9), (6, 8, 8, 1)), -1, 1)


def test_a_step_of_synthesis_uses_and_overwrites_these_rows_alone(key, batch):
    base, method = base_generator(SMALL), build(SMALL)
    state = jax.jit(method.init)(key, batch)
    assert state.bank.size == 18
    np.testing.assert_allclose(
        jax.vmap(method.generator(state))(state.bank.entries["z"]),
        state.bank.entries["image"], atol=1e-6,
    )  # fmt: skip
    draws = draw(SMALL, jax.random.key(1), state, batch)
    after, metrics = jax.jit(lambda d, s, b: iterate(SMALL, base, d, s, b))(draws, state, batch)
    assert float(metrics["generator_loss"]) < 1e-9  # the bank still holds G(z)
    assert float(metrics["latent_drift"]) == 0
    changed = (after.bank.entries["z"] != state.bank.entries["z"]).any(1)
    assert sorted(np.flatnonzero(changed)) == sorted(draws.indices.tolist())
    np.testing.assert_array_equal(after.bank.entries["z"][draws.indices], draws.latent)
    assert after.bank.ages.tolist() == [0 if row in draws.indices.tolist() else 1 for row in range(18)]
    starts = jax.vmap(method.generator(state))(draws.latent)
    moved = np.asarray(after.bank.entries["image"][draws.indices] - starts)
    assert 0 < np.abs(moved).max() < 3 * 2.5 + 0.1
    np.testing.assert_allclose(
        jnp.linalg.norm(moved.reshape(6, -1), axis=1).mean(), metrics["residual_norm"], rtol=1e-4
    )


@pytest.mark.parametrize(
    ("size", "width", "low", "high"),
    [
        (32, 256, 0.03, 0.2),
        pytest.param(64, 1024, 0.02, 0.15, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_first_drift_at_the_authors_settings_is_of_the_noises_order(key, size, width, low, high):
    """At T = 1e-8 and initial weights a chain moves y by about its noise a step, far below the clip."""
    config = HatEBMConfig(image_size=size, energy_width=width, generator_width=width, chain=ChainConfig(num_steps=1))
    blocks = jax.random.uniform(key, (2, 4, 4, 3), minval=-1)
    images = jnp.repeat(jnp.repeat(blocks, size // 4, 1), size // 4, 2)
    params = jax.jit(hat_network(config).init)(key, images[0])
    drift = hat_chains.run_chains(
        key, bind(hat_network(config).apply, params), bind(lambda z: z), images, jnp.zeros_like(images),
        config.chain, config.temperature,
    ).residual_drift  # fmt: skip
    assert low < float(drift) < high


@pytest.mark.slow
def test_refinement_leaves_its_generator_alone(key, batch):
    method = build(FROZEN)
    state = jax.jit(method.init)(key, batch)
    after, metrics = jax.jit(method.update)(jax.random.key(1), state, batch)
    jax.tree.map(np.testing.assert_array_equal, after.generator, state.generator)
    assert float(metrics["latent_drift"]) > 0
    assert "generator_loss" not in metrics
    assert (after.energy.params["head"]["kernel"] != state.energy.params["head"]["kernel"]).any()
    images = jax.jit(method.generate, static_argnums=2)(key, state, 3)
    more = jax.jit(method.generate, static_argnums=2)(key, state, 5)
    np.testing.assert_allclose(more[:3], images, atol=1e-5)


def picture(z):
    return jnp.tanh(jnp.outer(jnp.ones(8), jnp.repeat(z, 2)))[..., None]


def given_generators(key):
    network = HatGenerator(8, 8, 1, 1.0)
    autoencoder = HatAutoencoderConfig(image_size=8, channels=1, width=4)
    stage_one = build_autoencoder(autoencoder)
    decoder = stage_one.generator(stage_one.init(key, jnp.zeros((2, 8, 8, 1))))
    return {
        "sn_gan": (FROZEN, bind(network.apply, network.init(key, jnp.zeros(4)))),
        "closure": (FROZEN, picture),
        "decoder": (dataclasses.replace(FROZEN, application="retrofit"), decoder),
    }


@pytest.mark.parametrize("name", ["sn_gan", "closure", "decoder"])
def test_any_pure_function_can_be_refined(key, batch, name):
    config, generator = given_generators(key)[name]
    method = build(config, generator)
    state = jax.jit(method.init)(key, batch)
    assert bool(jax.tree.leaves(state.generator)) == (name != "closure")  # bound weights are in the state
    images = jax.jit(method.generate, static_argnums=2)(key, state, 2)
    assert images.shape == (2, 8, 8, 1)
    assert np.isfinite(images).all()
    alone = dataclasses.replace(config, test_chain=dataclasses.replace(config.test_chain, num_steps=0))
    start_key, _ = jax.random.split(key)
    latents = [jax.random.split(k)[0] for k in jebm.chain_keys(start_key, 2)]
    shape = (4, 4, 1) if name == "decoder" else (4,)
    expected = [generator(jax.random.normal(k, shape)) for k in latents]
    start = jax.jit(build(alone, generator).generate, static_argnums=2)(key, state, 2)
    np.testing.assert_allclose(start, jnp.stack(expected), atol=1e-5)


def test_energy_is_the_hat_over_the_temperature_and_the_average_is_used_when_asked(key, batch):
    method = build(SMALL)
    state = jax.jit(method.init)(key, batch)
    state = state._replace(energy=state.energy._replace(ema=jax.tree.map(lambda a: 2 * a, state.energy.params)))
    assert method.weights == "raw"
    for weights, params in ((None, state.energy.params), ("raw", state.energy.params), ("ema", state.energy.ema)):
        used = state if weights is None else with_weights(state, weights)
        expected = hat_network(SMALL).apply({"params": params}, batch) / SMALL.temperature
        np.testing.assert_allclose(jax.vmap(method.energy(used))(batch), expected, rtol=1e-6)


def test_new_weights_retrace_neither_energy_nor_generator(key, batch):
    for config, generator in ((SMALL, None), (FROZEN, None), given_generators(key)["sn_gan"]):
        method = build(config, generator)
        states = [jax.eval_shape(method.init, k, batch) for k in jax.random.split(key)]
        for function in (method.energy, method.generator):
            one, other = (jax.tree.structure(function(state)) for state in states)
            assert one == other


def test_a_recovery_backs_off_rates_and_noise_scales():
    """The fields that a recovery changes are there, and the changed configuration is a valid one."""
    for config in (SMALL, FROZEN, HatAutoencoderConfig()):
        for name in (name for names in config.BACK_OFF.values() for name in names):
            head, _, rest = name.partition(".")
            child = getattr(config, head)
            assert getattr(child, rest) >= 0 if rest else child is not None
    half = dataclasses.replace(FROZEN.chain, noise_scale=FROZEN.chain.noise_scale / 2)
    backed_off = build(dataclasses.replace(FROZEN, chain=half))
    assert backed_off.chain.step_size == pytest.approx(build(FROZEN).chain.step_size / 4)
    assert HatEBMConfig.BACK_OFF["step_size"] == ("chain.noise_scale", "chain.latent_noise_scale")
    assert HatEBMConfig.BACK_OFF["learning_rate"] == ("energy_learning_rate", "generator_learning_rate")


@pytest.mark.parametrize(("name", "run"), [("", None), ("network", None), ("runs/x", "runs/x")])
def test_which_generators_are_runs(name, run):
    config = dataclasses.replace(FROZEN if name else SMALL, generator=name)
    assert config.generator_run == jebm.methods.given_generator(config) == run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"application": "refinement"}, "chain.latent_noise_scale=0.0: in refinement it must be above 0: its chains"),
        ({"chain": JOINT}, "chain.latent_noise_scale=0.07: in synthesis it must be 0: z stays"),
        ({"generator": "runs/x"}, "generator='runs/x': synthesis trains its own generator; leave it empty"),
        ({"image_size": 24}, "image_size=24 is out of range: it must be one of (8, 16, 32, 64, 128)"),
        ({"energy_learning_rate": ((1e-4, 5),)}, "energy_learning_rate=((0.0001, 5),): rows of (learning rate above 0"),
        ({"temperature": 0.0}, "temperature=0.0 is out of range: it must be >0"),
    ],
)  # fmt: skip
def test_wrong_configurations_are_refused(change, message):
    with pytest.raises(ConfigError) as error:
        dataclasses.replace(SMALL, **change)
    assert str(error.value).startswith(message)


def test_a_frozen_generator_is_not_drawn_at_random(tmp_path):
    """Its weights come from `jebm convert`, into the run's directory, or from another run."""
    from jebm.config import Config, DataConfig
    from jebm.runs.directory import RunDirectory
    from jebm.training import train

    config = Config(method=FROZEN, data=DataConfig(source="digits", batch_size=4))
    with pytest.raises(
        ConfigError, match="method.generator is a frozen network, and there are no weights of it in this --"
    ):
        train(config, RunDirectory(tmp_path / "run"), lambda line: None)


def test_generators_that_do_not_fit_are_refused(key, batch):
    with pytest.raises(ConfigError, match=r"generator='': refinement needs one"):
        dataclasses.replace(FROZEN, generator="")
    with pytest.raises(ConfigError, match=r"the generator makes images of \(8, 8\) from latents of \(4,\)"):
        build(FROZEN, lambda z: picture(z)[..., 0]).init(key, batch)
    with pytest.raises(ConfigError, match=r"does not take latents of shape \(5,\)"):
        build(dataclasses.replace(FROZEN, latent_size=5), given_generators(key)["sn_gan"][1]).init(key, batch)
    with pytest.raises(ConfigError, match="synthesis trains its own generator"):
        build(SMALL, picture)
    with pytest.raises(ConfigError, match="width must be a multiple of 16 at 64 px, got 8"):
        build(dataclasses.replace(SMALL, image_size=64)).init(key, jnp.zeros((2, 64, 64, 1)))
