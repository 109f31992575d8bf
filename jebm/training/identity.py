"""What a run is of: data, frozen generator, configuration and versions, compared at resume and between processes.

The comparisons are pure functions; only `check_processes` talks to the other processes.
"""

import collections
import hashlib
import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jebm.config import Config, to_dict
from jebm.data import Source
from jebm.errors import ConfigError
from jebm.runs import run as runs
from jebm.runs.state import fingerprint

__all__ = ["Facts", "changed", "check_processes", "disagreement", "facts", "generator_fingerprint"]

Facts = Mapping[str, Any]

COMPARED = {
    "data_fingerprint": "the fingerprint of the images is", "generator_fingerprint": "the frozen generator's is",
    "configuration": "the configuration has", "versions": "the versions are",
}  # fmt: skip


def facts(config: Config, source: Source) -> Facts:
    """``data_fingerprint``, ``generator_fingerprint`` (None without another run's), ``versions``, ``configuration``."""
    return {
        "data_fingerprint": source.fingerprint, "generator_fingerprint": generator_fingerprint(config),
        "versions": _versions(), "configuration": to_dict(config),
    }  # fmt: skip


def changed(meta: Mapping[str, Any], now: Facts) -> str | None:
    """What is no longer as a checkpoint's ``meta`` says, in words; what it does not say is not compared."""
    names = {"data_fingerprint": "data", "generator_fingerprint": "frozen generator (method.generator)"}
    settings = now["configuration"]
    for key, name in names.items():
        if meta.get(key) is not None and meta[key] != now[key]:
            if key == "data_fingerprint":
                name = f"data (data.source={settings['data']['source']})"
            return f"the {name} changed since this run was trained, fingerprint {meta[key]} then and {now[key]} now"
    return None


def disagreement(hosts: Sequence[Facts]) -> str | None:
    """How the processes of one run differ, in words; None where they agree.

    Args:
        hosts: the `facts` of each process in their order, with the ``host``'s name, and its ``problem`` or None.

    Returns:
        The first process that has a problem; or one of a minority, with its value and that of another process.
    """
    for host in hosts:
        if host.get("problem"):
            return str(host["problem"])
    for key, words in COMPARED.items():
        values = [json.dumps(host[key], sort_keys=True) for host in hosts]
        common = collections.Counter(values).most_common(1)[0][0]
        odd = next((i for i, value in enumerate(values) if value != common), None)
        if odd is not None:
            usual = values.index(common)
            one, other = _difference(hosts[odd][key], hosts[usual][key])
            return (
                f"process {odd} (on {hosts[odd]['host']}) differs from process {usual} (on {hosts[usual]['host']}): "
                f"{words} {one} there, {other} here; give all the same data, command and versions"
            )
    return None


def check_processes(own: Facts, problem: str | None) -> None:
    """Compares with all other processes; every one of them returns, or raises the same.

    Args:
        own: `facts`.
        problem: why this process cannot go on, or None.

    Raises:
        ConfigError: a process has a problem, or they differ (`disagreement`).
    """
    own = {**own, "host": socket.gethostname(), "problem": problem}
    found = disagreement(_gathered(own) if jax.process_count() > 1 else [own])
    if found:
        raise ConfigError(found)


def _gathered(own: Facts) -> list[Facts]:
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(own).encode(), np.uint8)
    longest = int(multihost_utils.process_allgather(np.array([text.size])).max())
    rows = multihost_utils.process_allgather(np.pad(text, (0, longest - text.size), constant_values=ord(" ")))
    return [json.loads(bytes(row)) for row in np.asarray(rows)]


def _difference(one: Any, other: Any) -> tuple[str, str]:
    """The two values, or of nested groups the first entries that differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in [*one, *other]:
            if one.get(name) != other.get(name):
                first, second = _difference(one.get(name), other.get(name))
                nested = isinstance(one.get(name), Mapping)
                return (f"{name}.{first}" if nested else f"{name}={first}"), second
    return str(one), str(other)


def generator_fingerprint(config: Config) -> str | None:
    """16 hexadecimal digits over the weights of the run that ``method.generator`` names, and over its architecture."""
    path = getattr(config.method, "generator", "")
    if path in ("", "network"):
        return None
    run = runs.load(path)
    leaves = jax.tree.leaves(runs.generator_of(run))
    text = json.dumps([np.asarray(fingerprint(leaves)).tolist(), to_dict(run.config)["method"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _versions() -> dict[str, str]:
    import flax
    import jaxlib
    import orbax.checkpoint

    import jebm

    return {
        "jebm": jebm.__version__, "jax": jax.__version__, "jaxlib": jaxlib.__version__, "flax": flax.__version__,
        "orbax": orbax.checkpoint.__version__,
    }  # fmt: skip
