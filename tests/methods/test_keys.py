"""Every random key is used once: in all functions of every family, in restoration and in the measurements.

JAX's own check (``jax_debug_key_reuse``) does not see that ``fold_in(key, i)`` is ``split(key)[i]``. So the functions
of `jax.random` note, while a program runs, from which keys it draws and which keys it makes of which. No key may be
drawn from twice, and none may be both drawn from and made into others. Keys made of constants, as those of fixed
latents, are not looked at.
"""

import collections
import functools
import inspect
import sys
from types import SimpleNamespace

import blackjax  # noqa: F401  # first imported while the ledger is open, it would keep the noting functions for ever
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import families as tiny_families
from helpers import learning_rules

from jebm import energy, evaluation, mcmc, methods, restoration
from jebm.data import Source, to_float
from jebm.evaluation import measurements as measure
from jebm.methods.base import Chain, Method
from jebm.metrics import annealed_importance as ais
from jebm.restoration import tasks
from jebm.restoration.files import restore_files

SEED = 12345  # of no constant key
MAKERS = ("fold_in", "split")


class Ledger:
    """Which keys were drawn from, and which were made of which."""

    def __init__(self):
        self.drawn, self.made = collections.Counter(), collections.defaultdict(set)

    def note_draw(self, key):
        self.drawn.update(map(tuple, np.asarray(key).reshape(-1, 2).tolist()))

    def note_making(self, pairs):
        for parent, child in np.asarray(pairs).reshape(-1, 2, 2).tolist():
            self.made[tuple(parent)].add(tuple(child))

    def mistakes(self, seed=SEED):
        """Keys that come of the seed and are used twice; how many of them were drawn from."""
        jax.effects_barrier()
        family, new = set(), {tuple(jax.random.key_data(jax.random.key(seed)).tolist())}
        while new:
            family |= new
            new = set().union(*(self.made[key] for key in new)) - family
        twice = {key for key in family if self.drawn[key] > 1}
        both = {key for key in family if self.drawn[key] and self.made[key]}
        return twice | both, sum(self.drawn[key] > 0 for key in family)


@pytest.fixture(scope="module")
def _ledger():
    """One for the module: what has been traced goes on writing into it."""
    ledger, patch = Ledger(), pytest.MonkeyPatch()

    def draw(function, *args, **kwargs):
        key = args[0] if args else kwargs["key"]
        jax.debug.callback(ledger.note_draw, jax.random.key_data(key))
        return function(*args, **kwargs)

    def make(function, key, *args, **kwargs):
        children = function(key, *args, **kwargs)
        data = jax.random.key_data(children)
        parents = jnp.broadcast_to(jax.random.key_data(key), data.shape)
        jax.debug.callback(ledger.note_making, jnp.stack([parents, data], -2))
        return children

    noting = {}
    for name, function in inspect.getmembers(jax.random, callable):
        if not name.startswith("_") and next(iter(inspect.signature(function).parameters), "") == "key":
            noting[function] = functools.partial(make if name in MAKERS else draw, function)
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith(("jebm", "blackjax", "flax", "jax.random")):
            for alias, value in list(vars(module).items()):
                if inspect.isroutine(value) and value in noting:
                    patch.setattr(module, alias, functools.wraps(value)(noting[value]))
    jax.clear_caches()
    yield ledger
    patch.undo()
    jax.clear_caches()


@pytest.fixture
def ledger(_ledger):
    jax.effects_barrier()
    _ledger.__init__()
    return _ledger


def run(function, *args):
    """The function compiled, without its results: what does not make keys falls away."""
    jax.jit(lambda *args: (function(*args), None)[1])(*args)


def accept(ledger, seed=SEED):
    mistakes, count = ledger.mistakes(seed)
    assert count > 0
    assert not mistakes


KEY = functools.partial(jax.random.key, SEED)


def test_the_ledger_sees_what_is_wrong(ledger):
    def twice_in_a_loop(key):
        def body(carry, i):
            return carry + jax.random.normal(jax.random.fold_in(key, i // 2)), None

        return jax.lax.scan(body, 0.0, jnp.arange(4))[0]

    wrong = {
        "drawn from twice": lambda key: jax.random.normal(key, (2,)) + jax.random.uniform(key, (2,)),
        "in a loop": twice_in_a_loop,
        "drawn from and split": lambda key: (jax.random.split(key), jax.random.bits(key)),
        "split and folded in": lambda key: (
            jax.random.normal(jax.random.split(key)[1]), jax.random.normal(jax.random.fold_in(key, 1))
        ),
        "over chains": lambda key: (
            jax.vmap(jax.random.normal)(mcmc.chain_keys(key, 3)), jax.random.normal(jax.random.fold_in(key, 2))
        ),
        "in a gradient": jax.grad(
            lambda scale, key: scale * (jax.random.normal(key) + jax.random.normal(key)), argnums=0
        ),
    }  # fmt: skip
    for name, function in wrong.items():
        ledger.__init__()
        if name == "in a gradient":
            run(function, 1.0, KEY())
        else:
            run(function, KEY())
        assert ledger.mistakes()[0], name
    ledger.__init__()
    run(lambda key: jax.vmap(jax.random.normal)(mcmc.chain_keys(jax.random.split(key)[0], 3)), KEY())
    assert ledger.mistakes() == (set(), 3)


DENOISING = {
    "denoising_ebm, pixel chains": {"semantic_chain": "pixel"},
    "denoising_ebm, recovery": {"negatives": "recovery", "semantic_chain": "pixel"},
    "denoising_ebm, noisier": {"negatives": "noisier"},
}
CONFIGS = {
    **tiny_families.CONFIGS,
    **{name: tiny_families.variant("denoising_ebm", **changes) for name, changes in DENOISING.items()},
    "ec_vae, calibrated posterior": tiny_families.variant("ec_vae", calibrated_posterior=True),
}


# other readings of a family that the list has already, each half a minute to compile
LONG = {"denoising_ebm, pixel chains", "denoising_ebm, noisier"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in CONFIGS])
def test_functions_of(name, ledger):
    method, images = methods.build(CONFIGS[name]), tiny_families.IMAGES
    state = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(method.init, KEY(), images))
    functions = {
        "init": lambda key: method.init(key, images),
        "update": lambda key: method.update(key, state, images),
        "generate": lambda key: method.generate(key, state, 3),
        "reconstruct": lambda key: method.reconstruct and method.reconstruct(key, state, images),
        "scores": lambda key: method.scores(key, state, images),
    }
    for which, function in functions.items():
        ledger.__init__()
        run(function, KEY())
        assert not ledger.mistakes()[0], which


@pytest.mark.parametrize("name", learning_rules.RULES)
def test_learning_rules(name, ledger):
    of = energy.bind(learning_rules.family(name), learning_rules.PARAMS)
    run(lambda key: learning_rules.rule(name, of, key)[0], KEY())
    accept(ledger)


# --- what the command line runs ---------------------------------------------------------------------------------------


def test_restoration(ledger):
    prior = restoration.Prior(lambda z: jnp.tanh(z).reshape(4, 4, 1), lambda x: jnp.sum(x**2), jnp.zeros(16))
    config = restoration.RestorationConfig(restarts=3, descent_steps=1, num_steps=3, refinement_steps=2)
    for noise in (0.0, 0.1):
        ledger.__init__()
        settings = restoration.RestorationConfig(**{**vars(config), "noise_std": noise})
        restoration.restore(KEY(), prior, restoration.average_pooling(4, 2), jnp.zeros((4, 2, 2, 1)), settings)
        accept(ledger)


def test_restoration_of_files_with_noise(ledger, tmp_path, monkeypatch):
    prior = restoration.Prior(lambda z: jnp.tanh(z).reshape(8, 8, 1), lambda x: jnp.sum(x**2), jnp.zeros(64))
    monkeypatch.setattr("jebm.restoration.files.prior", lambda run: prior)
    fake = SimpleNamespace(step=0, method=SimpleNamespace(image_shape=(8, 8, 1)))
    np.save(tmp_path / "x.npy", np.asarray(tiny_families.IMAGES))
    config = restoration.RestorationConfig(restarts=2, descent_steps=1, num_steps=2, noise_std=0.1)
    task = tasks.Task("superres")
    restore_files(fake, task, tmp_path / "x.npy", tmp_path / "out.npz", config=config, degrade=True, seed=SEED)
    accept(ledger)


def test_annealed_importance_sampling(ledger):
    energy, base = lambda x: jnp.sum(x**2), ais.Base((2,))
    steps = ais.tune_steps(KEY(), energy, base, num_levels=4, num_chains=3, rounds=2)
    accept(ledger)
    for function in (ais.forward_weights, ais.reverse_weights):
        ledger.__init__()
        given = {"num_chains": 3} if function is ais.forward_weights else {"positions": jnp.zeros((3, 2))}
        function(KEY(), energy, base, steps, **given, steps_per_level=2)
        accept(ledger)


def test_all_measurements_together(ledger, monkeypatch):
    for name, few in {
        "likelihood": {"num_levels": 3, "num_chains": 3, "equilibration_steps": 2},
        "long_run": {"multiples": (1, 3)},
        "step_sizes": {"num_steps": 3},
    }.items():
        monkeypatch.setitem(measure.METRICS, name, functools.partial(measure.METRICS[name], **few))
    shape = (2, 2, 1)
    method = Method(
        init=lambda key, batch: (),
        update=lambda key, state, batch: (state, {}),
        generate=lambda key, state, n: 0.3 * jax.vmap(lambda k: jax.random.normal(k, shape))(mcmc.chain_keys(key, n)),
        energy=lambda state: jax.tree_util.Partial(lambda x: jnp.square(x).sum()),
        reconstruct=lambda key, state, x: x + 0.1 * jax.random.normal(key, x.shape),
        scores=lambda key, state, x: {"noise": jax.random.normal(key)},
        networks=lambda state: {},
        image_shape=shape,
        chain=Chain(2, 0.01),
    )
    images = np.random.default_rng(0).integers(0, 256, (40, *shape), dtype=np.uint8)
    pixels = evaluation.Features(lambda x: np.asarray(to_float(x)).reshape(len(x), -1), {"feature_space": "pixels"})
    source = Source("noise", images, images[::-1], None, None, None, "0" * 16)
    subject = evaluation.Subject(method, (), source, num_samples=30, batch_size=12, features=pixels, num_resamples=2)
    evaluation.evaluate(KEY(), subject, tuple(measure.METRICS))
    accept(ledger)
