"""Parity of EC-VAE's chains, losses, dual step and whole iterations with numbers from the authors' own code.

The files' energies are f/τ; sizes and constants are read from the files.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.golden import close_to_max, group, head_of, load, stats_like, vectors_like

from jebm import energy, mcmc
from jebm.convert.arrays import from_flat
from jebm.methods import ECVAEConfig
from jebm.methods.ec import calibration
from jebm.methods.ec.calibration import CalibrationConfig
from jebm.methods.ec.energy_model import NetworkState
from jebm.methods.ec.vae import Draws, ECVAEState, energy_model, initialize, iterate, kl_divergence, networks
from jebm.networks import spectral_norm

pytestmark = pytest.mark.golden


@pytest.fixture(autouse=True)
def _highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


def settings_of(case, run, **options):
    return CalibrationConfig(
        num_steps=int(case[f"{run}/cfg/steps"]),
        step_size=float(case[f"{run}/cfg/step_size"]),
        temperature=float(case[f"{run}/cfg/tau"]),
        hinge=0.07,
        **options,
    )


def trajectory(module, params, start, reference, config, noise):
    """Positions x_0 .. x_K and energies E(x_0) .. E(x_{K-1}) of a batch of calibration chains."""
    head = energy.bind(lambda params, x: module.apply({"params": params}, x), params)

    @jax.jit
    @jax.vmap
    def chain(start, reference, noise):
        kernel = calibration.calibration_kernel(head, reference, config, noise)
        first = kernel.init(start)
        state, info = mcmc.sample(jax.random.key(0), kernel, start, config.num_steps, positions_every=1)
        del state, first
        positions = jnp.concatenate([start[None], info["position"]])
        return positions, jax.vmap(head)(positions) / config.temperature

    positions, energies = chain(start, reference, noise)
    return np.moveaxis(positions, 0, 1), np.moveaxis(energies, 0, 1)[:-1]


def assert_trajectory(case, run, positions, energies, per_step=2e-5):
    start = case[f"{run}/in/x0"]
    for row, k in enumerate(case[f"{run}/out/x_index"]):
        expected = case[f"{run}/out/x"][row]
        bound = 2e-6 + per_step * max(int(k), 1) * np.abs(expected - start).max()
        np.testing.assert_allclose(positions[k], expected, rtol=0, atol=bound)
    expected = case[f"{run}/out/energy"]
    np.testing.assert_allclose(energies, expected, rtol=2e-5, atol=1e-5 * np.abs(expected).max())


RUNS = ["inactive5", "inactive15", "active5", "active15", "crossing15"]


@pytest.mark.parametrize("run", RUNS)
def test_calibration_chain_without_noise(golden, run):
    case = golden("E5_sgld_det")
    start = case[f"{run}/in/x0"]
    module, params = head_of(case, image=start.shape[1:])
    config = settings_of(case, run)
    reference = case.get(f"{run}/in/xc", start)
    noise = np.zeros((len(start), config.num_steps, *start.shape[1:]), np.float32)
    positions, energies = trajectory(module, params, start, reference, config, noise)
    assert_trajectory(case, run, positions, energies)
    clipped = np.square(np.clip(positions[:-1], -1, 1) - np.clip(reference, -1, 1)).sum((2, 3, 4))
    np.testing.assert_allclose(clipped, case[f"{run}/out/d"], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("run", ["demo15", "big5"])
def test_calibration_chain_with_recorded_noise(golden, run):
    case = golden("E5_sgld_noise")
    start = case[f"{run}/in/x0"]
    module, params = head_of(case, image=start.shape[1:])
    config = settings_of(case, run)
    reference = case.get(f"{run}/in/xc", start)
    noise = np.moveaxis(case[f"{run}/in/noise"].astype(np.float32), 0, 1)
    positions, energies = trajectory(module, params, start, reference, config, noise)
    assert_trajectory(case, run, positions, energies)
    if f"{run}/in/xc" not in case:  # the chain started at its condition is what training runs
        head = energy.bind(lambda params, x: module.apply({"params": params}, x), params)
        calibrated = calibration.calibrate(jax.random.key(0), head, start, config, noise)
        np.testing.assert_allclose(calibrated, case[f"{run}/out/x"][-1], rtol=0, atol=2e-6)


@pytest.mark.slow  # -m golden takes it along
def test_chain_with_a_power_iteration_at_each_evaluation(golden):
    case, run = golden("E5_sgld_sn_train"), "run"
    start = case[f"{run}/in/x0"]
    module, params = head_of(case, image=start.shape[1:])
    spectral = vectors_like(spectral_norm.init(jax.random.key(0), params), case, "sn0")
    config = settings_of(case, run)

    def at_evaluation(params, spectral, step, x):
        u = jax.lax.fori_loop(0, step + 1, lambda _, u: spectral_norm.iterate(params, u), spectral)
        return module.apply({"params": spectral_norm.normalize(params, u)}, x)

    head = energy.anneal(at_evaluation, params, spectral)
    for row, k in enumerate(case[f"{run}/out/x_index"]):
        if k == 0:
            continue

        @jax.vmap
        def chain(start, k=k):
            kernel = calibration.calibration_kernel(head, start, config, jnp.zeros((int(k), *start.shape)))
            return mcmc.sample(jax.random.key(0), kernel, start, int(k))[0].position

        expected = case[f"{run}/out/x"][row]
        bound = 2e-6 + 5e-5 * k * np.abs(expected - start).max()
        np.testing.assert_allclose(chain(start), expected, rtol=0, atol=bound)
    after = spectral_norm.iterate(params, spectral, config.num_steps)
    expected = vectors_like(spectral, case, f"sn{config.num_steps}")
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=5e-5), after, expected)


def test_dual_step(golden):
    case = golden("E6_dual")
    for run in sorted({name.split("/")[0] for name in case}):
        config = CalibrationConfig(
            tolerance=float(case[f"{run}/cfg/eps"]), dual_rate=float(case[f"{run}/cfg/lr"]), dual_max=100.0
        )
        dual, path = jnp.float32(case[f"{run}/cfg/lam0"]), [case[f"{run}/cfg/lam0"]]
        for loss in case[f"{run}/in/loss"]:
            dual = calibration.dual_step(dual, loss, config, dimension=3072)
            path.append(dual)
        np.testing.assert_allclose(np.asarray(path, np.float32), case[f"{run}/out/lam"], rtol=1e-6, atol=1e-7)


def test_moving_average(golden):
    case = golden("E6_ema")
    names = sorted(group(case, "m0"))
    trained = [name for name in names if not name.endswith(("mean", "var"))]
    assert trained
    assert len(trained) < len(names)
    shadow = {name: case[f"m0/{name}"] for name in trained}
    for k in (1, 2, 3):
        shadow = optax.incremental_update({name: case[f"m{k}/{name}"] for name in trained}, shadow, 1.0 - 0.9)
        for name in trained:
            np.testing.assert_allclose(shadow[name], case[f"shadow{k}/{name}"], rtol=2e-6, atol=1e-7)


def test_losses(golden):
    case = golden("E6_losses")
    data, calibrated = case["in/pos_img"], case["in/calibrated_samples"]
    beta, lam = float(case["cfg/beta"]), float(case["cfg/lam"])

    def terms(reconstructed, samples, mu, logvar):
        reconstruction = jnp.sum(jnp.square(reconstructed - data)) / len(data)
        kl = kl_divergence(mu, logvar)
        calib = calibration.calibration_loss(calibrated, samples)
        return reconstruction + beta * kl + lam * calib, (reconstruction, kl, calib)

    inputs = [case[f"in/{name}"] for name in ("recon_img", "samples", "mu", "logvar")]
    (total, (reconstruction, kl, calib)), gradients = jax.value_and_grad(terms, (0, 1, 2, 3), has_aux=True)(*inputs)
    for value, name in [(total, "final"), (reconstruction, "recon"), (kl, "kl"), (calib, "calibration")]:
        np.testing.assert_allclose(value, case[f"out/{name}_loss"], rtol=1e-5)
    for gradient, name in zip(gradients, ("recon_img", "samples", "mu", "logvar"), strict=True):
        np.testing.assert_allclose(gradient, case[f"out/g_{name}"], rtol=1e-5, atol=1e-7)


def iteration_case(golden):
    case = golden("E6_iteration")
    layers = tuple((int(channels), int(blocks)) for channels, blocks in case["cfg/layers"])
    kernel = case["w0/vae/decoder/init/conv_1/kernel"]
    image = case["in/x"].shape[2:]
    config = ECVAEConfig(
        image_size=image[0],
        channels=image[-1],
        latent_size=kernel.shape[-2],
        encoder_width=case["w0/vae/encoder/conv_1/kernel"].shape[-1],
        decoder_width=kernel.shape[-1] // 32,
        energy_layers=layers,
        energy_head_width=case["w0/ebm/head/fc_1/bias"].size,
        energy_scales=3 if "w0/ebm/scale1/stem/kernel" in case else 1,
        power_iterations="per_evaluation",
        kl_weight=float(case["cfg/beta"]),
        vae_learning_rate=float(case["cfg/lr_vae"]),
        energy_learning_rate=float(case["cfg/lr_ebm"]),
        b1=float(case["cfg/b1"]),
        b2=float(case["cfg/b2"]),
        calibration=CalibrationConfig(
            num_steps=int(case["cfg/steps"]),
            step_size=float(case["cfg/step_size"]),
            temperature=float(case["cfg/tau"]),
            hinge=0.07,
            tolerance=float(case["cfg/eps_dual"]),
            dual_initial=float(case["cfg/lam0"]),
            dual_rate=float(case["cfg/lr_dual"]),
        ),
    )
    nets = networks(config)
    encoder, _ = load(nets.encoder, case, jnp.zeros((1, *image)), weights="w0/vae/encoder")
    decoder, decoder_spectral = load(
        nets.decoder, case, jnp.zeros((1, config.latent_size)), weights="w0/vae/decoder", vectors="sn0/vae/decoder"
    )
    f, spectral = load(energy_model(config).network, case, jnp.zeros((1, *image)), weights="w0/ebm", vectors="sn0/ebm")
    # optimisers and λ are those of a fresh state; parameters, statistics and vectors are the file's
    fresh = jax.jit(functools.partial(initialize, config))(jax.random.key(0), jnp.zeros((1, *image)))
    recorded = {"encoder": encoder["params"], "decoder": decoder["params"]}
    state = ECVAEState(
        vae={name: fresh.vae[name]._replace(params=params, ema=params) for name, params in recorded.items()},
        batch_stats={"encoder": encoder["batch_stats"], "decoder": decoder["batch_stats"]},
        vae_spectral={"encoder": {}, "decoder": decoder_spectral},
        energy=NetworkState(fresh.energy.trained._replace(params=f["params"]), spectral),
        dual=fresh.dual,
    )
    shape = tuple(case["in/noise_sgld_shape"])
    signs = np.unpackbits(case["in/noise_sgld_bits"])[: np.prod(shape)].reshape(shape)
    return case, config, state, np.where(signs, np.float32(1), np.float32(-1))


def params_of(state):
    return {name: network.params for name, network in state.vae.items()}


COMPARED = ("kl", "reconstruction", "calibration", "energy_data", "energy_negative")


def test_two_whole_iterations(golden):
    case, config, state, signs = iteration_case(golden)

    @jax.jit
    def step(draws, state, images):
        state, metrics = iterate(config, draws, state, images)
        return state, {name: metrics[name] for name in COMPARED}  # the rest is not compiled

    average = jax.device_get(params_of(state))
    tau, lam = config.calibration.temperature, [case["cfg/lam0"]]
    for i in range(2):
        noise = np.moveaxis(signs[i], 1, 2)  # [2 chains, B, K, H, W, C]
        key = jax.random.key(0)
        draws = Draws(case["in/noise_reparam"][i], case["in/noise_z"][i], key, key, noise[0], noise[1])
        dual_before = state.dual
        decay = (1 + i) / (10 + i)  # rising, far below 0.999 yet
        state, metrics = step(draws, state, case["in/x"][i])
        lam.append(state.dual)
        average = jax.tree.map(lambda a, b, d=decay: d * a + (1 - d) * b, average, jax.device_get(params_of(state)))
        for ours, theirs in [("kl", "kl"), ("reconstruction", "recon"), ("calibration", "calibration")]:
            np.testing.assert_allclose(metrics[ours], case[f"out/{theirs}_loss"][i], rtol=1e-5)
        total = metrics["reconstruction"] + config.kl_weight * metrics["kl"] + dual_before * metrics["calibration"]
        np.testing.assert_allclose(total, case["out/final_loss"][i], rtol=1e-5)
        for ours, theirs in [("energy_data", "pos_out"), ("energy_negative", "neg_out")]:
            expected = case[f"out/{theirs}"][i]
            bound = (1e-5 if i == 0 else 1e-3) * np.abs(expected).max()
            np.testing.assert_allclose(metrics[ours] / tau, expected.mean(), rtol=0, atol=bound)
        if i == 0:  # with b1 = 0 Adam's first moment is the gradient
            moments = {name: network.optimizer[0].mu for name, network in state.vae.items()}
            assert_trees(moments, case, "out/grad1/vae", 3e-4)
            assert_trees(state.energy.trained.optimizer[0].mu, case, "out/grad1/ebm", 3e-4)
    np.testing.assert_allclose(np.asarray(lam, np.float32), case["out/lam"], rtol=1e-6)
    assert_parameters(params_of(state), case, "out/p2/vae", config.vae_learning_rate)
    assert_parameters(state.energy.trained.params, case, "out/p2/ebm", config.energy_learning_rate)
    averages = {name: network.ema for name, network in state.vae.items()}
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), averages, average)
    for name in ("encoder", "decoder"):
        expected = stats_like(state.batch_stats[name], case, f"out/stats2/vae/{name}")
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), state.batch_stats[name], expected
        )
    vectors = {"out/sn2/vae/decoder": state.vae_spectral["decoder"], "out/sn2/ebm": state.energy.spectral}
    for prefix, ours in vectors.items():
        expected = vectors_like(ours, case, prefix)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-3), ours, expected)


def assert_trees(actual, case, prefix, fraction):
    expected = from_flat(group(case, prefix), {"params": actual})["params"]
    jax.tree.map(lambda a, b: close_to_max(np.asarray(a), np.asarray(b), fraction), actual, expected)


def assert_parameters(actual, case, prefix, learning_rate):
    expected = from_flat(group(case, prefix), {"params": actual})["params"]
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    moved = np.concatenate([np.abs(a - b).ravel() for a, b in pairs])
    assert np.quantile(moved, 0.999) <= 0.02 * learning_rate
    assert moved.max() <= 2 * learning_rate
