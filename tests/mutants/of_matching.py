"""Faults of energy matching."""

from .mutant import of

RULES = "tests/learning/test_matching.py"
FAMILY = "tests/methods/matching/test_iteration.py"

MUTANTS = (
    *of(
        "jebm/learning/matching.py", (RULES,),
        (".at[rows].set(columns.astype(jnp.int32)", ".at[columns].set(rows.astype(jnp.int32)", "the inverse coupling"),
        ("order = optimal_coupling(drawn, batch)", "order = jnp.arange(size)", "nothing coupled"),
        ("(1.0 - row(times, x)) * z + row(times, x) * x", "row(times, x) * z + (1.0 - row(times, x)) * x",
         "from data to noise"),
        ("velocities = jax.tree.map(lambda z, x: x - z, starts, batch)",
         "velocities = jax.tree.map(lambda z, x: z - x, starts, batch)", "the velocity's sign"),
        ("jnp.where(times < cutoff, 1.0, falling)", "jnp.where(times < cutoff, 1.0, 0.0)", "weights that fall at once"),
        ("jax.tree.map(jnp.negative, u)", "u", "uphill"),
        ("return jnp.mean(paths.weights * squares) / size", "return jnp.mean(squares) / size", "weights forgotten"),
        ("return jnp.mean(paths.weights * squares) / size", "return jnp.mean(paths.weights * squares)",
         "a sum over numbers"),
        ("+ contrastive_weight * contrastive_loss(on_data, on_negatives, 1.0)",
         "+ contrastive_weight * contrastive_loss(on_negatives, on_data, 1.0)", "the contrast's sign"),
        ("paths = transport_paths(path_key, batch, start, ramp_start)\n    size",
         "paths = transport_paths(path_key, batch, start)\n    size", "the flow's weights of the first phase"),
        ("from_data = jnp.arange(size) < size // 2", "from_data = jnp.arange(size) >= size // 2", "the other half"),
        ("np.where(times >= 1.0 - 1e-9, 1.0, np.clip(rising, 0.0, 1.0))", "np.clip(rising, 0.0, 2.0)",
         "a ramp without end"),
        ("times = step_size * np.arange(", "times = step_size + step_size * np.arange(", "temperatures a step early"),
        ("jnp.where(near, table[-1], table)", "table", "chains from data cold at first"),
    ),
    *of(
        "jebm/methods/matching/model.py", (FAMILY,),
        ("contrasted = state.step >= config.warmup_steps", "contrasted = state.step > config.warmup_steps",
         "an iteration late"),
        ("paths = draws.paths._replace(weights=jnp.ones_like(draws.paths.weights))", "paths = draws.paths",
         "weights of the second phase in the first"),
        ("total = loss + config.contrastive_weight * contrastive_loss(on_images, on_negatives, 1.0)",
         "total = loss + contrastive_loss(on_images, on_negatives, 1.0)", "λ forgotten"),
        ("mcmc.langevin(potential_of(state.potential.ema)", "mcmc.langevin(energy_of(state.potential.ema)",
         "samples along V/ε"),
        ("return energies.temper(potential_of(params), config.temperature)",
         "return energies.temper(potential_of(params), 1.0)", "the density of another temperature"),
        ("warm_up(config.ema_decay, state.step)", "config.ema_decay", "an average that keeps its start"),
        ("optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate, b2=0.95)",
         "optax.clip_by_global_norm(1.0), optax.sgd(config.learning_rate)", "no Adam"),
        ("mean(generate(key, state, images.shape[0])) - mean(images)}",
         "mean(images) - mean(generate(key, state, images.shape[0]))}", "the gap's sign"),
        ("return jnp.clip(jax.vmap(chain)(mcmc.chain_keys(chain_key, n), starts), -1.0, 1.0)",
         "return jax.vmap(chain)(mcmc.chain_keys(chain_key, n), starts)", "samples outside of the images' range"),
    ),
)  # fmt: skip
