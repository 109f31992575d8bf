"""Released weights of Hat EBM: the checkpoint of the golden numbers becomes a run, and wrong files are named."""

import json
import shutil

import jax
import numpy as np
import pytest
from conftest import GOLDEN
from helpers.golden import adam_moments, close_to_max, group

import jebm
from jebm.commands.main import main
from jebm.config import Config, DataConfig
from jebm.convert import hat_ebm as convert
from jebm.convert import tensorflow as tensorflow_checkpoints
from jebm.convert.arrays import from_flat
from jebm.errors import ConfigError
from jebm.methods import ChainConfig, ECVAEConfig, HatEBMConfig

pytestmark = pytest.mark.golden


@pytest.fixture
def folder(golden, tmp_path):
    """A copy of the checkpoint's folder, to be damaged."""
    golden("H6_checkpoint")
    shutil.copytree(GOLDEN / "H6_checkpoint", tmp_path / "weights")
    return tmp_path / "weights"


def exactly(actual, case, prefix, collection="params"):
    expected = from_flat(group(case, prefix), {collection: actual})[collection]
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_a_run_from_the_released_format(golden, folder, tmp_path):
    case = golden("H6_checkpoint")
    assert main(["convert", "hat-ebm", "--checkpoint", str(folder), "--out", str(tmp_path / "run")]) == 0
    run = jebm.load(tmp_path / "run")
    settings, state = run.config.method, run.state
    assert (settings.application, settings.image_size) == ("synthesis", case["in/x"].shape[1])
    assert settings.latent_size == case["cfg/nz"]
    assert (settings.energy_width, settings.generator_width) == (case["cfg/ebm_ngf"], case["cfg/gen_ngf"])

    with jax.default_matmul_precision("highest"):
        energies = settings.temperature * jax.vmap(run.energy)(case["in/x"])
        image = jax.vmap(jebm.runs.run.generator_of(run))(case["in/z"])
    np.testing.assert_allclose(energies[:, None], case["out/energy"], rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(image, case["out/image"], rtol=0, atol=1e-5)

    exactly(state.energy.params, case, "w/ebm")
    variables = {"params": state.generator.params, "batch_stats": state.batch_stats}
    jax.tree.map(np.testing.assert_array_equal, variables, from_flat(group(case, "w/gen"), variables))
    for ours, net in ((state.energy, "ebm"), (state.generator, "gen")):
        adam = adam_moments(ours.optimizer)
        exactly(adam.mu, case, f"opt/{net}/m")
        exactly(adam.nu, case, f"opt/{net}/v")
        assert adam.count == 2
    exactly(state.energy.ema, case, "opt/ebm/avg")
    exactly(state.generator.ema, case, "opt/gen/avg")
    np.testing.assert_array_equal(state.bank.entries["z"], case["bank/z"])
    np.testing.assert_array_equal(state.bank.entries["image"], case["bank/x"])
    assert run.step == 2


@pytest.mark.parametrize("name", ["ebm_20.ckpt", "gen_20.ckpt", "ebm_20.ckpt.index", "gen_20.ckpt.data-00000-of-00001"])
def test_either_file_names_the_pair(folder, name):
    found = convert._find(folder / name, alone=True)
    assert [prefix.name for prefix in found] == ["ebm_20.ckpt", "gen_20.ckpt"]


def test_the_reader_reads_what_tensorflow_reads(folder):
    tensorflow = pytest.importorskip(
        "tensorflow", reason="TensorFlow is not installed; the golden arrays still test it"
    )
    prefix = folder / "gen_20.ckpt"
    reader = tensorflow.train.load_checkpoint(str(prefix))
    ours = tensorflow_checkpoints.read(prefix)
    assert len(ours) > 20
    for name, array in ours.items():
        np.testing.assert_array_equal(array, reader.get_tensor(name + tensorflow_checkpoints.SUFFIX))


def refused(folder, tmp_path, config=None):
    with pytest.raises(ConfigError) as error:
        convert.hat_ebm(folder, tmp_path / "run", config)
    assert not (tmp_path / "run").exists()
    message = str(error.value)
    assert "\n" not in message
    return message.replace(str(tmp_path), "")


def test_missing_files(folder, tmp_path):
    (folder / "gen_20.ckpt.data-00000-of-00001").unlink()
    assert refused(folder, tmp_path).endswith("gen_20.ckpt lacks gen_20.ckpt.data-00000-of-00001")
    (folder / "gen_20.ckpt.index").unlink()
    assert "must hold ebm_N.ckpt.index and gen_N.ckpt.index of one N; it has ebm_20.ckpt" in refused(folder, tmp_path)
    assert "no TensorFlow checkpoint" in refused(folder / "ebm_20.ckpt", tmp_path)
    assert "give the folder of ebm_N.ckpt and gen_N.ckpt" in refused(folder / "other.h5", tmp_path)


def test_damaged_files(folder, tmp_path):
    data = folder / "ebm_20.ckpt.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 4])
    assert "cannot be read as a TensorFlow checkpoint" in refused(folder, tmp_path)
    (folder / "ebm_20.ckpt.index").write_bytes(b"no table" * 20)
    assert "does not end as a table does" in refused(folder, tmp_path)


def test_damaged_files_beside_the_weights(golden, folder, tmp_path):
    bank, optimizer = folder / "persistent_20.npy", folder / "ebm_optim_20.npz"
    whole = bank.read_bytes()
    np.save(bank, golden("H6_checkpoint")["bank/x"][1:])
    assert "persistent_z_20.npy are no bank: entries of a bank need one leading axis" in refused(folder, tmp_path)
    np.save(bank, golden("H6_checkpoint")["bank/x"][:, 1:])
    assert "the bank beside /weights/ebm_20.ckpt does not fit" in refused(folder, tmp_path)
    bank.write_bytes(whole[:200])
    assert "persistent_20.npy cannot be read as a file of numpy" in refused(folder, tmp_path)
    bank.write_bytes(whole)
    optimizer.write_bytes(optimizer.read_bytes()[:900])
    assert "ebm_optim_20.npz cannot be read as a file of numpy" in refused(folder, tmp_path)
    shutil.copy(folder / "gen_optim_20.npz", optimizer)
    assert "arrays, the optimiser of this network" in refused(folder, tmp_path)
    assert refused(tmp_path / "none", tmp_path).startswith("/none: there is no such folder; give the folder of")


def test_networks_in_the_wrong_place(folder, tmp_path):
    for suffix in ("index", "data-00000-of-00001"):
        shutil.copy(folder / f"gen_20.ckpt.{suffix}", folder / f"ebm_20.ckpt.{suffix}")
    assert refused(folder, tmp_path).endswith("ebm_20.ckpt holds a generator, not a hat")


def test_weights_of_another_network(folder, tmp_path):
    config = Config(HatEBMConfig(energy_width=16, generator_width=6, latent_size=20))
    message = refused(folder, tmp_path, config)
    assert "ebm_20.ckpt holds another network than the configuration's: block2/conv_1/bias has shape (6,)" in message
    assert "the network needs (16,)" in message
    config = Config(HatEBMConfig(energy_width=6, generator_width=6, latent_size=21))
    assert "gen_20.ckpt holds another network" in refused(folder, tmp_path, config)
    assert "is of ECVAEConfig, not of HatEBMConfig" in refused(folder, tmp_path, Config(ECVAEConfig()))


def test_without_optimiser_and_bank(folder, tmp_path):
    for name in ("ebm_optim_20.npz", "gen_optim_20.npz", "persistent_20.npy"):
        (folder / name).unlink()
    convert.hat_ebm(folder, tmp_path / "run")
    run = jebm.load(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, run.state.energy.ema, run.state.energy.params)
    assert run.step == 20
    rows = run.state.bank.entries
    image = jax.vmap(jebm.runs.run.generator_of(run))(rows["z"][:2])
    close_to_max(np.asarray(rows["image"][:2]), np.asarray(image), 1e-5)


def test_a_generator_alone_waits_for_its_hat(golden, folder, tmp_path):
    case = golden("H6_checkpoint")
    for suffix in ("index", "data-00000-of-00001"):
        (folder / f"ebm_20.ckpt.{suffix}").unlink()
    moving = ChainConfig(num_steps=2, latent_noise_scale=1e-3)
    settings = HatEBMConfig(
        application="refinement", generator="network", latent_size=int(case["cfg/nz"]), energy_width=4,
        generator_width=int(case["cfg/gen_ngf"]), chain=moving, test_chain=moving,
    )  # fmt: skip
    assert "of one N; it has gen_20.ckpt" in refused(folder, tmp_path)
    assert "synthesis needs the hat" in refused(folder, tmp_path, Config(HatEBMConfig()))
    for path in (folder, folder / "gen_20.ckpt"):
        out = tmp_path / f"run_{path.name}"
        convert.hat_ebm(path, out, Config(settings, DataConfig(batch_size=2)))
        run = jebm.load(out)
        assert run.step == 0
        variables = from_flat(group(case, "w/gen"), run.state.generator)
        jax.tree.map(np.testing.assert_array_equal, run.state.generator, variables)


def test_an_occupied_directory(folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({}))
    with pytest.raises(ConfigError, match="is in use: give --out a directory that is not there yet"):
        convert.hat_ebm(folder, tmp_path / "run")
