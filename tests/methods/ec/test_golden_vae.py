"""Parity of EC-VAE's chains, losses, dual step and whole iterations with numbers from the authors' own code.

The files' energies are f/τ; sizes and constants are read from the files.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.golden import close_to_max, group, load, stats_like, vectors_like

from jebm import energy, mcmc
from jebm.convert.arrays import from_flat
from jebm.methods import ECVAEConfig, latent_chains
from jebm.methods.ec import calibration
from jebm.methods.ec.calibration import CalibrationConfig
from jebm.methods.ec.energy_networks import MSResNet, ResNet
from jebm.methods.ec.vae import Draws, ECVAEState, iterate, kl_divergence, networks, optimizers
from jebm.methods.ec.vae_networks import Decoder
from jebm.networks import spectral_norm

pytestmark = pytest.mark.golden


@pytest.fixture(autouse=True)
def _highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


def network_of(weights):
    """The energy network whose weights these are, its layers read off their names and shapes."""
    trunk = "scale1/" if any(name.startswith("scale1/") for name in weights) else ""
    layers = []
    for stage in range(9):
        pattern = re.compile(rf"{trunk}stage{stage}/block\d+/conv_1/kernel")
        kernels = [weight for name, weight in weights.items() if pattern.fullmatch(name)]
        if kernels:
            layers.append((kernels[0].shape[-1], len(kernels)))
    kind = MSResNet if trunk else ResNet
    return kind(layers=tuple(layers), head_width=weights["head/fc_1/bias"].size)


def head_of(case, prefix="w", image=(16, 16, 3)):
    weights = group(case, prefix)
    module = network_of(weights)
    variables, _ = load(module, case, jnp.zeros((1, *image)), weights=prefix)
    return module, variables["params"]


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


def test_normalized_descent(golden):
    case, run = golden("E5_sgld_det"), "normalised5"
    start = case[f"{run}/in/x0"]
    module, params = head_of(case, image=start.shape[1:])
    head = energy.bind(lambda params, x: module.apply({"params": params}, x), params)
    for row, k in enumerate(case[f"{run}/out/x_index"]):
        if k == 0:
            continue
        config = CalibrationConfig(
            sampler="normalized_descent", num_steps=int(k), step_size=float(case[f"{run}/cfg/step_size"]),
            temperature=float(case[f"{run}/cfg/tau"]),
        )  # fmt: skip
        moved = calibration.calibrate(jax.random.key(0), head, start, config)
        expected = case[f"{run}/out/x"][row]
        bound = 2e-6 + 2e-5 * k * np.abs(expected - start).max()
        np.testing.assert_allclose(moved, expected, rtol=0, atol=bound)


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


def latent_case(golden):
    case = golden("E5_sgld_latent")
    image = case["joint/in/x0"].shape[1:]
    module, params = head_of(case, "w/ebm", image)
    kernel = case["w/dec/init/conv_1/kernel"]
    decoder = Decoder(
        width=kernel.shape[-1] // 32, image_size=image[0], channels=image[-1], latent_size=kernel.shape[-2]
    )
    template = dict(jax.eval_shape(decoder.init, jax.random.key(0), jnp.zeros((1, kernel.shape[-2]))))
    template["spectral"] = spectral_norm.init(jax.random.key(0), template["params"])
    variables = from_flat(group(case, "w/dec") | group(case, "sn/dec"), template)
    normalized = spectral_norm.normalize(variables["params"], variables["spectral"])
    decode = lambda z: decoder.apply({"params": normalized, "batch_stats": variables["batch_stats"]}, z)  # noqa: E731
    return case, energy.bind(lambda params, x: module.apply({"params": params}, x), params), decode


def assert_energies(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_lookahead_chain(golden):
    case, head, decode = latent_case(golden)
    noise = np.moveaxis(case["z/in/noise_z"], 0, 1)
    settings = float(case["z/cfg/step_size"]), float(case["z/cfg/tau"])
    chain = lambda z, noise: latent_chains.lookahead_chain(head, decode, z, noise, *settings)  # noqa: E731
    z, energies = jax.jit(jax.vmap(chain))(case["z/in/z0"], noise)
    np.testing.assert_allclose(z, case["z/out/z"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(decode(z), case["z/out/x"], rtol=0, atol=2e-5)
    assert_energies(energies.T, case["z/out/energy"])


def test_joint_chain(golden):
    case, head, decode = latent_case(golden)
    noise = np.moveaxis(case["joint/in/noise_x"].astype(np.float32), 0, 1), np.moveaxis(case["joint/in/noise_z"], 0, 1)
    steps = float(case["joint/cfg/step_size_x"]), float(case["joint/cfg/step_size_z"])
    tau = float(case["joint/cfg/tau"])
    chain = lambda x, z, noise: latent_chains.joint_chain(head, decode, x, z, noise, steps, tau)  # noqa: E731
    x, z, energies = jax.jit(jax.vmap(chain))(case["joint/in/x0"], case["joint/in/z0"], noise)
    np.testing.assert_allclose(x, case["joint/out/x"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(z, case["joint/out/z"], rtol=0, atol=2e-5)
    assert_energies(energies.T, case["joint/out/energy"])


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
    energy_net, energy_spectral = load(nets.energy, case, jnp.zeros((1, *image)), weights="w0/ebm", vectors="sn0/ebm")
    vae = {"encoder": encoder["params"], "decoder": decoder["params"]}
    vae_optimizer, energy_optimizer = optimizers(config)
    state = ECVAEState(
        vae=vae,
        batch_stats={"encoder": encoder["batch_stats"], "decoder": decoder["batch_stats"]},
        vae_spectral={"encoder": {}, "decoder": decoder_spectral},
        vae_average=vae,
        vae_optimizer=vae_optimizer.init(vae),
        energy=energy_net["params"],
        energy_spectral=energy_spectral,
        energy_optimizer=energy_optimizer.init(energy_net["params"]),
        dual=jnp.float32(config.calibration.dual_initial),
    )
    shape = tuple(case["in/noise_sgld_shape"])
    signs = np.unpackbits(case["in/noise_sgld_bits"])[: np.prod(shape)].reshape(shape)
    return case, config, state, np.where(signs, np.float32(1), np.float32(-1))


COMPARED = ("kl", "reconstruction", "calibration", "energy_data", "energy_negative")


def test_two_whole_iterations(golden):
    case, config, state, signs = iteration_case(golden)

    @jax.jit
    def step(draws, state, images):
        state, metrics = iterate(config, draws, state, images)
        return state, {name: metrics[name] for name in COMPARED}  # the rest is not compiled

    average = jax.device_get(state.vae)
    tau, lam = config.calibration.temperature, [case["cfg/lam0"]]
    for i in range(2):
        noise = np.moveaxis(signs[i], 1, 2)  # [2 chains, B, K, H, W, C]
        key = jax.random.key(0)
        draws = Draws(case["in/noise_reparam"][i], case["in/noise_z"][i], key, key, noise[0], noise[1])
        dual_before = state.dual
        decay = (1 + i) / (10 + i)  # rising, far below 0.999 yet
        state, metrics = step(draws, state, case["in/x"][i])
        lam.append(state.dual)
        average = jax.tree.map(lambda a, b, d=decay: d * a + (1 - d) * b, average, jax.device_get(state.vae))
        for ours, theirs in [("kl", "kl"), ("reconstruction", "recon"), ("calibration", "calibration")]:
            np.testing.assert_allclose(metrics[ours], case[f"out/{theirs}_loss"][i], rtol=1e-5)
        total = metrics["reconstruction"] + config.kl_weight * metrics["kl"] + dual_before * metrics["calibration"]
        np.testing.assert_allclose(total, case["out/final_loss"][i], rtol=1e-5)
        for ours, theirs in [("energy_data", "pos_out"), ("energy_negative", "neg_out")]:
            expected = case[f"out/{theirs}"][i]
            bound = (1e-5 if i == 0 else 1e-3) * np.abs(expected).max()
            np.testing.assert_allclose(metrics[ours] / tau, expected.mean(), rtol=0, atol=bound)
        if i == 0:  # with b1 = 0 Adam's first moment is the gradient
            assert_trees(state.vae_optimizer[0].mu, case, "out/grad1/vae", 3e-4)
            assert_trees(state.energy_optimizer[0].mu, case, "out/grad1/ebm", 3e-4)
    np.testing.assert_allclose(np.asarray(lam, np.float32), case["out/lam"], rtol=1e-6)
    assert_parameters(state.vae, case, "out/p2/vae", config.vae_learning_rate)
    assert_parameters(state.energy, case, "out/p2/ebm", config.energy_learning_rate)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), state.vae_average, average)
    for name in ("encoder", "decoder"):
        expected = stats_like(state.batch_stats[name], case, f"out/stats2/vae/{name}")
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), state.batch_stats[name], expected
        )
    vectors = {"out/sn2/vae/decoder": state.vae_spectral["decoder"], "out/sn2/ebm": state.energy_spectral}
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
