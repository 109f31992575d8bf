"""A Langevin chain of a trained model, as frames."""

from typing import Any

import jax
import numpy as np

from jebm import data, images, mcmc, paths
from jebm.data import Source
from jebm.evaluation.records import file_stem
from jebm.evaluation.run import run_weights
from jebm.files import write_arrays
from jebm.methods.shared import chain_kernel
from jebm.runs.run import Run

__all__ = ["walk"]
NUM_CHAINS = 9
NUM_FRAMES = 32  # of a film after its start, at least; at most twice as many
MOST_MULTIPLES = 256  # a chain is walked for at most this many times training's steps
MOVES = 16.0  # mean |last - first| of 255 levels; at 6, a film of digits still looks like a still
NOISE = 0.5  # deviation of that on the data where films start, in [-1, 1]: the images can still be told


class _NoFilm(Exception):
    """Chains whose film would show nothing, with the reason."""


def walk(run: Run, source: Source | None = None) -> paths.Path:
    """Writes ``evaluation/chain-*.npz``: a few of training's chains on images, step by step, and their energies.

    Array ``x``, uint8 [frames, chains, H, W, C], the start first; ``energy``, E of each, float32 [frames, chains];
    ``every``, the steps between frames; ``start``, in words; ``clean_energy``, E without the noise. Chains start at
    test images under Gaussian noise of deviation `NOISE`, without a source at generated images. They are walked twice
    as long, and twice as long again, until they have moved by `MOVES`: training's own steps move an image by a level or
    so, which no eye sees. Where nothing is to be seen the only array is ``reason``: a family without such chains,
    chains that hardly move in `MOST_MULTIPLES` times training's steps or leave the finite numbers.

    Args:
        run: the model.
        source: its images.

    Returns:
        The file.
    """
    protocol = {"weights": run_weights(run)[1], "step": run.step}
    path = run.directory.evaluation / f"{file_stem('chain', protocol)}.npz"
    try:
        arrays = _film(run, source)
    except _NoFilm as error:
        arrays = {"reason": np.array(str(error))}
    write_arrays(path, arrays)
    return path


def _film(run: Run, source: Source | None) -> dict[str, np.ndarray]:
    chain = run.method.chain
    if chain is None:
        raise _NoFilm("the chains of this family's training are annealed, or on latents, or there are none")
    start_key, chain_key = jax.random.split(jax.random.key(run.config.evaluation.seed))
    position, start, clean = _start(start_key, run, source)
    kernel = chain_kernel(run.method, run.state)
    piece = -(-chain.num_steps // NUM_FRAMES)  # steps between the first frames
    # one program, called again and again; a longer film begins with the shorter one
    walk_on = jax.jit(
        lambda key, kernel, x: mcmc.sample_chains(
            key, kernel, x, NUM_FRAMES * piece, trace=("energy",), positions_every=piece
        )
    )  # fmt: skip
    energy_of = jax.jit(lambda state, x: jax.vmap(run.method.energy(state))(x))
    energies = [np.asarray(energy_of(run.state, position))]
    frames, every, num_steps = [np.asarray(position)], piece, 0
    while True:
        state, info = walk_on(jax.random.fold_in(chain_key, num_steps), kernel, position)
        position, walked = state.position, np.moveaxis(np.asarray(info["position"]), 1, 0)
        times = num_steps + piece * np.arange(1, NUM_FRAMES + 1)
        along = np.asarray(info["energy"])[:, piece - 1 :: piece].T
        frames, num_steps = [*frames, *walked[times % every == 0]], num_steps + NUM_FRAMES * piece
        energies += [*along[times % every == 0]]
        if not (np.isfinite(walked).all() and np.isfinite(along).all()):
            raise _NoFilm(f"within {num_steps:,} steps it is no longer finite")
        moved = movement(images.to_uint8(np.stack([frames[0], frames[-1]])))
        if moved >= MOVES:
            break
        if num_steps >= MOST_MULTIPLES * chain.num_steps:
            raise _NoFilm(f"in {num_steps:,} steps images move by {moved:.1f} of 255 levels, which no eye sees")
        if len(frames) > 2 * NUM_FRAMES:
            frames, energies, every = frames[::2], energies[::2], 2 * every
    about = {"every": np.array(every), "start": np.array(start)}
    if clean is not None:
        about["clean_energy"] = np.asarray(energy_of(run.state, clean))
    return {"x": images.to_uint8(np.stack(frames)), "energy": np.stack(energies), **about}


def _start(key: jax.Array, run: Run, source: Source | None) -> tuple[Any, str, Any]:
    """Images [NUM_CHAINS, H, W, C], what they are in words, and the same without the noise, or None."""
    if source is None:
        drawn = jax.jit(lambda key, state: run.method.generate(key, state, NUM_CHAINS))(key, run.state)
        return drawn, "generated images", None
    chosen = np.sort(data.permutation(0, 0, len(source.test))[:NUM_CHAINS])
    x = data.to_float(source.test[chosen])
    return x + NOISE * jax.random.normal(key, x.shape), f"test images under Gaussian noise of deviation {NOISE}", x


def movement(frames: np.ndarray) -> float:
    """Movement of a film's pixels: mean ``|last - first|`` of uint8 [frames, ...], in levels of 255."""
    return float(np.abs(frames[-1].astype(float) - frames[0]).mean())
