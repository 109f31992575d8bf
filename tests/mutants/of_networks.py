"""Faults of `jebm.networks` where they are formulas: spectral norm, batch normalisation, flows."""

from .mutant import of

FLOW = ("tests/methods/ec/test_flow_networks.py",)

MUTANTS = (
    *of(
        "jebm/networks/spectral_norm.py", ("tests/networks/test_spectral_norm.py",),
        ("_unit(_product(v, matrix))", '_unit(_product(vectors[*path, "v"], matrix))', "u from the old v"),
        ('flat[*path, "kernel"] / norm', 'flat[*path, "kernel"] * norm', "multiplied by the norm"),
        ('flat[*path, "kernel"] / norm', 'flat[*path, "kernel"] / jax.lax.stop_gradient(norm)',
         "no gradient through the norm"),
        ("kernel.reshape(-1, kernel.shape[-1])", "kernel.reshape(kernel.shape[-1], -1).T", "entries in another order"),
    ),
    *of(
        "jebm/networks/normalization.py", ("tests/methods/ec/test_vae_networks.py",),
        ("unbiased = var * (count / (count - 1))", "unbiased = var", "the biased variance is tracked"),
        ("self.decay * running_mean.value + (1 - self.decay) * mean",
         "(1 - self.decay) * running_mean.value + self.decay * mean",
         "the running mean's weights swapped"),
        ("rsqrt(var + self.epsilon)", "rsqrt(var) + self.epsilon", "epsilon outside of the root",
         ("tests/methods/ec/test_vae_networks.py", "tests/methods/ec/test_golden_vae_networks.py")),
    ),
    *of(
        "jebm/networks/layers.py", ("tests/networks/test_layers.py",),
        ("nearest_upsample(x) / 4", "nearest_upsample(x)", "the transpose of a sum"),
        ("pool_p.bind(g, adjoint=not adjoint)", "pool_p.bind(g, adjoint=True)", "a transpose that is not undone"),
        ("(*(1 for _ in batch), 2, 2, 1)", "(*(1 for _ in batch), 2, 1, 2)", "windows over channels"),
    ),
    *of(
        "jebm/networks/convolution.py", ("tests/networks/test_convolution.py",),
        ("adjoint=not adjoint, fast=fast", "adjoint=True, fast=fast", "a transposed transpose is flipped"),
        ("(x.aval.shape[1 + axis] - 1) * dilation[axis] + 1", "x.aval.shape[1 + axis]",
         "the extent of a dilated image without its zeros"),
    ),
    *of(
        "jebm/methods/ec/flow_networks.py", FLOW,
        ("s.shape[-3] * s.shape[-2] * self.log_scale.sum()", "self.log_scale.sum()", "the scale of one pixel"),
        ("-self._log_determinant(s)", "self._log_determinant(s)", "the inverse's determinant"),
        ("* jnp.exp(-s)], -1)", "* jnp.exp(s)], -1)", "no inverse"),
        ("+ z.shape[-1] * jnp.log(2.0 * jnp.pi))", "+ jnp.log(2.0 * jnp.pi))", "the normaliser of one dimension"),
        ("(v / jnp.linalg.norm(v), jnp.zeros(())))[1]", "(v, jnp.zeros(())))[1]", "a start that is not a unit vector",
         FLOW),
    ),
)  # fmt: skip
