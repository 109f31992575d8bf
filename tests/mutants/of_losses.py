"""Faults of `jebm.losses`."""

from .mutant import of

TESTS = ("tests/test_losses.py", "tests/test_golden_losses.py")

MUTANTS = (
    *of(
        "jebm/losses/__init__.py", TESTS,
        ("return jnp.sum(jnp.square(image - target))", "return jnp.mean(jnp.square(image - target))", "mean for sum"),
        ("return loss(move(image), move(target))", "return loss(move(image), target)", "the target stays"),
        ('mode="edge"', 'mode="constant"', "black edges"),
    ),
    *of(
        "jebm/losses/robust.py", TESTS,
        ("return beta / alpha * jnp.expm1", "return alpha / beta * jnp.expm1", "a factor upside down"),
        ("jnp.expm1(alpha / 2 *", "jnp.expm1(alpha *", "the exponent without its 1/2"),
        ("+ jnp.log(scale) +", "+", "the scale's normaliser forgotten"),
        ("+ log_partition(alpha)\n", "\n", "the shape's normaliser forgotten"),
        (".at[0].multiply(0.5)", "", "the trapezoid's end counted whole"),
        ("* (2 * _STEP)", "* _STEP", "half the axis"),
        ("image - target, YUV.T", "image - target, YUV", "the colour matrix transposed"),
        ("np.cbrt(np.abs(", "np.sqrt(np.abs(", "colours change volume"),
    ),
    *of(
        "jebm/losses/ssim.py", TESTS,
        ("(2 * covariance + C2)", "(covariance + C2)", "covariance without its 2"),
        ("blur(y * y) - mean_y**2", "blur(y * y)", "a second moment for a variance"),
        ("RADIUS, DEVIATION = 5, 1.5", "RADIUS, DEVIATION = 5, 3.0", "a wider window"),
        ("return 1 - jnp.mean(luminance", "return jnp.mean(luminance", "similarity for its complement"),
        ("C1, C2 = 0.01**2, 0.03**2", "C1, C2 = 0.03**2, 0.01**2", "constants swapped"),
        ("(2 * DEVIATION**2)), 0.0)", "DEVIATION**2), 0.0)", "a Gaussian without its 2"),
    ),
    *of(
        "jebm/losses/watson.py", TESTS,
        ("* relative**exponent", "* relative", "luminance masking without its exponent"),
        ("threshold ** (1 - contrast)", "threshold**contrast", "contrast masking, w for 1 - w"),
        ("jax.nn.sigmoid(threshold - masked)", "jax.nn.sigmoid(masked - threshold)", "a smooth minimum"),
        ("_masked_distance(parameters, image, target, luminance)\n    return",
         "_masked_distance(parameters, target, image, luminance)\n    return", "the image masks, not the target"),
        ("/ BLOCK**2", "/ BLOCK", "Fourier coefficients eight times too large"),
        (" + CHROMA_SHIFT", "", "chroma round 0"),
        (".at[:, ::4, ::4].set(0.0)", "", "phases of real coefficients count"),
        ("** (1 / parameters.pooling)", "** parameters.pooling", "pooling's root forgotten"),
        ("jnp.mean(jnp.maximum(target[:, :, 0, 0], 0), axis=1)", "jnp.sum(jnp.maximum(target[:, :, 0, 0], 0), axis=1)",
         "the sum of luminances"),
        ("difference = _phase(target) - _phase(image)", "difference = _phase(target) + _phase(image)",
         "phases are added"),
    ),
    *of(
        "jebm/losses/transforms.py", TESTS,
        ("return (image + 1) / 2, (target + 1) / 2", "return image, target", "images stay in [-1, 1]"),
        ("matrix[0] /= np.sqrt(2)", "matrix[0] *= np.sqrt(2)", "a constant too heavy"),
        ("plane.swapaxes(1, 2).reshape", "plane.reshape", "blocks of strips"),
    ),
)  # fmt: skip
