"""Faults of `jebm.energy` and `jebm.mcmc.bank`."""

from .mutant import of

MUTANTS = (
    *of(
        "jebm/energy.py", ("tests/core/test_energy.py",),
        ("return factor * value(energy, x)", "return value(energy, x) / factor", "divided by the factor"),
        ("return value(energy, x) / temperature", "return value(energy, x) * temperature", "multiplied by T"),
        ("jnp.sum(weights * jnp.stack", "jnp.mean(weights * jnp.stack", "the mean of experts"),
        ("log_weights - log_normalizers)", "log_weights + log_normalizers)", "normalisers multiply"),
        ("log_weights - log_normalizers)", "log_weights)", "normalisers forgotten"),
        ("-jax.nn.logsumexp(log_weights - jnp.stack", "-jax.nn.logsumexp(log_weights + jnp.stack",
         "components of the wrong sign"),
        ("-jnp.asarray(coefficient, float)", "jnp.asarray(coefficient, float)", "negation that does not negate"),
        ("value(energy, x) + weight * distance(", "value(energy, x) + distance(", "the condition's weight forgotten"),
        ("+ value(prior, z)", "+ value(prior, generator(z))", "the prior of z on the image"),
        ("+ value(prior, z)", "- value(prior, z)", "the prior's sign"),
        ('value(energy, image + x["y"])', 'value(energy, image - x["y"])', "the residual's sign"),
        ("return 0.5 * jnp.dot(centred", "return jnp.dot(centred", "a Gaussian without its 1/2"),
        ("sum_of_few((p * jnp.square(centred)).ravel())", "jnp.sum(jnp.square(p * centred))", "squared precisions"),
        ("for i in range(a.shape[-1])])", "for i in range(max(1, a.shape[-1] - 1))])", "a sum without its last entry"),
        ("return 0.5 * _sum_of_squares(x)", "return _sum_of_squares(x)", "a normal law without its 1/2"),
        ("jnp.sum(jnp.square(wide(a)))", "jnp.sum(jnp.square(a))", "half precision saturates in sums"),
        ("return result.astype(jnp.promote_types(result.dtype, jnp.float32))", "return result",
         "a half-precision energy"),
        ("return Partial(energy.function, step)", "return Partial(energy.function, step + 1)",
         "annealed energies one step ahead"),
    ),
    *of(
        "jebm/mcmc/bank.py", ("tests/mcmc/test_bank.py",),
        ("replace=False)", "replace=True)", "rows drawn twice"),
        ("(bank.ages + 1).at[indices]", "bank.ages.at[indices]", "nothing grows older"),
        ("jnp.where(exchange, 0, ages + 1)", "jnp.where(exchange, 0, ages)", "continued chains do not age"),
        ("jnp.where(exchange, 0, ages + 1)", "jnp.where(exchange, ages + 1, 0)", "ages of the others"),
        ("(old.ndim - 1)), new, old)", "(old.ndim - 1)), old, new)", "old and fresh starts swapped"),
        ("a.at[indices].set(new", "a.at[indices].add(new", "added, not written"),
        ("jax.random.bernoulli(key, probability", "jax.random.bernoulli(key, 1 - probability", "1 - p for p"),
        ("max(size // batch_size, 1)", "-(-size // batch_size)", "rounded up"),
        ("jnp.zeros(size, jnp.int32))", "jnp.ones(size, jnp.int32))", "fresh rows of age 1"),
        (" and node.size % spread.num_devices == 0", "", "rows that do not divide are spread"),
    ),
)  # fmt: skip
