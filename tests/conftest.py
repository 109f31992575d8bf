"""Two simulated devices; programs compiled fast rather than to run fast, since each runs once or twice."""

import atexit
import ctypes
import gc
import os
import shutil
import tempfile

from helpers import FAST_TO_COMPILE

os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count=2 {FAST_TO_COMPILE} {os.environ.get('XLA_FLAGS', '')}"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # one for all workers, for processes of tests, and for all mutants
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jebm-xla-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
if "JEBM_CACHE" not in os.environ:  # tests write none of their null models into a user's cache
    os.environ["JEBM_CACHE"] = tempfile.mkdtemp(prefix="jebm-cache-")
    atexit.register(shutil.rmtree, os.environ["JEBM_CACHE"], ignore_errors=True)

import functools
import pathlib
import sys

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
gc.set_threshold(100_000, 20, 50)  # tracing makes many objects, and few of them are in circles

GOLDEN = pathlib.Path(os.environ.get("JEBM_GOLDEN", pathlib.Path(__file__).parents[2] / "shared/golden/open"))


def pytest_addoption(parser):
    parser.addoption(
        "--seed-offset", type=int, default=0, metavar="N",
        help="add N to each seed that a test gives to jax.random.key or numpy.random.default_rng: no test may assert a "
        "property of one seed",
    )  # fmt: skip


def pytest_configure(config):
    offset = config.getoption("--seed-offset")
    if offset:
        jax.random.key = _shifted(jax.random.key, offset)
        np.random.default_rng = _shifted(np.random.default_rng, offset)


def _shifted(function, offset):
    """``function`` of another seed where a test calls it; the library's own seeds stay."""
    tests = pathlib.Path(__file__).parent

    @functools.wraps(function)
    def call(seed=None, *arguments, **settings):
        from_a_test = tests in pathlib.Path(sys._getframe(1).f_code.co_filename).parents
        shift = offset if from_a_test and isinstance(seed, int | np.integer) else 0
        return function(seed + shift if shift else seed, *arguments, **settings)

    return call


def pytest_collection_finish():
    gc.collect()
    gc.freeze()  # what imports made stays, and need not be looked through again


@pytest.fixture(scope="module", autouse=True)
def _no_programs_kept():
    """A module's compiled programs go with it: a process that kept them all would need several GB."""
    yield
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":  # what compilations freed is in pieces, which the allocator keeps unless told
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture(scope="session")
def golden():
    """Loads a case by name (``golden("E1_resnet")``); skips where the golden numbers are not at hand."""

    def load(name: str) -> dict[str, np.ndarray]:
        path = GOLDEN / f"{name}.npz"
        if not path.exists():
            pytest.skip(f"no golden numbers at {path} (environment variable JEBM_GOLDEN names their directory)")
        with np.load(path) as file:
            return {name: file[name] for name in file.files}

    return load


@pytest.fixture(scope="session")
def tiny_experiment(tmp_path_factory) -> pathlib.Path:
    """A configuration file whose training takes seconds."""
    path = tmp_path_factory.mktemp("experiment") / "tiny.py"
    path.write_text(TINY_EXPERIMENT)
    return path


@pytest.fixture(scope="session")
def toy_experiment(tmp_path_factory) -> pathlib.Path:
    """A configuration file of `helpers.toy`, which compiles in a second; processes need tests/ on their path."""
    path = tmp_path_factory.mktemp("experiment") / "toy.py"
    path.write_text('"""A toy."""\n\nfrom helpers.toy import get_config as get_config\n')
    return path


@pytest.fixture(scope="session")
def finished_run(tiny_experiment, tmp_path_factory) -> pathlib.Path:
    """The directory of that experiment, trained without a break. To be copied, not changed."""
    from jebm.commands.main import main

    directory = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["train", str(tiny_experiment), "--workdir", str(directory)]) == 0
    return directory


TINY_EXPERIMENT = '''
"""A tiny experiment."""

from jebm.config import Config, DataConfig, EvaluationConfig, TrainingConfig
from jebm.methods import ECVAEConfig
from jebm.methods.ec.calibration import CalibrationConfig


def get_config():
    return Config(
        method=ECVAEConfig(
            image_size=8, channels=1, latent_size=4, encoder_width=2, decoder_width=2,
            energy_layers=((4, 1), (4, 1)), energy_head_width=8, energy_scales=1,
            calibration=CalibrationConfig(num_steps=2),
        ),
        data=DataConfig(source="digits", batch_size=8, flip=True),
        training=TrainingConfig(num_steps=12, log_every=2, sample_every=6, checkpoint_every=3, num_samples=5),
        evaluation=EvaluationConfig(num_samples=32, batch_size=16),
    )
'''
