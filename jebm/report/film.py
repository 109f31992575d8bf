"""A Langevin chain of a trained model, as frames."""

import numpy as np

from jebm import paths
from jebm.runs.run import Run

__all__ = ["NoFilm", "walk"]


NUM_CHAINS = 9


NUM_FRAMES = 32  # of a film after its start, at least; at most twice as many


MOST_MULTIPLES = 256  # a chain is walked for at most this many times training's steps


MOVES = 16.0  # mean |last - first| of 255 levels; at 6, a film of digits still looks like a still


class NoFilm(ValueError):
    """Chains whose film would show nothing, with the reason."""


def walk(run: Run) -> paths.Path | None:
    """Writes ``evaluation/chain-*.npz``: a few of training's chains on images, from generated images, step by step.

    Array ``x``, uint8 [frames, chains, H, W, C], the start first, and ``every``, the steps between frames. A chain is
    walked twice as long, and twice as long again, until it has moved by `MOVES`: training's own steps move an image by
    a level or so, which no eye sees. None for a family without such chains.

    Raises:
        NoFilm: chains that hardly move in `MOST_MULTIPLES` times training's steps, or leave the finite numbers. A film
            of the same step is deleted.
    """
    import jax

    from jebm import images, mcmc
    from jebm.evaluation.records import file_stem
    from jebm.evaluation.run import run_weights
    from jebm.files import write_arrays
    from jebm.methods.shared import chain_kernel

    chain = run.method.chain
    if chain is None:
        return None
    protocol = {"weights": run_weights(run)[1], "step": run.step}
    path = run.directory.evaluation / f"{file_stem('chain', protocol)}.npz"
    path.unlink(missing_ok=True)
    start_key, chain_key = jax.random.split(jax.random.key(run.config.evaluation.seed))
    position = jax.jit(lambda key, state: run.method.generate(key, state, NUM_CHAINS))(start_key, run.state)
    kernel = chain_kernel(run.method, run.state)
    piece = -(-chain.num_steps // NUM_FRAMES)  # steps between the first frames
    # one program, called again and again; a longer film begins with the shorter one
    walk_on = jax.jit(
        lambda key, kernel, x: mcmc.sample_chains(
            key, kernel, x, NUM_FRAMES * piece, trace=(), positions_every=piece
        )
    )  # fmt: skip
    frames, every, num_steps = [np.asarray(position)], piece, 0
    while True:
        state, info = walk_on(jax.random.fold_in(chain_key, num_steps), kernel, position)
        position, walked = state.position, np.moveaxis(np.asarray(info["position"]), 1, 0)
        times = num_steps + piece * np.arange(1, NUM_FRAMES + 1)
        frames, num_steps = [*frames, *walked[times % every == 0]], num_steps + NUM_FRAMES * piece
        if not np.isfinite(walked).all():
            raise NoFilm(f"within {num_steps:,} steps it is no longer finite")
        moved = movement(images.to_uint8(np.stack([frames[0], frames[-1]])))
        if moved >= MOVES:
            break
        if num_steps >= MOST_MULTIPLES * chain.num_steps:
            raise NoFilm(f"in {num_steps:,} steps images move by {moved:.1f} of 255 levels, which no eye sees")
        if len(frames) > 2 * NUM_FRAMES:
            frames, every = frames[::2], 2 * every
    write_arrays(path, {"x": images.to_uint8(np.stack(frames)), "every": np.array(every)})
    return path


def movement(frames: np.ndarray) -> float:
    """Movement of a film's pixels: mean ``|last - first|`` of uint8 [frames, ...], in levels of 255."""
    return float(np.abs(frames[-1].astype(float) - frames[0]).mean())
