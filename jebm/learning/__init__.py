"""Learning rules: losses for any energy, made for `jax.grad` and optax.

Each is a pure function ``(key, energy, batch, ...) -> (loss, aux)`` that is differentiated through the parameters of
the energy:

    def objective(params, key, batch):
        energy = jebm.energy.bind(network, params)      # or an nnx or equinox module itself
        kernel_of = lambda energy: jebm.langevin(energy, 0.01)
        return jebm.learning.contrastive_divergence(key, energy, batch, kernel_of, num_steps=10)

    gradients, aux = jax.grad(objective, has_aux=True)(params, key, batch)
    updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)

An nnx module is the energy itself, and is trained in place; chains that persist are carried along:

    start = jebm.learning.gaussian_noise(jnp.zeros(2), 1.0).draw
    chains = jebm.mcmc.bank.init(jax.vmap(start)(jebm.chain_keys(key, 8192)))

    @nnx.jit
    def iteration(network, optimizer, chains, key, batch):  # optimizer = nnx.Optimizer(network, ..., wrt=nnx.Param)
        rule = lambda network: jebm.learning.persistent_contrastive_divergence(
            key, network, batch, chains, kernel_of, 10, start)
        gradients, aux = nnx.grad(rule, has_aux=True)(network)
        optimizer.update(network, gradients)
        return aux.bank

By chains, in the order of how much they walk: `recovery_likelihood`, `diffusion_recovery_likelihood`,
`contrastive_divergence`, `persistent_contrastive_divergence`, `short_run_likelihood`. Without chains:
`denoising_score_matching`, `multilevel_denoising_score_matching`, `sliced_score_matching`,
`noise_contrastive_estimation`, `energy_discrepancy`. Of a potential that carries noise to data: `flow_matching`, and
`energy_matching` with chains. Each says what its optimum is: with chains that are short or
unadjusted that is not maximum likelihood, and a test of `tests/learning/` holds it to the exact one.
"""

from jebm.learning.discrepancy import energy_discrepancy as energy_discrepancy
from jebm.learning.likelihood import Contrast as Contrast
from jebm.learning.likelihood import contrastive_divergence as contrastive_divergence
from jebm.learning.likelihood import contrastive_loss as contrastive_loss
from jebm.learning.likelihood import persistent_contrastive_divergence as persistent_contrastive_divergence
from jebm.learning.likelihood import short_run_likelihood as short_run_likelihood
from jebm.learning.matching import Paths as Paths
from jebm.learning.matching import energy_matching as energy_matching
from jebm.learning.matching import flow_matching as flow_matching
from jebm.learning.noise import Noise as Noise
from jebm.learning.noise import gaussian_noise as gaussian_noise
from jebm.learning.noise_contrastive import Classified as Classified
from jebm.learning.noise_contrastive import noise_contrastive_estimation as noise_contrastive_estimation
from jebm.learning.recovery import diffusion_recovery_likelihood as diffusion_recovery_likelihood
from jebm.learning.recovery import recovery_likelihood as recovery_likelihood
from jebm.learning.score_matching import Scores as Scores
from jebm.learning.score_matching import denoising_score_matching as denoising_score_matching
from jebm.learning.score_matching import multilevel_denoising_score_matching as multilevel_denoising_score_matching
from jebm.learning.score_matching import sliced_score_matching as sliced_score_matching
