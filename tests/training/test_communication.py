"""What eight devices do in chains: compiled programs, read. No communication, and each the work of its own rows."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap

import pytest
from helpers import FAST_TO_COMPILE, ROOT
from helpers.families import CONFIGS

DEVICES, ROWS = 8, 11  # rows a device

SCRIPT = textwrap.dedent(
    """
    import dataclasses, functools, json, sys
    import jax, jax.numpy as jnp
    from jebm.planning.topology import topology

    chips = topology(sys.argv[2]).devices  # before anything asks for a device

    from helpers.families import CONFIGS
    from jebm import methods, sharding
    from jebm.config import Config, DataConfig, TrainingConfig
    from jebm.planning import hlo
    from jebm.runs.drawing import batch_program, drawing
    from jebm.runs.run import abstract_state
    from jebm.training.step import make_step
    from jebm.training.placement import mesh_of, placed

    # networks of a few channels are split, too
    sharding.parameter_sharding = functools.partial(sharding.parameter_sharding, smallest=16)
    key = jax.random.key(0)

    def longer(config, **fields):
        # a compiler takes a loop of one step apart
        return dataclasses.replace(config, **{
            name: dataclasses.replace(getattr(config, name), **changes)
            for name, changes in fields.items() if hasattr(config, name)
        })

    def read(family, program, fsdp, devices, compiled):
        lines = hlo.executed(compiled.as_text())
        collectives = {str(looped): hlo.collectives(lines, looped=looped) for looped in (False, True)}
        products = {str(looped): hlo.products(lines, looped=looped) for looped in (False, True)}
        print(json.dumps([[family, program, fsdp, devices], collectives, products]), flush=True)

    for name in sys.argv[4:]:
        settings = CONFIGS[name]
        chain = {"num_steps": 4}
        if name in ("ebm", "energy_matching"):  # their chains are settings of their own
            settings = dataclasses.replace(settings, num_steps=4, generate_steps=4)
        if name == "denoising_ebm":  # at one resolution: half the program; hat_ebm has several
            settings = dataclasses.replace(settings, multipliers=(1,))
        settings = longer(
            settings, chain=chain, test_chain=chain, calibration=chain,
            refinement={"num_levels": 3, "steps_per_level": 4},
        )
        for devices, fsdp in json.loads(sys.argv[3]):
            rows = int(sys.argv[1]) * devices
            if hasattr(settings, "bank_size"):
                settings = dataclasses.replace(settings, bank_size=rows)
            config = Config(settings, DataConfig("digits", batch_size=rows), TrainingConfig(fsdp=fsdp))
            method, mesh = methods.build(settings), mesh_of(config, chips[:devices])
            state = placed(abstract_state(method, config), mesh)
            split = [leaf for leaf in jax.tree.leaves(state.method) if "fsdp" in leaf.sharding.spec]
            assert (len(split) > 3) == (fsdp > 1), (name, len(split))
            images = jax.ShapeDtypeStruct((rows, *method.image_shape), "uint8", sharding=sharding.batch_sharding(mesh))
            step = make_step(config, method, jax.tree.map(lambda a: a.sharding, state))
            with jax.set_mesh(mesh):
                read(name, "step", fsdp, devices, step.lower(state, images).compile())
                if devices == 1 or fsdp > 1:
                    program = drawing(method, mesh, rows)
                    read(name, "grid", fsdp, devices, program.lower(key, state.method).compile())
                if name == "hat_ebm" and fsdp == 1:
                    program = batch_program(method, mesh, rows)
                    read(name, "evaluate", fsdp, devices, program.lower(key, 0, state.method).compile())
    """
)


def compiled(topology, meshes, families, flags=""):
    """``(family, program, fsdp, devices) -> (collectives, products)``, both outside and inside loops."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(ROWS), topology, json.dumps(meshes), *families],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return {tuple(name): found for name, *found in map(json.loads, result.stdout.splitlines())}


@pytest.fixture(scope="module")
def programs():
    return compiled(f"cpu:{DEVICES}", [(1, 1), (DEVICES, 1), (DEVICES, 4)], CONFIGS, FAST_TO_COMPILE)


SPREAD = [(name, "step", fsdp) for name in CONFIGS for fsdp in (1, 4)]
SPREAD += [(name, "grid", 4) for name in CONFIGS] + [("hat_ebm", "evaluate", 1)]
LOOPLESS = {"hat_autoencoder": ("step", "grid"), "ec_vae": ("grid",), "ec_flow": ("grid",), "ec_gan": ("grid",)}


@pytest.mark.parametrize(("name", "program", "fsdp"), SPREAD)
def test_no_loop_communicates(programs, name, program, fsdp):
    collectives, products = programs[name, program, fsdp, DEVICES]
    assert collectives["True"] == {}
    assert bool(products["True"]) == (program not in LOOPLESS.get(name, ()))  # there are loops to look at
    if program == "step" and fsdp > 1:
        assert collectives["False"]["all-gather"][0] > 3  # the weights, before the loops


@pytest.mark.parametrize(("name", "program", "fsdp"), SPREAD)
def test_each_device_computes_what_one_does_with_as_many_rows(programs, name, program, fsdp):
    looped = str(program not in LOOPLESS.get(name, ()))
    spread, alone = (programs[name, program, *of][1][looped] for of in ((fsdp, DEVICES), (1, 1)))
    assert spread
    assert sizes(spread) == sizes(alone)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install libtpu")
@pytest.mark.parametrize("name", CONFIGS)
def test_no_loop_communicates_on_tpus(name):
    found = compiled("v5e:2x4", [(DEVICES, 1), (DEVICES, 4)], [name])
    assert {("step", 1), ("step", 4), ("grid", 4)} <= {(program, fsdp) for _, program, fsdp, _ in found}
    for (_, program, _, _), (collectives, products) in found.items():
        assert collectives["True"] == {}
        assert bool(products["True"]) == (program not in LOOPLESS.get(name, ()))


def sizes(products):
    return sorted(sorted(sorted(shape) for shape in one) for one in products)
