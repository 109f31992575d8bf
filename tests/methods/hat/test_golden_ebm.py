"""Parity of Hat EBM's chains, updates and whole training steps with numbers from the authors' own code.

Sizes and constants are read from the files.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.golden import adam_moments, close_to_max, group, load

from jebm import mcmc
from jebm.convert.arrays import from_flat
from jebm.energy import bind
from jebm.mcmc import bank
from jebm.methods import ChainConfig, HatAutoencoderConfig, HatEBMConfig, Trained
from jebm.methods.hat import chains as hat_chains
from jebm.methods.hat import keras
from jebm.methods.hat.autoencoder import Draws as AutoencoderDraws
from jebm.methods.hat.autoencoder import HatAutoencoderState
from jebm.methods.hat.autoencoder import iterate as iterate_autoencoder
from jebm.methods.hat.autoencoder import loss as autoencoder_loss
from jebm.methods.hat.ebm import (
    Draws,
    HatEBMState,
    base_generator,
    energy_loss,
    generator_loss,
    iterate,
    optimizers,
    update_energy,
    update_generator,
)
from jebm.methods.hat.networks import HatDecoder, HatEncoder, HatEnergy, HatGenerator

pytestmark = pytest.mark.golden


@pytest.fixture(autouse=True)
def _highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


def number(case, name):
    return float(case[f"cfg/{name}"])


def hat_of(case, prefix, image_size):
    """(module, parameters) of the hat under a prefix; its width is that of the widest layer."""
    weights = group(case, prefix)
    module = HatEnergy(image_size, weights["head/kernel"].shape[0])
    return module, load(module, case, jnp.zeros((image_size, image_size, 3)), weights=prefix)[0]["params"]


def generator_of(case, prefix, latent, image_size, output_scale):
    """(module, variables) of the generator or decoder under a prefix."""
    weights = group(case, prefix)
    if "dense/kernel" in weights:
        width = weights["dense/bias"].size // 16
        module = HatGenerator(image_size, width, weights["out_conv/bias"].size, output_scale)
    else:
        module = HatDecoder(weights["stem/conv_1/bias"].size, weights["out_conv/bias"].size, output_scale)
    return module, load(module, case, latent, weights=prefix)[0]


CHAINS = [
    "decoder_joint", "joint", "joint_noise", "joint_tau", "joint_tau_clip", "res_clip", "res_mixed", "res_noclip",
]  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_chain(golden, name):
    case = golden(f"H4_{name}")
    z0, y0 = case["in/z0"], case["in/y0"]
    num_steps, size = len(case["out/z"]), y0.shape[1]
    hat, params = hat_of(case, "w/ebm", size)
    generator, variables = generator_of(case, "w/gen", z0[0], size, number(case, "out_factor"))
    hat, generator = bind(hat.apply, {"params": params}), bind(generator.apply, variables)
    joint, temperature = bool(case["cfg/update_latents"]), number(case, "mcmc_temp")
    noise = {part: np.zeros((len(a), num_steps, *a.shape[1:]), np.float32) for part, a in (("z", z0), ("y", y0))}
    if case["cfg/noise"]:
        noise = {part: np.moveaxis(case[f"in/noise_{part}"].astype(np.float32), 0, 1) for part in noise}
    config = ChainConfig(
        num_steps=num_steps, noise_scale=number(case, "epsilon"),
        latent_noise_scale=number(case, "epsilon_latent") if joint else 0.0,
        residual_precision=number(case, "tau_res"),
        max_drift=number(case, "max_norm") if case["cfg/clip"] else None,
    )  # fmt: skip

    @jax.jit
    @jax.vmap
    def chain(z, y, noise):
        key = jax.random.key(0)
        if joint:
            kernel = hat_chains.joint_kernel(hat, generator, config, temperature, noise)
            names = ("residual_drift", "latent_drift")
            _, info = mcmc.sample(key, kernel, {"z": z, "y": y}, num_steps, trace=names, positions_every=1)
            return info["position"], info
        kernel = hat_chains.conditional_kernel(hat, generator(z), config, temperature, noise["y"])
        _, info = mcmc.sample(key, kernel, y, num_steps, trace=("gradient_norm",), positions_every=1)
        drift = hat_chains.conditional_drift(info["gradient_norm"], config, temperature)
        still = {"residual_drift": drift, "latent_drift": jnp.zeros_like(drift)}
        return {"z": jnp.broadcast_to(z, (num_steps, *z.shape)), "y": info["position"]}, still

    image = jax.jit(jax.vmap(generator))
    positions, info = chain(z0, y0, noise)
    np.testing.assert_allclose(image(z0) + y0, case["out/x_init"], rtol=0, atol=1e-5)
    for k in range(1, num_steps + 1):
        z, y = (np.asarray(positions[part][:, k - 1]) for part in ("z", "y"))
        assert_moved(z, case["out/z"][k - 1], z0, k)
        assert_moved(y, case["out/y"][k - 1], y0, k)
        if len(case["out/x"]) == num_steps or k == num_steps:
            assert_moved(image(z) + y, case["out/x"][k - 1 if len(case["out/x"]) > 1 else 0], case["out/x_init"], k)
        np.testing.assert_allclose(info["residual_drift"][:, :k].mean(), case["out/mean_disp_res"][k - 1], rtol=1e-5)
        np.testing.assert_allclose(info["latent_drift"][:, :k].mean(), case["out/mean_disp_latent"][k - 1], rtol=1e-5)


def assert_moved(actual, expected, start, num_steps):
    bound = 2e-6 + 2e-5 * num_steps * np.abs(expected - start).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound)


def assert_tree(actual, case, prefix, fraction):
    expected = from_flat(group(case, prefix), {"params": actual})["params"]
    jax.tree.map(lambda a, b: close_to_max(np.asarray(a), np.asarray(b), fraction), actual, expected)


def assert_parameters(actual, case, prefix, bound, quantile=1.0):
    """All elements, or a quantile of them, within ``bound`` of the expected ones."""
    expected = from_flat(group(case, prefix), {"params": actual})["params"]
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    off = np.concatenate([np.abs(a - b).ravel() for a, b in pairs])
    assert np.quantile(off, quantile) <= bound


def empty_state():
    return HatEBMState(Trained({}, ()), {}, {}, None)


def trained(params, optimizer):
    return Trained(params, optimizer.init(params), params)


@pytest.mark.parametrize("name", ["clip", "noclip", "smallgrad"])
def test_hat_updates(golden, name):
    case = golden(f"H5_ebm_{name}")
    rate, size = number(case, "lr"), case["in/images_data"].shape[2]
    _, params = hat_of(case, "w0", size)
    config = HatEBMConfig(
        image_size=size, energy_width=params["head"]["kernel"].shape[0], temperature=number(case, "mcmc_temp"),
        energy_gradient_clip=number(case, "max_grad_norm") if case["cfg/clip"] else None,
        energy_learning_rate=((rate, 0),), ema_decay=number(case, "avg_decay"),
    )  # fmt: skip
    assert (number(case, "beta1"), number(case, "beta2"), number(case, "eps")) == (0.9, 0.999, 1e-7)
    state = empty_state()._replace(energy=trained(params, optimizers(config)[0]))

    gradients, _ = jax.jit(jax.grad(functools.partial(energy_loss, config), has_aux=True))(
        params, case["in/images_data"][0], case["in/images_samp"][0]
    )
    if case["cfg/clip"]:
        assert_tree(gradients, case, "out/grad1_raw", 1e-4)
        gradients = keras.clip_each_tensor(config.energy_gradient_clip).update(gradients, ())[0]
    assert_tree(gradients, case, "out/grad1", 1e-4)

    step = jax.jit(functools.partial(update_energy, config))
    for i in range(3):
        state, metrics = step(state, case["in/images_data"][i], case["in/images_samp"][i])
        np.testing.assert_allclose(metrics["energy_loss"], case["out/loss"][i], rtol=2e-5)
        if i == 0:
            assert_parameters(state.energy.params, case, "out/p1", 0.02 * rate)
    assert_parameters(state.energy.params, case, "out/p3", 0.05 * rate)
    if group(case, "out/avg3"):
        assert_parameters(state.energy.ema, case, "out/avg3", 0.05 * rate)
    if group(case, "out/adam_m3"):
        assert_tree(adam_moments(state.energy.optimizer).mu, case, "out/adam_m3", 1e-3)
        assert_tree(adam_moments(state.energy.optimizer).nu, case, "out/adam_v3", 1e-3)


def trainable(arrays):
    return {name: array for name, array in arrays.items() if not name.endswith(("/mean", "/var"))}


def test_optax_adam_would_fail_where_gradients_are_small(golden):
    case = golden("H5_ebm_smallgrad")
    rate, size = number(case, "lr"), case["in/images_data"].shape[2]
    _, params = hat_of(case, "w0", size)
    gradients = from_flat(group(case, "out/grad1"), {"params": params})["params"]
    moved = {}
    for name, optimizer in (("keras", keras.adam(((rate, 0),))), ("optax", optax.adam(rate, eps=1e-7))):
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        moved[name] = optax.apply_updates(params, updates)
    assert_parameters(moved["keras"], case, "out/p1", 0.02 * rate)
    with pytest.raises(AssertionError):
        assert_parameters(moved["optax"], case, "out/p1", 0.02 * rate)


def test_generator_updates(golden):
    case = golden("H5_gen")
    rate, (_, batch, size, _, channels) = number(case, "lr"), case["in/images"].shape
    del batch
    generator, variables = generator_of(case, "w0", case["in/z"][0, 0], size, number(case, "out_factor"))
    config = HatEBMConfig(
        image_size=size, channels=channels, generator_width=generator.width, latent_size=case["in/z"].shape[-1],
        output_scale=generator.output_scale, generator_learning_rate=((rate, 0),),
        ema_decay=number(case, "avg_decay"), generator_loss_scale=number(case, "loss_factor"),
    )  # fmt: skip
    base, params = base_generator(config), variables["params"]
    state = empty_state()._replace(
        generator=trained(params, optimizers(config)[1]), batch_stats=variables["batch_stats"]
    )
    loss = lambda p: generator_loss(  # noqa: E731
        config, base, {**variables, "params": p}, case["in/z"][0], case["in/images"][0]
    )
    assert_tree(jax.jit(jax.grad(loss))(params), case, "out/grad1", 1e-4)
    step = jax.jit(functools.partial(update_generator, config, base))
    for i in range(3):
        state, value = step(state, case["in/z"][i], case["in/images"][i])
        np.testing.assert_allclose(value, case["out/loss"][i], rtol=2e-5)
        if i == 0:
            assert_variables(variables_of(state), case, "out/p1", 0.02 * rate)
    assert_variables(variables_of(state), case, "out/p3", 0.05 * rate)
    assert_parameters(state.generator.ema, case, "out/avg3", 0.05 * rate)


def variables_of(state):
    return {"params": state.generator.params, "batch_stats": state.batch_stats}


def assert_variables(variables, case, prefix, bound, quantile=1.0):
    """Parameters within ``bound``; statistics as they were."""
    expected = from_flat(group(case, prefix), variables)
    jax.tree.map(np.testing.assert_array_equal, variables["batch_stats"], expected["batch_stats"])
    flat = {f"{prefix}/{name}": array for name, array in trainable(group(case, prefix)).items()}
    assert_parameters(variables["params"], flat, prefix, bound, quantile)


def test_learning_rate_steps(golden):
    case = golden("H5_lr_schedule")
    names = sorted(name for name in case if name.startswith("cfg/lr_info_"))
    assert names
    for name in names:
        steps = tuple((float(rate), int(first)) for rate, first in case[name])
        rates = jax.vmap(keras.learning_rate_steps(steps))(case["in/steps"].astype(np.int32))
        np.testing.assert_allclose(rates, case[f"out/lr_{name.rpartition('_')[2]}"], rtol=1e-7)


def whole_step_case(case, application):
    batch, size, _, channels = case["in/images_data"].shape[1:]
    del batch
    _, energy = hat_of(case, "w0/ebm", size)
    latent = case["in/n_z0"][0, 0]
    generator, variables = generator_of(case, "w0/gen", latent, size, 2.0)
    chain = ChainConfig(
        num_steps=int(case["cfg/mcmc_steps"]), noise_scale=number(case, "epsilon"),
        latent_noise_scale=number(case, "epsilon_latent") if case["cfg/update_latents"] else 0.0,
        residual_precision=number(case, "tau_res"),
        max_drift=number(case, "max_langevin_norm_res") if case["cfg/clip_langevin_grad_res"] else None,
        residual_start_scale=number(case, "init_scale_res"),
    )  # fmt: skip
    config = HatEBMConfig(
        application=application, image_size=size, channels=channels, latent_size=latent.size,
        energy_width=energy["head"]["kernel"].shape[0], generator_width=generator.width, output_scale=2.0,
        generator="" if application == "synthesis" else "network", temperature=number(case, "mcmc_temp"),
        chain=chain, test_chain=chain, energy_learning_rate=((number(case, "ebm_lr"), 0),),
        generator_learning_rate=((float(case.get("cfg/gen_lr", 1.0)), 0),),
        energy_gradient_clip=number(case, "max_grad_norm") if case["cfg/clip_ebm_grad"] else None,
        data_noise=number(case, "data_epsilon"), generator_loss_scale=number(case, "gen_loss_factor_coop"),
        ema_decay=number(case, "ebm_avg_decay"),
    )  # fmt: skip
    return config, empty_state()._replace(energy=trained(energy, optimizers(config)[0]), generator=variables)


def run_two_steps(case, config, state):
    base = base_generator(config)
    hat = HatEnergy(config.image_size, config.energy_width)

    @jax.jit
    def step(draws, state, images):
        y0 = config.chain.residual_start_scale * draws.residual
        variables = variables_of(state) if isinstance(state.generator, Trained) else state.generator
        start = jax.vmap(functools.partial(base.apply, variables))(draws.latent) + y0
        samples = hat_chains.run_chains(
            draws.chain_key, bind(hat.apply, {"params": state.energy.params}), bind(base.apply, variables),
            draws.latent, y0, config.chain, config.temperature, draws.chain_noise,
        )  # fmt: skip
        return start, samples.image, *iterate(config, base, draws, state, images)

    for i in range(2):
        noise = {
            name: np.moveaxis(case[f"in/n_{name}"][i].astype(np.float32), 0, 1)
            for name in ("z", "y")
            if f"in/n_{name}" in case
        }
        batch = case["in/images_data"].shape[1]
        draws = Draws(
            latent=number(case, "init_scale_latent") * case["in/n_z0"][i],
            residual=case["in/n_y0"][i].astype(np.float32),
            data=case["in/n_data"][i].astype(np.float32),
            chain_key=jax.random.key(0),
            indices=case["in/perm"][i, :batch] if "in/perm" in case else None,
            chain_noise=noise,
        )
        start, samples, state, metrics = step(draws, state, case["in/images_data"][i])
        expected = case["out/images_samp"][i]
        np.testing.assert_allclose(samples, expected, rtol=0, atol=1e-4 * np.abs(expected - start).max())
        np.testing.assert_allclose(metrics["energy_loss"], case["out/ebm_loss"][i], rtol=1e-4)
        np.testing.assert_allclose(metrics["residual_drift"], case["out/mean_disp_res"][i], rtol=1e-4)
        if "out/gen_loss" in case:
            np.testing.assert_allclose(metrics["generator_loss"], case["out/gen_loss"][i], rtol=1e-4)
        if "out/z_norm" in case:
            np.testing.assert_allclose(metrics["latent_norm"], case["out/z_norm"][i], rtol=1e-4)
            np.testing.assert_allclose(metrics["latent_drift"], case["out/mean_disp_latent"][i], rtol=1e-4)
    rate = number(case, "ebm_lr")
    assert_parameters(state.energy.params, case, "out/p2/ebm", 0.05 * rate, 0.995)
    if config.ema_decay == number(case, "ebm_avg_decay"):
        assert_parameters(state.energy.ema, case, "out/avg2/ebm", 0.05 * rate, 0.995)
    return state


def test_two_steps_of_synthesis(golden):
    case = golden("H7_synth_step")
    config, state = whole_step_case(case, "synthesis")
    generator = state.generator
    pairs = bank.init({"z": case["in/bank_z0"], "image": case["in/bank_x0"]})
    start = state._replace(
        generator=trained(generator["params"], optimizers(config)[1]), batch_stats=generator["batch_stats"], bank=pairs
    )
    state = run_two_steps(case, config, start)
    rate = number(case, "gen_lr")
    assert_variables(variables_of(state), case, "out/p2/gen", 0.05 * rate, 0.995)
    # theirs has a decay for each network, and no weight depends on an average
    other = run_two_steps(case, dataclasses.replace(config, ema_decay=number(case, "gen_avg_decay")), start)
    assert_parameters(other.generator.ema, case, "out/avg2/gen", 0.05 * rate, 0.995)
    np.testing.assert_array_equal(state.bank.entries["z"], case["out/bank_z2"])
    moved = np.abs(case["out/bank_x2"] - case["in/bank_x0"]).max()
    np.testing.assert_allclose(state.bank.entries["image"], case["out/bank_x2"], rtol=0, atol=1e-4 * moved)


def test_two_steps_of_refinement(golden):
    case = golden("H7_joint_step")
    config, state = whole_step_case(case, "refinement")
    after = run_two_steps(case, config, state)
    jax.tree.map(np.testing.assert_array_equal, after.generator, state.generator)


def test_two_steps_of_the_autoencoder(golden):
    case = golden("H7_ae_step")
    size, channels = case["in/images"].shape[2], case["in/images"].shape[-1]
    width = case["w0/gen/stem/conv_1/bias"].size
    encoder, _ = load(HatEncoder(width), case, jnp.zeros((size, size, channels)), weights="w0/enc")
    decoder, _ = load(HatDecoder(width, channels), case, case["in/n_latent"][0, 0], weights="w0/gen")
    rate = number(case, "lr")
    config = HatAutoencoderConfig(
        image_size=size, channels=channels, width=width, latent_noise=number(case, "latent_noise"),
        loss_scale=number(case, "loss_factor"), learning_rate=((rate, 0),),
    )  # fmt: skip
    params = {"encoder": encoder["params"], "decoder": decoder["params"]}
    optimizer = keras.adam(config.learning_rate)
    state = HatAutoencoderState(
        trained(encoder["params"], optimizer), trained(decoder["params"], optimizer), decoder["batch_stats"]
    )
    value = autoencoder_loss(config, params, state.batch_stats, case["in/images"][0])
    np.testing.assert_allclose(value, case["out/test_loss0"][0], rtol=2e-5)

    loss = lambda p: autoencoder_loss(  # noqa: E731
        config, p, state.batch_stats, case["in/images"][0], case["in/n_latent"][0]
    )
    gradients = jax.jit(jax.grad(loss))(params)
    assert_tree(gradients["encoder"], case, "out/grad1/enc", 2e-5)
    assert_tree(gradients["decoder"], case, "out/grad1/gen", 2e-5)
    step = jax.jit(functools.partial(iterate_autoencoder, config))
    for i in range(2):
        state, metrics = step(AutoencoderDraws(case["in/n_latent"][i]), state, case["in/images"][i])
        np.testing.assert_allclose(metrics["loss"], case["out/train_loss"][i], rtol=2e-5)
    assert_parameters(state.encoder.params, case, "out/p2/enc", 0.05 * rate)
    decoder = {"params": state.decoder.params, "batch_stats": state.batch_stats}
    assert_variables(decoder, case, "out/p2/gen", 0.05 * rate)
