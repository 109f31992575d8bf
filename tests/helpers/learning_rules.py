"""Every learning rule on one small energy of a pytree."""

import jax
import jax.numpy as jnp
import numpy as np

from jebm import langevin, learning
from jebm.mcmc import bank

KEY = jax.random.key(7)
BATCH = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32), "y": jnp.linspace(-1.0, 1.0, 6)}
NOISE = learning.gaussian_noise({"x": jnp.zeros(3), "y": jnp.zeros(())}, 1.5)
PARAMS = {"w": jnp.array([0.3, -0.2, 0.9]), "k": jnp.asarray(1.3)}


def function(params, example):
    tilt = jnp.tanh(params["w"] @ example["x"])
    return 0.5 * params["k"] * (jnp.sum(example["x"] ** 2) + example["y"] ** 2) + tilt * example["y"]


def at_level(params, level, example):
    return (1.0 + level) * function(params, example)


def kernel_of(energy, scale=1.0):
    return langevin(energy, 0.1 * scale**2)


RULES = {
    "contrastive_divergence": (kernel_of, 2),
    "short_run_likelihood": (kernel_of, 2, NOISE.draw),
    "persistent_contrastive_divergence": (bank.init(jax.tree.map(lambda a: 2.0 * a, BATCH)), kernel_of, 2, NOISE.draw),
    "recovery_likelihood": (kernel_of, 2, 0.4),
    "diffusion_recovery_likelihood": (kernel_of, 2, jnp.array([0.2, 0.5])),
    "denoising_score_matching": (0.4,),
    "multilevel_denoising_score_matching": (jnp.array([0.2, 0.5]),),
    "sliced_score_matching": (),
    "noise_contrastive_estimation": (NOISE,),
    "energy_discrepancy": (0.4,),
    "flow_matching": (NOISE.draw,),
    "energy_matching": (NOISE.draw,),
}
NAMED = {"energy_matching": {"temperature": 0.3, "step_size": 0.4, "num_steps": 3}}
CHAINS = list(RULES)[:5]


def rule(name, given, key=KEY, **more):
    return getattr(learning, name)(key, given, BATCH, *RULES[name], **NAMED.get(name, {}), **more)


def family(name):
    return at_level if name in ("diffusion_recovery_likelihood", "multilevel_denoising_score_matching") else function
