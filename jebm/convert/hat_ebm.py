"""Runs from the weights that the authors of Hat EBM released (arXiv 2210.16486, TensorFlow object checkpoints).

Their names: ``ebm_N.ckpt`` the hat, ``gen_N.ckpt`` the generator or decoder; and, if a whole training run was
saved, ``ebm_optim_N.npz`` and ``gen_optim_N.npz`` (counter, moving averages, Adam's moments), ``persistent_N.npy`` and
``persistent_z_N.npy`` (the bank).
"""

import dataclasses
import math
import re
import zipfile
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from jebm import methods, paths
from jebm.config import Config, DataConfig
from jebm.convert import arrays as interop
from jebm.convert import tensorflow as tensorflow_checkpoints
from jebm.errors import ConfigError
from jebm.mcmc import bank
from jebm.methods import ChainConfig, HatEBMConfig
from jebm.methods.hat.ebm import HatEBMState
from jebm.methods.hat.networks import GENERATOR_STAGES, HAT_STAGES, HatGenerator
from jebm.methods.shared import Trained
from jebm.runs.directory import RunDirectory

__all__ = ["hat_ebm"]

Arrays = dict[str, np.ndarray]


def hat_ebm(checkpoint: paths.Path, out: paths.Path, config: Config | None = None) -> RunDirectory:
    """Writes a run directory from a hat and its generator.

    Args:
        checkpoint: the folder that holds both (of several, the newest pair is taken), or one of the two. A generator
            alone, with a ``config`` of refinement or retrofit, makes a run at step 0 whose hat `jebm train` trains.
        out: the run directory to make.
        config: the experiment that these are weights of. By default its sizes are read off the weights, and its chains
            are those that the authors score the released networks of that size with; an SN-GAN-layout generator is
            taken for synthesis, a decoder for a retrofit.

    Raises:
        ConfigError: files that are missing or damaged, weights that do not fit each other or the configuration, or an
            ``out`` that is in use.
    """
    from jebm.runs.checkpoints import Checkpoints
    from jebm.runs.state import TrainState, initial_state

    hat_prefix, generator_prefix = _find(checkpoint, alone=config is not None)
    generator = _named(generator_prefix)
    _require_kind(generator_prefix, generator, ("generator", "decoder"))
    pairs = None
    if hat_prefix is not None:
        hat = _named(hat_prefix)
        _require_kind(hat_prefix, hat, ("hat",))
        pairs = _bank(hat_prefix)
    try:
        config = _infer(hat, generator, pairs) if config is None else _checked(config, pairs, alone=hat_prefix is None)
    except (KeyError, IndexError, TypeError) as error:  # a tensor that gives the network's size is missing or misshapen
        raise ConfigError(f"{checkpoint}: not the tensors of the authors' networks ({error!r})") from None
    directory = RunDirectory(out)
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is in use: give --out a directory that is not there yet")

    method = methods.build(config)
    shape = (config.data.batch_size, *method.image_shape)
    start = lambda: initial_state(method, config.training.seed, jnp.zeros(shape))  # noqa: E731
    like: HatEBMState = jax.eval_shape(start).method
    variables = _fill(generator_prefix, generator, _variables(like))
    if hat_prefix is None:
        whole = start()
        whole = whole._replace(method=whole.method._replace(generator=variables))
    else:
        key = jax.random.split(jax.random.key(config.training.seed))[1]
        state, count = _trained(hat_prefix, hat, generator_prefix, variables, config, like, pairs)
        whole = TrainState(jnp.asarray(_step(hat_prefix, count), jnp.int32), key, state)
    if jax.tree.map(jnp.shape, whole.method) != jax.tree.map(jnp.shape, like):
        raise ConfigError(f"the bank beside {hat_prefix} does not fit the configuration")
    directory.write_config(config)
    checkpoints = Checkpoints(directory.checkpoints, 1)
    checkpoints.save(whole, {"converted_from": (hat_prefix or generator_prefix).name})
    checkpoints.close()
    return directory


def _variables(state: HatEBMState) -> dict[str, Any]:
    """The variables of the generator's network."""
    generator = state.generator
    if isinstance(generator, Trained):
        return {"params": generator.params, "batch_stats": state.batch_stats}
    return dict(generator)


def _trained(
    hat_prefix: paths.Path, hat: Arrays, generator_prefix: paths.Path, variables: Any, config: Config,
    like: HatEBMState, pairs: bank.Bank | None,
) -> tuple[HatEBMState, int]:  # fmt: skip
    """The method's state, and the number of the hat's updates, 0 if it is unknown."""
    energy, count = _with_optimizer(
        hat_prefix, _fill(hat_prefix, hat, {"params": like.energy.params})["params"], like.energy
    )
    state = like._replace(energy=energy, generator=variables)
    if like.bank is not None:
        trained, _ = _with_optimizer(generator_prefix, variables["params"], like.generator)
        state = state._replace(
            generator=trained, batch_stats=variables["batch_stats"],
            bank=_fresh_bank(config, variables, like.bank) if pairs is None else pairs,
        )  # fmt: skip
    return jax.tree.map(jnp.asarray, state), count


def _with_optimizer(prefix: paths.Path, params: Any, like: Trained) -> tuple[Trained, int]:
    """A network with its moving average and optimiser's state, and the number of updates."""
    count, moments = _optimizer(prefix, params)
    return Trained(params, _adam(like.optimizer, count, moments), moments["ema"]), count


def _find(path: paths.Path, alone: bool) -> tuple[paths.Path | None, paths.Path]:
    """Prefixes of the hat's and of the generator's checkpoint; with ``alone``, the hat's may be missing."""
    if path.is_dir():
        found = {}
        for index in path.glob("*.ckpt.index"):
            if match := re.fullmatch(r"(ebm|gen)_?(\d*)\.ckpt", index.stem):
                found[match[1], match[2]] = path / index.stem
        kinds = {kind for kind, _ in found}
        numbers = [number for kind, number in found if kind == "gen" and ("ebm", number) in found]
        if alone and kinds == {"gen"}:
            numbers = [number for _, number in found]
        if not numbers:
            names = ", ".join(sorted(prefix.name for prefix in found.values())) or "none of them"
            raise ConfigError(f"{path} must hold ebm_N.ckpt.index and gen_N.ckpt.index of one N; it has {names}")
        newest = max(numbers, key=lambda number: int(number or 0))
        return found.get(("ebm", newest)), found["gen", newest]
    prefix = path.with_name(re.sub(r"\.(index|data-\d+-of-\d+)$", "", path.name))
    match = re.fullmatch(r"(ebm|gen)(.*)", prefix.name)
    if match is None:
        wrong = "it names neither network" if path.exists() else "there is no such folder"
        raise ConfigError(f"{path}: {wrong}; give the folder of ebm_N.ckpt and gen_N.ckpt, or one of the two")
    hat = prefix.with_name("ebm" + match[2])
    missing = match[1] == "gen" and not hat.with_name(hat.name + ".index").is_file()
    return None if alone and missing else hat, prefix.with_name("gen" + match[2])


def _named(prefix: paths.Path) -> Arrays:
    """The variables under this library's names."""
    leaves = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
    named = {}
    for path, array in tensorflow_checkpoints.read(prefix).items():
        if path.startswith("save_counter"):
            continue
        *modules, leaf = path.split("/")
        modules = ["shortcut" if module == "sc" else module for module in modules]
        if modules and re.fullmatch(r"conv_\d+", modules[0]):
            modules[0] = "stem" if len(modules) > 1 else "out_conv"
        elif modules and re.fullmatch(r"bn_\d+", modules[0]):
            modules[0] = "out_bn"
        elif modules and re.fullmatch(r"lin_\d+", modules[0]):
            modules[0] = "dense" if modules[0] == "lin_1" else "head"
        named["/".join([*modules, leaves.get(leaf, leaf)])] = array
    return named


def _kind(arrays: Arrays) -> str:
    for kind, name in (("hat", "head/kernel"), ("generator", "dense/kernel"), ("decoder", "out_bn/scale")):
        if name in arrays:
            return kind
    return "encoder" if "out_conv/kernel" in arrays else "network of another kind"


def _require_kind(prefix: paths.Path, arrays: Arrays, allowed: tuple[str, ...]) -> None:
    if _kind(arrays) not in allowed:
        raise ConfigError(f"{prefix} holds a {_kind(arrays)}, not a {' or '.join(allowed)}")


def _size(arrays: Arrays, stages: dict[int, Any]) -> int:
    """The image size whose network has as many blocks; of the authors' sizes."""
    blocks = len({name.partition("/")[0] for name in arrays if re.match(r"stem/|block\d+/", name)})
    sizes = {len(stages[size]): size for size in (32, 64, 128)}
    if blocks not in sizes:
        raise ConfigError(f"a network of {blocks} blocks is none of the authors', which have {sorted(sizes)}")
    return sizes[blocks]


def _infer(hat: Arrays, generator: Arrays, pairs: bank.Bank | None) -> Config:
    size, retrofit = _size(hat, HAT_STAGES), _kind(generator) == "decoder"
    if not retrofit and _size(generator, GENERATOR_STAGES) != size:
        other = _size(generator, GENERATOR_STAGES)
        raise ConfigError(f"the hat is of {size} px images, the generator of {other} px images")
    shared = {
        "image_size": size,
        "channels": generator["out_conv/bias"].size,
        "energy_width": hat["head/kernel"].shape[0],
    }
    if retrofit:
        test_chain = ChainConfig(125, 5e-4, 1e-3, 50.0, max_drift=None, residual_start_scale=0.01)
        method = HatEBMConfig(
            application="retrofit", generator="network", generator_width=generator["stem/conv_1/bias"].size,
            temperature=1e-3, data_noise=1e-2, chain=ChainConfig(100, 5e-4, 1e-3, 50.0), test_chain=test_chain,
            **shared,
        )  # fmt: skip
        return Config(method, DataConfig("npz:data/cifar10.npz"))
    width = generator["dense/bias"].size // 16
    num_steps = {32: 125, 64: 100, 128: 125 if width > 1024 else 150}[size]
    method = HatEBMConfig(
        latent_size=generator["dense/kernel"].shape[0], generator_width=width,
        temperature=1e-3 if size == 32 else 1e-8,  # what the authors score their networks with
        test_chain=ChainConfig(num_steps, max_drift=None, residual_start_scale=0.01), **shared,
    )  # fmt: skip
    names = {32: "cifar10", 64: "celeba64", 128: "imagenet128"}
    config = Config(method, DataConfig(f"npz:data/{names[size]}.npz"))
    return _with_bank(config, pairs)


def _with_bank(config: Config, pairs: bank.Bank | None) -> Config:
    """A bank of the given one's size, whose rows the batch divides; without one, of a single batch."""
    rows = config.data.batch_size if pairs is None else pairs.size
    data = dataclasses.replace(config.data, batch_size=math.gcd(rows, config.data.batch_size))
    return dataclasses.replace(config, method=dataclasses.replace(config.method, bank_size=rows), data=data)


def _checked(config: Config, pairs: bank.Bank | None, alone: bool) -> Config:
    if not isinstance(config.method, HatEBMConfig):
        raise ConfigError(f"the configuration is of {type(config.method).__name__}, not of HatEBMConfig")
    if config.method.application == "synthesis":
        if alone:
            raise ConfigError("synthesis needs the hat beside the generator: ebm_N.ckpt.index of the same N")
        return config if pairs is None else _with_bank(config, pairs)
    return dataclasses.replace(config, method=dataclasses.replace(config.method, generator="network"))


def _fill(prefix: paths.Path, arrays: Arrays, template: dict[str, Any]) -> Any:
    try:
        return interop.from_flat(arrays, template)
    except ValueError as error:
        reason = str(error).partition(": ")[2]
        reason = reason if len(reason) < 300 else reason[:300] + " ..."
        raise ConfigError(f"{prefix} holds another network than the configuration's: {reason}") from None


def _beside(prefix: paths.Path, kind: str, suffix: str) -> paths.Path:
    """``ebm_optim_20.npz`` beside ``ebm_20.ckpt``."""
    name, _, number = prefix.name.removesuffix(".ckpt").partition("_")
    kind = kind or f"{name}_optim"
    return prefix.with_name(f"{kind}_{number}{suffix}" if number else f"{kind}{suffix}")


def _bank(prefix: paths.Path) -> bank.Bank | None:
    images, latents = _beside(prefix, "persistent", ".npy"), _beside(prefix, "persistent_z", ".npy")
    if not (images.is_file() and latents.is_file()):
        return None
    pairs = {"z": _numpy_file(latents), "image": _numpy_file(images)}
    try:
        return bank.init(pairs)
    except ValueError as error:
        raise ConfigError(f"{images} and {latents.name} are no bank: {error}") from None


def _numpy_file(path: paths.Path) -> Any:
    """The array of an ``.npy``, the list of arrays of an ``.npz`` as `numpy.savez` numbers them."""
    try:
        with path.open("rb") as stream:  # numpy leaves a damaged archive open
            content = np.load(stream)
            if isinstance(content, np.ndarray):
                return content
            return [content[f"arr_{i}"] for i in range(len(content.files))]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path} cannot be read as a file of numpy: {error}") from None


def _fresh_bank(config: Config, variables: Any, like: bank.Bank) -> bank.Bank:
    """Pairs of the generator as it is now, not those of its training; sampling does not read them."""
    z = jax.random.normal(jax.random.key(config.training.seed), like.entries["z"].shape)
    settings = config.method
    module = HatGenerator(settings.image_size, settings.generator_width, settings.channels, settings.output_scale)
    apply = jax.jit(lambda z: module.apply(variables, z))
    images = [apply(z[i : i + config.data.batch_size]) for i in range(0, len(z), config.data.batch_size)]
    return bank.init({"z": z, "image": jnp.concatenate(images)})


# Keras lists a layer's variables as it made them
_ORDER = ("stem", "dense", *(f"block{i}" for i in range(2, 8)), "head", "out_bn", "out_conv")
_PARTS = ("conv_1", "conv_2", "bn_1", "bn_2", "shortcut", "kernel", "scale", "bias")


def _optimizer(prefix: paths.Path, params: Any) -> tuple[int, dict[str, Any]]:
    """Updates made, the moving average and Adam's moments; those of a fresh start if they were not saved."""
    path = _beside(prefix, "", ".npz")
    if not path.is_file():
        zeros = jax.tree.map(jnp.zeros_like, params)
        return 0, {"ema": params, "mu": zeros, "nu": zeros}
    rank = lambda name: [[*_ORDER, *_PARTS].index(part) for part in name.split("/")]  # noqa: E731
    names = sorted(("/".join(path) for path in flatten_dict(params)), key=rank)
    arrays = _numpy_file(path)
    if len(arrays) != 1 + 3 * len(names):
        raise ConfigError(f"{path} holds {len(arrays)} arrays, the optimiser of this network {1 + 3 * len(names)}")
    groups = {}
    for i, group in enumerate(("ema", "mu", "nu")):
        flat = dict(zip(names, arrays[1 + i * len(names) :], strict=False))
        groups[group] = _fill(path, flat, {"params": params})["params"]
    return int(arrays[0]), groups


def _adam(like: Any, count: int, moments: dict[str, Any]) -> Any:
    """The optimiser's state ``like``, with these counts and moments."""

    def fill(node: Any) -> Any:
        number = jnp.asarray(count, jnp.int32)
        if isinstance(node, optax.ScaleByAdamState):
            return optax.ScaleByAdamState(number, moments["mu"], moments["nu"])
        return optax.ScaleByScheduleState(number) if isinstance(node, optax.ScaleByScheduleState) else node

    known = (optax.ScaleByAdamState, optax.ScaleByScheduleState)
    return jax.tree.map(fill, like, is_leaf=lambda node: isinstance(node, known))


def _step(prefix: paths.Path, count: int) -> int:
    """Training iterations: the hat's updates, or the number in the name."""
    number = re.search(r"_(\d+)\.ckpt$", prefix.name)
    return count or (int(number[1]) if number else 0)
