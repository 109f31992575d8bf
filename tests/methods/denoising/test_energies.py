"""Denoising-EBM's energies, ladders and chains, on data whose noised densities are known in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.laws import Move, accept, exact_law, gaussian_test, mean_test, reject

from jebm import energy, mcmc
from jebm.methods.denoising import chains as chains
from jebm.methods.denoising import energies as parts
from jebm.methods.denoising.chains import RefinementConfig, SemanticChainConfig
from jebm.methods.denoising.ebm import likelihood_loss

pytestmark = pytest.mark.filterwarnings("error")

# a mixture on the line, unequal in weight and width
WEIGHTS, MEANS, WIDTHS = np.array([0.7, 0.3]), np.array([-0.8, 1.1]), np.array([0.25, 0.5])


def posterior_mean(x, sigma):
    """E[x | x̃] of the mixture, by components, in float64."""
    variances = WIDTHS**2 + sigma**2
    log_weights = np.log(WEIGHTS) - 0.5 * np.log(variances) - 0.5 * (x[:, None] - MEANS) ** 2 / variances
    weights = np.exp(log_weights - log_weights.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    return np.sum(weights * (MEANS + WIDTHS**2 / variances * (x[:, None] - MEANS)), 1)


def draw_mixture(key, n):
    choice_key, noise_key = jax.random.split(key)
    choice = jax.random.choice(choice_key, 2, (n,), p=jnp.asarray(WEIGHTS))
    return jnp.asarray(MEANS)[choice] + jnp.asarray(WIDTHS)[choice] * jax.random.normal(noise_key, (n,))


def mlp(params, x, sigma):
    """The network: u of a scalar x̃ and σ."""
    log_sigma = jnp.log(sigma)
    features = jnp.stack([x, x / jnp.sqrt(0.3 + sigma**2), log_sigma, jnp.ones_like(x)], -1)
    for i, (kernel, bias) in enumerate(params):
        features = features @ kernel + jax.lax.broadcast_to_rank(bias, features.ndim)
        features = jnp.tanh(features) if i < len(params) - 1 else features
    return features[..., 0]


def trained_mlp(key, levels, num_steps=1500):
    sizes = (4, 64, 64, 1)
    keys = jax.random.split(key, len(sizes))
    layers = zip(keys, sizes, sizes[1:], strict=False)
    params = [(jax.random.normal(k, (a, b)) / np.sqrt(a), jnp.zeros(b)) for k, a, b in layers]
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))

    @jax.jit
    def train(params):
        def step(carry, k):
            params, state = carry
            data_key, level_key, noise_key = jax.random.split(jax.random.fold_in(keys[-1], k), 3)
            x, sigma = draw_mixture(data_key, 1024), jax.random.choice(level_key, levels, (1024,))
            noise = jax.random.normal(noise_key, x.shape)
            gradient = jax.grad(lambda p: parts.denoising_loss(functools.partial(mlp, p), x, sigma, noise))(params)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(num_steps))[0][0]

    return train(params)


def test_the_learned_denoiser_reaches_the_posterior_mean_at_every_level(key):
    levels = jnp.asarray(parts.noise_ladder(1.0, 0.1, 5), jnp.float32)
    predictor = functools.partial(mlp, trained_mlp(key, levels))
    for i, sigma in enumerate(levels):
        data_key, noise_key = jax.random.split(jax.random.fold_in(key, i))
        noisy = draw_mixture(data_key, 2000) + sigma * jax.random.normal(noise_key, (2000,))
        expected = posterior_mean(np.asarray(noisy, np.float64), float(sigma))
        learned = parts.denoise(predictor, noisy, jnp.full(2000, sigma))
        error = np.sqrt(np.mean((learned - expected) ** 2)) / float(sigma)
        assert error < 0.05, (float(sigma), error)
        # powerful enough to see a denoiser that does nothing, or the wrong sign of the noise
        assert np.sqrt(np.mean((noisy - expected) ** 2)) / float(sigma) > 0.15
        assert np.sqrt(np.mean((2.0 * noisy - learned - expected) ** 2)) / float(sigma) > 0.3


def quadratic_predictor(precision):
    """U of the energy ``λ x²/2``: u = -σ λ x."""
    return lambda x, sigma: -sigma[:, None] * precision * x


def test_the_optimum_of_denoising_score_matching_on_a_gaussian(key):
    s2, sigma2, n = 1.3, 0.49, 200_000
    data_key, noise_key = jax.random.split(key)
    x = np.sqrt(s2) * jax.random.normal(data_key, (n, 1))
    noise, sigma = jax.random.normal(noise_key, (n, 1)), jnp.full(n, np.sqrt(sigma2))
    loss = lambda precision: parts.denoising_loss(quadratic_predictor(precision), x, sigma, noise)  # noqa: E731
    # a parabola in λ: its lowest point, from value, slope and curvature at 0
    best = -jax.grad(loss)(0.0) / jax.grad(jax.grad(loss))(0.0)
    assert best == pytest.approx(1.0 / (s2 + sigma2), rel=0.01)
    assert best != pytest.approx(1.0 / s2, rel=0.2)
    # ½ σ² E|score - target|², which is 1.48216 here
    rows = jax.vmap(lambda a, b: parts.denoising_loss(quadratic_predictor(best), a[None], sigma[:1], b[None]))(x, noise)
    accept(mean_test(rows, 0.5 * sigma2 * 1.48216))
    reject(mean_test(rows, 0.5 * sigma2 * 1.6))


def test_ladders_follow_the_rules():
    assert parts.ladder_ratio(3072) == pytest.approx(1.040, abs=5e-4)
    assert parts.ladder_ratio(12288) == pytest.approx(1.0195, abs=5e-5)
    assert [len(parts.optimal_ladder(1.0, 0.01, d)) for d in (3072, 12288)] == [120, 240]
    assert [len(parts.optimal_ladder(0.2, 0.01, d)) for d in (3072, 12288)] == [78, 157]
    assert parts.ladder_step_size(0.01, parts.ladder_ratio(3072), 5) == pytest.approx(6.5e-6, rel=0.01)
    assert parts.ladder_step_size(0.01, parts.ladder_ratio(12288), 5) == pytest.approx(3.5e-6, rel=0.01)
    # the two published ladders: 50 -> 0.01 in 232 levels with 6.2e-6, and 90 -> 0.01 in 500 with 3.3e-6
    for sigma_max, num_levels, published in [(50.0, 232, 6.2e-6), (90.0, 500, 3.3e-6)]:
        ratio = (sigma_max / 0.01) ** (1 / (num_levels - 1))
        assert parts.ladder_step_size(0.01, ratio, 5) == pytest.approx(published, rel=0.02)
    ladder = parts.optimal_ladder(1.0, 0.01, 64)
    assert (ladder[0], ladder[-1]) == pytest.approx((1.0, 0.01))
    ratios = ladder[:-1] / ladder[1:]
    np.testing.assert_allclose(ratios, ratios[0])
    assert 1 < ratios[0] <= parts.ladder_ratio(64)


def test_the_step_size_rule_by_running_its_chain():
    ratio, steps, sigma = 1.3, 4, 0.07

    def variance_after(epsilon):
        move = Move([epsilon], np.array([[1 / sigma**2]]), np.zeros(1), 1.0)
        return exact_law([move] * steps, np.zeros(1), np.array([[(ratio * sigma) ** 2]]))[1][0, 0] / sigma**2

    best = parts.ladder_step_size(sigma, ratio, steps)
    assert variance_after(best) < min(variance_after(0.9 * best), variance_after(1.1 * best))
    assert 1.0 < variance_after(best) < ratio**2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parts.noise_ladder(0.01, 1.0, 10), "from 0.01 to 1.0 in 10 levels: levels must fall"),
        (lambda: parts.noise_ladder(1.0, 1.0, 3), "levels must fall"),
        (lambda: parts.noise_ladder(1.0, 0.0, 3), "stay above 0"),
        (lambda: parts.noise_ladder(1.0, 0.1, 1), "one level: both ends the same"),
        (lambda: parts.noise_ladder(1.0, 0.1, 0), "0 levels: it needs at least 1"),
        (lambda: parts.optimal_ladder(0.1, 0.2, 3072), "levels must fall"),
        (lambda: parts.ladder_ratio(4), "at least 5 dimensions"),
        (lambda: parts.ladder_ratio(64, 1.0), "overlap in"),
        (lambda: parts.ladder_step_size(0.01, 1.1, 0), "steps_per_level=0 is out of range"),
        (lambda: parts.ladder_step_size(0.01, 0.9, 5), "ratio above 1"),
        (lambda: parts.semantic_energy("vecnorm"), r"did you mean 'vec_norm'.*there are vec_norm, scalar, quadratic"),
        (lambda: SemanticChainConfig(num_steps=0), "num_steps=0 is out of range: it must be >=1"),
        (lambda: RefinementConfig(steps_per_level=0), "steps_per_level=0 is out of range"),
        (lambda: RefinementConfig(sigma_start=0.0), "sigma_start=0.0 is out of range"),
        (lambda: RefinementConfig().ladder(0.2, 0.3, 64), "levels must fall"),
    ],
)
def test_wrong_inputs_are_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_semantic_energies_are_their_formulas():
    output, latent, again = jnp.array([3.0, -1.0]), jnp.array([1.0, 2.0, -2.0]), lambda: jnp.array([0.0, 2.0, 1.0])
    value = lambda name, out: float(parts.semantic_energy(name).function(out, latent, again))  # noqa: E731
    assert value("vec_norm", output) == pytest.approx(5.0)
    assert value("scalar", jnp.array([-0.75])) == pytest.approx(-0.75)
    assert value("quadratic", jnp.array(0.25)) == pytest.approx(0.25)
    assert value("latent_norm", None) == pytest.approx(4.5)
    assert value("latent_recon", None) == pytest.approx(5.0)


# two modes in the plane; the noise level is as large as the modes are wide
MODE_WEIGHTS, MODES, WIDTH, SIGMA = np.array([0.65, 0.35]), np.array([[-1.2, 0.4], [1.2, 0.4]]), 0.3, 0.3
VARIANCE = WIDTH**2 + SIGMA**2


def two_modes(x, sigma):
    """The optimal u of the two modes: σ ∇log p_σ."""
    variance = WIDTH**2 + sigma**2
    centred = x[None] - jnp.asarray(MODES)
    weights = jax.nn.softmax(jnp.log(jnp.asarray(MODE_WEIGHTS)) - 0.5 * jnp.sum(centred**2, -1) / variance)
    return -sigma * (weights @ centred) / variance


def draw_two_modes(key, n):
    choice_key, noise_key = jax.random.split(key)
    choice = jax.random.choice(choice_key, 2, (n,), p=jnp.asarray(MODE_WEIGHTS))
    return jnp.asarray(MODES)[choice] + np.sqrt(VARIANCE) * jax.random.normal(noise_key, (n, 2))


STEP = 0.012


def texture_chain(key, texture, n=20_000, num_steps=300):
    start_key, chain_key = jax.random.split(key)
    kernel = mcmc.langevin(texture, STEP)
    state, _ = mcmc.sample_chains(chain_key, kernel, draw_two_modes(start_key, n), num_steps, trace=())
    return np.asarray(state.position)


def second_coordinate(samples, variance):
    """The second coordinate, in which both modes agree, so its law is Gaussian with the step's own inflation."""
    inflated = variance / (1.0 - STEP / (2.0 * variance))
    return gaussian_test(samples[:, 1:], MODES[0, 1:], np.array([[inflated]]))


def between(samples):
    return int(np.sum(np.abs(samples[:, 0]) < 0.25))


def test_the_detached_drift_samples_the_noised_data_and_the_full_gradient_does_not(key):
    detached = texture_chain(key, parts.texture(two_modes, SIGMA))
    accept(second_coordinate(detached, VARIANCE))
    full = texture_chain(key, parts.texture(two_modes, SIGMA, detach=False))
    biased = VARIANCE**2 / SIGMA**2  # what ½‖u‖² itself has, twice the right variance
    accept(second_coordinate(full, biased))
    reject(second_coordinate(full, VARIANCE))
    assert detached[:, 1].var() == pytest.approx(0.186, rel=0.03)
    assert full[:, 1].var() == pytest.approx(0.366, rel=0.03)
    # ½‖u‖² vanishes between the modes, too
    exact = between(np.asarray(draw_two_modes(key, 20_000)))
    assert between(detached) < 2 * exact + 30
    assert between(full) > 4 * exact + 60


@pytest.mark.parametrize(
    "mutant",
    [
        lambda x, sigma: two_modes(x, sigma) / sigma,  # the score in the place of σ times the score
        lambda x, sigma: -two_modes(x, sigma),
        lambda x, sigma: two_modes(x, 2.0 * sigma),
    ],
    ids=["not scaled by sigma", "wrong sign", "wrong level"],
)
def test_faults_of_the_drift_are_seen(key, mutant):
    reject(second_coordinate(texture_chain(key, parts.texture(mutant, SIGMA), 4000, 100), VARIANCE))


def test_texture_values_and_gradients():
    x = jnp.array([0.3, -0.2])
    for detach in (True, False):
        value = parts.texture(two_modes, SIGMA, detach=detach)(x)
        denoised = parts.denoise(two_modes, x, SIGMA)
        assert value == pytest.approx(float(jnp.sum((x - denoised) ** 2)) / (2 * SIGMA**2), rel=1e-5)
        assert value == pytest.approx(float(0.5 * jnp.sum(two_modes(x, SIGMA) ** 2)), rel=1e-6)
    drift = jax.grad(parts.texture(two_modes, SIGMA))(x)
    np.testing.assert_allclose(drift, (x - parts.denoise(two_modes, x, SIGMA)) / SIGMA**2, rtol=1e-5)
    full = jax.grad(parts.texture(two_modes, SIGMA, detach=False))(x)
    np.testing.assert_allclose(full, jax.grad(lambda x: 0.5 * jnp.sum(two_modes(x, SIGMA) ** 2))(x), rtol=1e-6)
    assert np.abs(full - drift).max() > 0.1


def test_the_sum_of_both_parts():
    semantic = energy.bind(lambda x: jnp.sum(x))
    both = parts.total(semantic, parts.texture(two_modes, SIGMA), temperature=0.25, texture_weight=3.0)
    x = jnp.array([0.3, -0.2])
    assert both(x) == pytest.approx(4.0 * 0.1 + 3.0 * float(0.5 * jnp.sum(two_modes(x, SIGMA) ** 2)), rel=1e-5)


# chains against the exact law of their linear moves

START, TARGET = np.array([0.9, -0.4]), np.array([0.2, 0.7])
PRECISION = np.array([[0.8, 0.3], [0.3, 0.5]])


def quadratic(scale, x, sigma):
    """F with precision ``scale σ`` times a fixed matrix, around a fixed point."""
    return scale * sigma * energy.gaussian(jnp.asarray(TARGET), jnp.asarray(PRECISION))(x)


def ends(key, run, n=40_000):
    start = jnp.asarray(START, jnp.float32)
    return jax.jit(jax.vmap(lambda k: run(k, energy.bind(quadratic, 1.5), start)))(mcmc.chain_keys(key, n))


def law(moves):
    mean, covariance, _ = exact_law(moves, START, 1e-12 * np.eye(2))
    return lambda samples: gaussian_test(samples, mean, covariance)


def test_a_level_of_the_semantic_chain_has_its_law_on_pixels(key):
    config, sigma = SemanticChainConfig(num_steps=4, noise_scale=0.6, max_drift=None), 0.5
    run = lambda config: lambda k, f, x: chains.run_level(k, f, x, jnp.asarray(sigma), config)  # noqa: E731
    # x' = x - ½ ∇F + bσ ξ
    test = law([Move([0.5, 0.5], 1.5 * sigma * PRECISION, TARGET, (0.6 * sigma) ** 2)] * 4)
    accept(test(ends(key, run(config))))
    reject(test(ends(key, run(SemanticChainConfig(num_steps=4, noise_scale=0.6 * 2**0.5, max_drift=None)))))
    reject(test(ends(key, run(SemanticChainConfig(num_steps=4, noise_scale=0.6, max_drift=0.05)))))
    reject(test(ends(key, run(SemanticChainConfig(num_steps=3, noise_scale=0.6, max_drift=None)))))
    other_level = lambda k, f, x: chains.run_level(k, f, x, jnp.asarray(0.6), config)  # noqa: E731
    reject(test(ends(key, other_level)))


def test_a_level_of_the_semantic_chain_has_its_law_on_latents(key):
    config, sigma = (
        SemanticChainConfig(num_steps=4, latent_step_size=0.2, latent_temperature=0.7, max_drift=None),
        jnp.asarray(0.5),
    )
    run = lambda latent: lambda k, f, x: chains.run_level(k, f, x, sigma, config, latent=latent)  # noqa: E731
    precision = 1.5 * 0.5 / 0.7 * PRECISION  # of F/τ; the reference adds the identity, and moves the mean
    total = precision + np.eye(2)
    test = law([Move([0.2, 0.2], total, np.linalg.solve(total, precision @ TARGET), 1.0)] * 4)
    accept(test(ends(key, run(True))))
    reject(law([Move([0.2, 0.2], precision, TARGET, 1.0)] * 4)(ends(key, run(True))))  # without the reference
    reject(test(ends(key, run(False))))


@pytest.mark.parametrize("recovery", [False, True])
def test_the_levels_of_the_first_stage_have_their_law(key, recovery):
    chain = SemanticChainConfig(num_steps=7, sampling_steps=3, noise_scale=0.6, max_drift=None)
    ladder = np.array([0.9, 0.5, 0.3])

    def run(k, f, x):
        return chains.anneal_semantic(k, f, x, ladder, chain, recovery=recovery)

    samples = ends(key, run, n=160_000 if recovery else 40_000)  # the reference changes the law by little
    if not recovery:
        moves = [Move([0.5, 0.5], 1.5 * s * PRECISION, TARGET, (0.6 * s) ** 2) for s in ladder for _ in range(3)]
        accept(law(moves)(samples))
        reject(law(moves[:6])(samples))
        reject(law(moves[::-1])(samples))
        return
    # jointly with the reference r, where a level starts: x' = x - ½ (F' + τ/gap² (x - r)) + bσ ξ
    mean, covariance = START, 1e-12 * np.eye(2)
    for i, s in enumerate(ladder):
        tau = (0.6 * s) ** 2
        weight = 0.0 if i == 0 else tau / (ladder[i - 1] ** 2 - s**2)
        k = 1.5 * s * PRECISION
        a = np.block([[np.eye(2) - 0.5 * (k + weight * np.eye(2)), 0.5 * weight * np.eye(2)],
                      [np.zeros((2, 2)), np.eye(2)]])  # fmt: skip
        joint_mean = np.concatenate([mean, mean])
        joint = np.block([[covariance, covariance], [covariance, covariance]])
        for _ in range(3):
            joint_mean = a @ joint_mean + np.concatenate([0.5 * k @ TARGET, np.zeros(2)])
            joint = a @ joint @ a.T + np.diag([tau, tau, 0, 0])
        mean, covariance = joint_mean[:2], joint[:2, :2]
    accept(gaussian_test(samples, mean, covariance))
    plain = [Move([0.5, 0.5], 1.5 * s * PRECISION, TARGET, (0.6 * s) ** 2) for s in ladder for _ in range(3)]
    reject(law(plain)(samples))


def gaussian_predictor(x, sigma):
    """The optimal u of data N(0.4, 0.3²) in each coordinate."""
    return -sigma * (x - 0.4) / (0.3**2 + sigma**2)


def refined(key, ladder, config, predictor=gaussian_predictor, n=40_000):
    start = jnp.asarray(START, jnp.float32)
    run = lambda k: chains.refine(k, predictor, start, ladder, config)[0]  # noqa: E731
    return jax.jit(jax.vmap(run))(mcmc.chain_keys(key, n))


def refinement_law(ladder, steps, epsilon, power=2):
    moves = [
        Move([epsilon * (s / ladder[-1]) ** power] * 2, np.eye(2) / (0.09 + s**2), np.full(2, 0.4), 1.0)
        for s in ladder
        for _ in range(steps)
    ]
    mean, covariance, _ = exact_law(moves, START, 1e-12 * np.eye(2))
    shrink = 0.09 / (0.09 + ladder[-1] ** 2)  # the last step is the posterior mean
    return lambda samples: gaussian_test(samples, 0.4 + shrink * (mean - 0.4), shrink**2 * covariance)


def test_the_refinement_has_its_law(key):
    ladder = np.array([0.4, 0.2, 0.1])
    config = RefinementConfig(steps_per_level=2, step_size=2e-3)
    test = refinement_law(ladder, 2, 2e-3)
    samples = refined(key, ladder, config)
    accept(test(samples))
    reject(test(refined(key, ladder, RefinementConfig(steps_per_level=2, step_size=2e-3, drift="full"))))
    reject(test(refined(key, ladder[::-1], config)))
    reject(refinement_law(ladder, 2, 2e-3, power=1)(samples))
    reject(refinement_law(np.array([0.4, 0.2, 0.15]), 2, 2e-3)(samples))
    # the rule's step size where none is given
    ruled = parts.ladder_step_size(0.1, 2.0, 2)
    accept(refinement_law(ladder, 2, ruled)(refined(key, ladder, RefinementConfig(steps_per_level=2))))


def test_refinement_records_its_steps(key):
    ladder, config = np.array([0.4, 0.2, 0.1]), RefinementConfig(steps_per_level=2, step_size=2e-3)
    x, steps = chains.refine(key, gaussian_predictor, jnp.zeros(2), ladder, config, positions_every=3)
    assert steps.shape == (2, 2)
    np.testing.assert_allclose(x, parts.denoise(gaussian_predictor, steps[-1], 0.1), rtol=1e-6)


def test_refinement_brings_noise_to_the_data(key):
    """From pure noise down a ladder of 100 levels: mean and deviation of the data."""
    ladder = parts.optimal_ladder(1.0, 0.02, 3072)
    start_key, chain_key = jax.random.split(key)
    start = 0.5 + jax.random.normal(start_key, (20_000, 1))
    run = lambda k, x: chains.refine(k, gaussian_predictor, x, ladder, RefinementConfig())[0]  # noqa: E731
    samples = jax.jit(jax.vmap(run))(mcmc.chain_keys(chain_key, 20_000), start)
    assert samples.mean() == pytest.approx(0.4, abs=0.01)
    assert samples.std() == pytest.approx(0.3, rel=0.1)  # the ladder's own lag: 0.320
    epsilon = parts.ladder_step_size(ladder[-1], ladder[0] / ladder[1], 5)
    moves = [
        Move([epsilon * (s / ladder[-1]) ** 2], np.array([[1 / (0.09 + s**2)]]), np.full(1, 0.4), 1.0)
        for s in np.repeat(ladder, 5)
    ]
    mean, covariance, _ = exact_law(moves, np.full(1, 0.5), np.eye(1))
    shrink = 0.09 / (0.09 + ladder[-1] ** 2)
    accept(gaussian_test(samples, 0.4 + shrink * (mean - 0.4), shrink**2 * covariance))


# the likelihood's gradient against quadrature

B, LADDER = 0.5, np.array([0.8, 0.4, 0.2])
THETA = jnp.array([0.5, -0.3, 0.2, 0.4])
GRID = np.linspace(-8.0, 8.0, 8001)


def learned_energy(theta, x, sigma):
    """F_θ of a scalar: τ/(2 (0.4 + σ²)) x² and four bumps, in units of τ."""
    x = x.reshape(())
    centres, tau = jnp.array([-1.2, -0.3, 0.6, 1.5]), (B * sigma) ** 2
    bumps = jnp.exp(-0.5 * (x - centres) ** 2 / (0.3 + sigma**2))
    return tau * (0.5 * x**2 / (0.4 + sigma**2) + theta @ bumps * (1.0 + 0.3 * jnp.log(sigma)))


def quadrature_gradient(theta):
    """Mean over levels of τ times the gradient of E[-log p_σ(x̃)], by sums on a grid."""
    total = 0.0
    for sigma in LADDER:
        variances = WIDTHS**2 + sigma**2
        data = np.exp(-0.5 * (GRID[:, None] - MEANS) ** 2 / variances) @ (WEIGHTS / np.sqrt(2 * np.pi * variances))
        values = jax.vmap(lambda x: learned_energy(theta, x, sigma))(jnp.asarray(GRID))  # noqa: B023
        slopes = np.asarray(jax.vmap(lambda x: jax.grad(learned_energy)(theta, x, sigma))(jnp.asarray(GRID)))  # noqa: B023
        model = np.exp(-np.asarray(values, np.float64) / (B * sigma) ** 2)
        step = GRID[1] - GRID[0]
        total = total + step * (data @ slopes) - (model / model.sum()) @ slopes
    return total / len(LADDER)


def estimated_gradient(key, config, n=30_000, ladder=LADDER):
    data_key, level_key, noise_key, start_key, chain_key = jax.random.split(key, 5)
    sigmas = jnp.asarray(ladder, jnp.float32)[jax.random.randint(level_key, (n,), 0, len(ladder))]
    true_sigmas = jnp.asarray(LADDER, jnp.float32)[jnp.searchsorted(-jnp.asarray(ladder, jnp.float32), -sigmas)]
    positives = (draw_mixture(data_key, n) + true_sigmas * jax.random.normal(noise_key, (n,)))[:, None]
    starts = jnp.roll(positives, 1) + sigmas[:, None] * jax.random.normal(start_key, (n, 1))
    semantic = energy.bind(learned_energy, THETA)
    chain = lambda k, x, s: chains.run_level(k, semantic, x, s, config)  # noqa: E731
    negatives = jax.jit(jax.vmap(chain))(mcmc.chain_keys(chain_key, n), starts, sigmas)
    loss = lambda theta: likelihood_loss(energy.bind(learned_energy, theta), positives, negatives, sigmas)[0]  # noqa: E731
    return np.asarray(jax.grad(loss)(THETA))


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_the_likelihood_gradient_over_levels_against_quadrature(key):
    exact = quadrature_gradient(THETA)
    config = SemanticChainConfig(num_steps=150, noise_scale=B, max_drift=None)
    estimate = estimated_gradient(key, config)
    assert cosine(estimate, exact) > 0.99
    assert np.linalg.norm(estimate) == pytest.approx(np.linalg.norm(exact), rel=0.15)
    # chains too short, at another temperature, or positives and negatives exchanged, point elsewhere
    assert (
        cosine(estimated_gradient(key, SemanticChainConfig(num_steps=1, noise_scale=B, max_drift=None)), exact) < 0.97
    )
    assert (
        cosine(estimated_gradient(key, SemanticChainConfig(num_steps=150, noise_scale=3 * B, max_drift=None)), exact)
        < 0.97
    )
    assert cosine(-estimate, exact) < 0
