"""Pictures of a trained model that need the model: reconstructions, latents in between, chains."""

import jax
import jax.numpy as jnp
import numpy as np

from jebm import data, images, paths
from jebm.data import Source
from jebm.errors import JebmError
from jebm.evaluation.records import file_stem
from jebm.evaluation.run import run_weights
from jebm.files import write_arrays
from jebm.plot import spherical
from jebm.report import page
from jebm.report.film import walk
from jebm.runs.run import Run, load_source

__all__ = ["look", "report"]

NUM_RECONSTRUCTIONS = 10
NUM_ROWS, NUM_BETWEEN = 4, 10  # of the interpolation


def report(run: Run) -> None:
    """Looks, walks a chain, and writes the whole report of a run.

    Raises:
        DamagedFile: see `jebm.report.page.write`.
    """
    try:
        source = load_source(run.config, run.method.image_shape)
    except JebmError:  # the images are not where they were
        source = None
    if not any(run.directory.samples.glob("step_*.png")):  # a model without the pictures of its training
        drawn = run.generate(jax.random.key(run.config.evaluation.seed), run.config.training.num_samples)
        images.save_png(run.directory.samples / f"step_{run.step:07d}.png", images.grid(drawn))
    look(run, source)
    walk(run, source)
    page.write(run.directory, source)


def look(run: Run, source: Source | None) -> paths.Path | None:
    """Writes ``evaluation/looks-*.npz``, uint8, as far as the model has an encoder or a generator.

    ``original`` and ``reconstruction`` [n, H, W, C], of test images; ``interpolation`` [rows, columns, H, W, C],
    between pairs of latents of the prior, along great circles.

    Returns:
        The file; None where there is nothing to look at.
    """
    key = jax.random.key(run.config.evaluation.seed)
    latent_key, own_key = jax.random.split(key)
    arrays = {}
    if run.method.reconstruct is not None and source is not None:
        chosen = np.sort(data.permutation(0, 0, len(source.test))[:NUM_RECONSTRUCTIONS])
        original = source.test[chosen]
        arrays["original"] = original
        arrays["reconstruction"] = images.to_uint8(run.reconstruct(own_key, data.to_float(original)))
    if run.method.generator is not None and run.method.latent_shape is not None:
        ends = jax.random.normal(latent_key, (2, NUM_ROWS, *run.method.latent_shape))
        flat = ends.reshape(2, NUM_ROWS, -1)
        between = jax.vmap(jax.vmap(spherical, (0, None, None)), (None, 0, 0))
        latents = between(jnp.linspace(0.0, 1.0, NUM_BETWEEN), flat[0], flat[1])
        drawn = jax.jit(jax.vmap(run.generator))(latents.reshape(-1, *run.method.latent_shape))
        arrays["interpolation"] = images.to_uint8(drawn).reshape(NUM_ROWS, NUM_BETWEEN, *run.method.image_shape)
    if not arrays:
        return None
    path = run.directory.evaluation / f"{file_stem('looks', {'weights': run_weights(run)[1], 'step': run.step})}.npz"
    write_arrays(path, arrays)
    return path
