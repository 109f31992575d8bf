"""Langevin chains on one accelerator: jebm, torchebm and PyTorch on the same device in one run.

    python benchmarks/gpu/chains.py --out chains.json

Two targets: a double well (torchebm's own example, with its autograd sampler, its fused Triton kernel, and a compiled
step), and the energy network of Hat EBM at 32 px. The libraries take turns; medians over the turns, wall time from the
host with the device waited for. Weights and energies are the same numbers in all libraries, checked before the
timing. What is not installed, or does not run on the device, is left out and named.
"""

import argparse
import functools
import importlib.util
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch lives on the same device

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from networks import CountingOperations, TorchOperations, hat

import jebm
from jebm.methods.hat.networks import HatEnergy

STEP_SIZE, BARRIER = 0.01, 2.0
Runs = dict[str, Callable[[], Any]]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script without an accelerator")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    wells = [(1024, 128, 200), (64, 8, 50), (256, 32, 100), (4096, 32, 1000), (65536, 2, 1000)]
    images = [(128, 50), (1024, 50)]
    if options.tiny:
        wells, images = [(8, 4, 5)], [(2, 2)]
    rows = [device_row(512 if options.tiny else 8192)]
    for sizes in wells:
        rows += measure("double well", sizes, double_well(*sizes), options.repeats)
    for sizes in images:
        runs, flops = image_chain(*sizes, width=16 if options.tiny else 256)
        rows += measure("hat 32 px", sizes, runs, max(3, options.repeats // 5), flops, rows[0])
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


def device_row(size: int) -> dict[str, Any]:
    """The device, the versions, and the rates of a matrix product and of a copy."""
    row: dict[str, Any] = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    if torch := torch_module():
        row["torch"] = torch.__version__
    for dtype in ("float32", "bfloat16"):
        for precision in ("highest", "default") if dtype == "float32" else ("default",):
            a = jax.random.normal(jax.random.key(0), (size, size), dtype)
            product = jax.jit(functools.partial(jnp.matmul, precision=precision))
            row[f"matmul {dtype} {precision} TFLOP/s"] = 2e-12 * size**3 / timed(lambda: product(a, a), 5)  # noqa: B023
    a = jnp.ones((size * size * 8,), jnp.float32)
    copy = jax.jit(lambda a: a + 1.0)
    row["copy TB/s"] = 2e-12 * a.nbytes / timed(lambda: copy(a), 5)
    print(row, flush=True)
    return row


def torch_module() -> Any:
    """PyTorch, or None."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return torch


def timed(run: Callable[[], Any], repeats: int) -> float:
    """Median seconds of a call, the device waited for; the first call is not counted."""
    wait(run())
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        wait(run())
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def wait(result: Any) -> None:
    """Until the device is done."""
    if isinstance(result, jax.Array):
        result.block_until_ready()
    elif (torch := torch_module()) and torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(
    name: str, sizes: tuple[int, ...], runs: Runs, repeats: int, flops: float = 0.0, device: dict | None = None
) -> list[dict[str, Any]]:
    """A row for each library; they take turns."""
    first: dict[str, float] = {}
    for library, run in list(runs.items()):
        begun = time.perf_counter()
        try:
            wait(run())
        except Exception as error:  # noqa: BLE001  a peer that does not run here is a row without a time
            print(f"{name} {sizes} {library}: left out, {type(error).__name__}: {str(error).splitlines()[0][:160]}")
            del runs[library]
            continue
        first[library] = time.perf_counter() - begun
        wait(run())
    seconds: dict[str, list[float]] = {library: [] for library in runs}
    for _ in range(repeats):
        for library, run in runs.items():
            begun = time.perf_counter()
            wait(run())
            seconds[library].append(time.perf_counter() - begun)
    rows = []
    for library, times in seconds.items():
        median = statistics.median(times)
        row = {
            "target": name, "sizes": sizes, "library": library, "median ms": 1e3 * median, "min ms": 1e3 * min(times),
            "max ms": 1e3 * max(times), "repeats": repeats, "first call s": first[library],
        }  # fmt: skip
        if flops and device is not None:
            row["TFLOP/s"] = 1e-12 * flops / median
            row["of the bf16 matrix rate"] = row["TFLOP/s"] / device["matmul bfloat16 default TFLOP/s"]
        rows.append(row)
        share = f"  {row['of the bf16 matrix rate']:.1%}" if flops else ""
        print(f"{name} {sizes} {library:34s} {1e3 * median:10.3f} ms{share}", flush=True)
    return rows


def double_well(chains: int, dimension: int, num_steps: int) -> Runs:
    """``E(x) = h Σ (x² - 1)²``: h = 2, η = 0.01, T = 1, from the same start."""
    start = np.random.default_rng(0).standard_normal((chains, dimension)).astype(np.float32)
    kernel = jebm.langevin(lambda x: BARRIER * jnp.sum(jnp.square(jnp.square(x) - 1.0)), STEP_SIZE)
    positions, key = jnp.asarray(start), jax.random.key(1)
    runs: Runs = {
        "jebm": lambda: jebm.sample_chains(key, kernel, positions, num_steps, trace=())[0].position,
        "jebm, energies recorded": lambda: jebm.sample_chains(key, kernel, positions, num_steps)[1]["energy"],
    }
    torch = torch_module()
    if torch is None or importlib.util.find_spec("torchebm") is None:
        print("torchebm: not installed, left out")
        return runs
    from torchebm.core import DoubleWellModel
    from torchebm.samplers import LangevinDynamics

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x0 = torch.from_numpy(start).to(device)
    sampler = LangevinDynamics(DoubleWellModel(BARRIER, 1.0, device=device), STEP_SIZE, 1.0, device=device)
    runs["torchebm, eager"] = lambda: sampler.sample(x=x0.clone(), n_steps=num_steps)
    scale = (2.0 * STEP_SIZE) ** 0.5

    def step(x: Any) -> Any:
        return x - STEP_SIZE * 4.0 * BARRIER * x * (x * x - 1.0) + scale * torch.randn_like(x)

    compiled = torch.compile(step)

    def loop() -> Any:
        x = x0
        for _ in range(num_steps):
            x = compiled(x)
        return x

    runs["torch.compile of the step, gradient by hand"] = loop
    if device.type == "cuda":
        runs["one CUDA graph of those steps"] = cuda_graph(torch, step, x0, num_steps)
        from torchebm.cuda.fused_langevin import doublewell_langevin_chain

        runs["torchebm, fused chain (this energy alone)"] = lambda: doublewell_langevin_chain(
            x0.clone(), num_steps, STEP_SIZE, 1.0, BARRIER, 1.0, seed=0
        )
    return runs


def cuda_graph(torch: Any, step: Callable, x0: Any, num_steps: int) -> Callable[[], Any]:
    """The eager steps, captured once and replayed."""
    graph, made = torch.cuda.CUDAGraph(), {}

    def run() -> Any:
        if not made:
            step(x0)
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                x = x0
                for _ in range(num_steps):
                    x = step(x)
                made["x"] = x
        graph.replay()
        return made["x"]

    return run


def image_chain(batch: int, num_steps: int, width: int) -> tuple[Runs, float]:
    """The hat's energy at 32 px, η = 0.01, T = 1e-3; and the operations of its gradients, summed directly."""
    images = np.random.default_rng(0).uniform(-1, 1, (batch, 32, 32, 3)).astype(np.float32)
    params = jax.jit(HatEnergy(width=width).init)(jax.random.key(0), images[0])["params"]
    positions, key = jnp.asarray(images), jax.random.key(1)

    def ours(dtype: str, precision: str) -> Callable[[], Any]:
        module = HatEnergy(width=width, dtype=jnp.dtype(dtype))
        energy = jebm.energy.bind(functools.partial(_apply, module), params)
        kernel = jebm.langevin(energy, STEP_SIZE, 1e-3)

        def run() -> Any:
            with jax.default_matmul_precision(precision):
                return jebm.sample_chains(key, kernel, positions, num_steps, trace=())[0].position

        return run

    runs = {
        "jebm, float32": ours("float32", "highest"),
        "jebm, TF32": ours("float32", "default"),
        "jebm, bfloat16": ours("bfloat16", "default"),
    }
    counting = CountingOperations()
    hat(counting, params, images)
    flops = 4.0 * counting.multiply_adds * num_steps
    torch = torch_module()
    if torch is None:
        print("torch: not installed, left out")
        return runs, flops
    ours_energy = np.asarray(jax.vmap(functools.partial(_apply, HatEnergy(width=width), params))(positions[:2]))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scale = (2.0 * STEP_SIZE * 1e-3) ** 0.5
    for name, dtype, compile_it in (
        ("TF32", torch.float32, False), ("TF32, compiled", torch.float32, True),
        ("bfloat16", torch.bfloat16, False), ("bfloat16, compiled", torch.bfloat16, True),
    ):  # fmt: skip
        operations = TorchOperations()
        layout = {"memory_format": torch.channels_last}
        weights = jax.tree.map(
            lambda a: a.to(device, dtype, **(layout if a.ndim == 4 else {})),  # noqa: B023
            operations.parameters(params),
        )
        network = lambda x, o=operations, w=weights, d=dtype: hat(o, w, x.to(d))[:, 0].float()  # noqa: E731
        x0 = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device, **layout)
        difference = network(x0[:2]).detach().cpu().numpy() - ours_energy
        assert np.abs(difference).max() < 0.05 * np.abs(ours_energy).max(), f"PyTorch differs by {difference}"
        network = torch.compile(network) if compile_it else network

        def run(network: Callable = network, x0: Any = x0) -> Any:
            x = x0
            for _ in range(num_steps):
                x = x.detach().requires_grad_()
                gradient = torch.autograd.grad(network(x).sum(), x)[0]
                x = x - STEP_SIZE * gradient + scale * torch.randn_like(x)
            return x.detach()

        runs[f"PyTorch channels_last, {name}"] = run
    return runs, flops


def _apply(module: Any, params: Any, x: Any) -> Any:
    return module.apply({"params": params}, x)


if __name__ == "__main__":
    main()
