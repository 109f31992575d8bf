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
        ("pool_p.bind(g, adjoint=not adjoint)", "pool_p.bind(g, adjoint=True)",
         "a transpose that is not transposed back"),
        ("(*(1 for _ in batch), 2, 2, 1)", "(*(1 for _ in batch), 2, 1, 2)", "windows over channels"),
    ),
    *of(
        "jebm/networks/convolution.py", ("tests/networks/test_convolution.py",),
        ("(places - 1) * strides[i] + 1", "places * strides[i]", "the extent of a strided output with zeros after it"),
        ("return [first, first + second, first - second, -second]",
         "return [first, first + second, first - second, second]", "a wrong sign in Winograd's kernel gradient"),
        ('"abij,abco->ijco"', '"baij,abco->ijco"', "Winograd's kernel gradient turned"),
    ),
    *of(
        "jebm/networks/trilinear.py", ("tests/networks/test_convolution.py",),
        ('"k": ("x", "y")}', '"k": ("y", "x")}', "the operands of a kernel's gradient exchanged"),
        ("or other is not None or", "or", "a kernel for each image joined"),
    ),
    *of(
        "jebm/networks/resampled.py", ("tests/networks/test_resampled.py",),
        ("d[3] - d[1]]", "d[1] - d[3]]", "a product's sign"),
        ("middle - last + before, middle - first + after", "middle - first + after, middle - last + before",
         "the rows of a pair exchanged"),
        ("[[1, 0, 0], [1, 1, 1], [0, 0, 1]], np.float32) / 2", "[[1, 0, 0], [1, 1, 1], [0, 0, 1]], np.float32) / 4",
         "another mean"),
        ("4.0 * adjoint_kernel(_pooled_on_cpu", "adjoint_kernel(_pooled_on_cpu", "the kernel's gradient not scaled"),
        ("a, 4.0 * adjoint_kernel(b)", "a, 4.0 * b.swapaxes(2, 3)", "a kernel that is not flipped"),
        ("or x.shape[1] % 2 or x.shape[2] % 2", "or x.shape[2] % 2", "an odd number of rows"),
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
