"""The identity of a run: data, frozen generator, configuration, versions; compared at resume and between processes.

The comparisons are pure functions; only `check_processes` talks to the other processes.
"""

import collections
import json
import socket
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax

from jebm import sharding
from jebm.config import Config, to_dict
from jebm.data import Source
from jebm.errors import ConfigError
from jebm.runs.directory import RunDirectory
from jebm.runs.run import FrozenGenerator

__all__ = ["Facts", "changed", "check_processes", "check_same_configuration", "disagreement", "facts", "versions"]

Facts = Mapping[str, Any]

COMPARED = {
    "data_fingerprint": "the fingerprint of the images is", "generator_fingerprint": "the frozen generator's is",
    "configuration": "the configuration has", "versions": "the versions are", "devices": "the devices are",
}  # fmt: skip


# settings of training that may differ from those of the run that is resumed: they change no draw and no gradient (how
# often it is logged does decide when a divergence is seen)
FREE = ("fsdp", "microbatches", "num_steps", "log_every", "sample_every", "checkpoint_every", "keep_checkpoints",
        "num_samples", "evaluate_at_end", "writers")  # fmt: skip


def check_same_configuration(config: Config, directory: RunDirectory) -> None:
    """Compares with the configuration of the run in ``directory``, if there is one.

    Raises:
        ConfigError: they differ in a setting that changes the result.
    """
    if not directory.config.exists():
        return
    old, new = (_flat(_compared(c)) for c in (directory.read_config(), config))
    differing = [key for key, value in new.items() if old.get(key) != value]
    if differing:
        raise ConfigError(
            f"{directory.path} holds a run with another configuration ({', '.join(differing[:4])} differ): "
            "take another --workdir, or remove that one"
        )


def _compared(config: Config) -> dict[str, Any]:
    tree = to_dict(config)
    tree.pop("evaluation")
    tree["data"].pop("workers")
    for name in FREE:
        tree["training"].pop(name)
    return tree


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def facts(config: Config, source: Source, generator: FrozenGenerator | None) -> Facts:
    """``data_fingerprint``, ``generator_fingerprint`` (None without another run's), ``versions``, ``configuration``."""
    return {
        "data_fingerprint": source.fingerprint, "generator_fingerprint": generator.fingerprint if generator else None,
        "versions": versions(), "configuration": to_dict(config),
    }  # fmt: skip


def changed(meta: Mapping[str, Any], now: Facts) -> str | None:
    """The first difference from a checkpoint's ``meta``, in words, or None; facts missing from it are not compared."""
    names = {"data_fingerprint": "data", "generator_fingerprint": "frozen generator (method.generator)"}
    settings = now["configuration"]
    for key, name in names.items():
        if meta.get(key) is not None and meta[key] != now[key]:
            if key == "data_fingerprint":
                name = f"data (data.source={settings['data']['source']})"
            return f"the {name} changed since this run was trained, fingerprint {meta[key]} then and {now[key]} now"
    return None


def disagreement(hosts: Sequence[Facts]) -> str | None:
    """The difference between the processes of one run, in words; None if they agree.

    Args:
        hosts: the `facts` of each process in their order, with the ``host``'s name, its ``devices`` in words, and its
            ``problem`` or None; a process with a problem has perhaps no more.

    Returns:
        One of a minority in versions or devices, with its value and that of another process; the first process that
        has a problem; or one of a minority in the rest.
    """
    return _odd(hosts, ("versions", "devices")) or _problem(hosts) or _odd(hosts, tuple(COMPARED))


def _problem(hosts: Sequence[Facts]) -> str | None:
    problems = [host.get("problem") for host in hosts]
    first = next((i for i, problem in enumerate(problems) if problem), None)
    if first is None:
        return None
    if first == 0 or len(set(problems)) == 1:  # process 0's is of the run: another training in the directory, say
        return str(problems[first])
    return f"process {first} (on {hosts[first]['host']}): {problems[first]}"


def _odd(hosts: Sequence[Facts], keys: Sequence[str]) -> str | None:
    for key in keys:
        words = COMPARED[key]
        values = [json.dumps(host.get(key), sort_keys=True) for host in hosts]
        common = collections.Counter(values).most_common(1)[0][0]
        odd = next((i for i, value in enumerate(values) if value != common), None)
        if odd is not None:
            usual = values.index(common)
            one, other = _difference(hosts[odd].get(key), hosts[usual].get(key))
            return (
                f"process {odd} (on {hosts[odd]['host']}) differs from process {usual} (on {hosts[usual]['host']}): "
                f"{words} {one} there, {other} here; give all the same data, command and versions"
            )
    return None


def check_processes(own: Facts | None, problem: str | None) -> None:
    """Compares with all other processes; every one of them returns, or raises the same.

    Args:
        own: `facts`; None where a problem came before them.
        problem: why this process cannot train, or None.

    Raises:
        ConfigError: a process has a problem, or they differ (`disagreement`).
    """
    devices = f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}"
    here = {
        "versions": versions(), **(own or {}), "host": socket.gethostname(), "devices": devices, "problem": problem,
    }  # fmt: skip
    found = disagreement([json.loads(text) for text in sharding.gathered_texts("facts", json.dumps(here))])
    if found:
        raise ConfigError(found)


def _difference(one: Any, other: Any) -> tuple[str, str]:
    """The two values, or of nested groups the first entries that differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in [*one, *other]:
            if one.get(name) != other.get(name):
                first, second = _difference(one.get(name), other.get(name))
                nested = isinstance(one.get(name), Mapping)
                return (f"{name}.{first}" if nested else f"{name}={first}"), second
    return str(one), str(other)


def versions() -> dict[str, str]:
    """Versions of the packages that decide a run's bits."""
    return {name: metadata.version(name) for name in ("jebm", "jax", "jaxlib", "flax", "orbax-checkpoint")}
