"""`jebm restore`: pictures, folders and arrays; every mistake is one line, status 2, and nothing written."""

import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from PIL import Image

import jebm
from jebm import images, restoration
from jebm.commands import common
from jebm.commands.main import main
from jebm.data.named import load
from jebm.restoration import files
from jebm.restoration import prior as prior_of
from jebm.restoration.images import read_picture

FAST = ["--restarts", "1"]


@pytest.fixture(scope="module")
def loaded(finished_run):
    return jebm.load(finished_run)


@pytest.fixture
def restore(loaded, tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder; returns its status and its one line of complaint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(common, "load", lambda path, step: loaded)

    def run(*arguments):
        status = main(["restore", "run", *FAST, *arguments])
        return status, capsys.readouterr().err

    return run


@pytest.fixture
def cheap_prior(monkeypatch):
    """In place of the run's, for what does not depend on it: it compiles in a second."""
    weights = jnp.asarray(np.random.default_rng(0).standard_normal((64, 3)), jnp.float32)
    generator = Partial(lambda weights, z: jnp.tanh(weights @ z).reshape(8, 8, 1), weights)
    prior = restoration.Prior(generator, Partial(lambda x: 0.1 * jnp.sum(x**2)), jnp.zeros(3))
    monkeypatch.setattr(files, "prior", lambda run: prior)


@pytest.fixture(scope="module")
def digits():
    return load("digits").test[:3]


def picture(path, pixels):
    Image.fromarray(pixels).save(path)


def test_a_folder_of_pictures(restore, digits, tmp_path):
    (tmp_path / "in").mkdir()
    for i, digit in enumerate(digits):
        picture(tmp_path / "in" / f"digit{i}.png", digit[..., 0])
    status, _ = restore("--task", "inpaint", "--degrade", "--input", "in", "--out", "out")
    assert status == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "digit0.png", "digit1.png", "digit2.png", "restoration.json",
    ]  # fmt: skip
    scores = json.loads((tmp_path / "out/restoration.json").read_text())
    assert scores["images"] == ["digit0.png", "digit1.png", "digit2.png"]
    restored = np.stack([read_picture(tmp_path / "out" / name) for name in scores["images"]])
    known = ~np.pad(np.ones((4, 4), bool), 2)
    np.testing.assert_array_equal(restored[:, known], digits[:, known])  # known pixels stay to the grey level
    error = np.mean((images.from_uint8(restored) - images.from_uint8(digits)) ** 2, (1, 2, 3))
    np.testing.assert_allclose(scores["psnr"], 10 * np.log10(4 / error), atol=0.1)


def test_arrays_with_their_originals(restore, cheap_prior, digits, tmp_path):
    np.savez("original.npz", x=digits)
    small = images.from_uint8(digits).reshape(3, 4, 2, 4, 2, 1).mean((2, 4))
    np.save("small.npy", small)
    arguments = ["--task", "superres", "--input", "small.npy", "--out", "deep/out.npz", "--original", "original.npz"]
    assert restore(*arguments, "--restarts", "2", "--estimate", "mean")[0] == 0
    x = np.load(tmp_path / "deep/out.npz")["x"]
    assert (x.shape, x.dtype) == ((3, 8, 8, 1), np.uint8)
    scores = json.loads((tmp_path / "deep/out.json").read_text())
    assert (scores["settings"]["restarts"], scores["settings"]["estimate"]) == (2, "mean")
    assert {"psnr", "ssim", "consistency_error", "psnr_pseudo_inverse"} <= set(scores)
    assert max(scores["consistency_error"]) < 0.02


def test_what_is_degraded_has_the_noise_that_it_says(restore, cheap_prior, digits, tmp_path, monkeypatch):
    given = []

    def noting(key, prior, operator, y, config, **settings):
        given.append((y, config, operator))
        return restoration.Restored(jnp.zeros((len(y), 8, 8, 1)), None, None, None, None)

    monkeypatch.setattr(files, "restore", noting)
    np.savez("many.npz", x=load("digits").test[:64])
    arguments = ["--task", "superres", "--degrade", "--input", "many.npz", "--out", "out.npz"]
    assert restore(*arguments, "--noise-std", "0.3")[0] == 0
    assert restore(*arguments)[0] == 0
    (noisy, config, operator), (exact, none, _) = given
    np.testing.assert_array_equal(exact, jax.vmap(operator.apply)(images.from_uint8(load("digits").test[:64])))
    assert (config.noise_std, none.noise_std) == (0.3, 0.0)
    noise = np.asarray(noisy - exact)
    assert noise.std() == pytest.approx(0.3, abs=5 * 0.3 / np.sqrt(2 * noise.size))
    assert abs(noise.mean()) < 5 * 0.3 / np.sqrt(noise.size)
    # the values of missing pixels are ignored
    assert restore("--task", "inpaint", "--input", "many.npz", "--out", "out.npz")[0] == 0
    np.testing.assert_array_equal(given[-1][0][:, 2:6, 2:6], 0)


def test_the_prior_of_a_run(loaded):
    prior, state = prior_of(loaded), loaded.state
    x = images.from_uint8(load("digits").test[:2])
    energy = jax.vmap(loaded.method.energy(state))(x)
    np.testing.assert_allclose([prior.refinement_energy(one) for one in x], energy, rtol=1e-5)
    # E of the latent chain is the same in units of its own spread over what the generator makes
    ratio = (prior.energy(x[0]) - prior.energy(x[1])) / (energy[0] - energy[1])
    made = jax.lax.map(prior.generator, jax.random.normal(jax.random.key(4), (64, *prior.latent.shape)))
    spread = float(jnp.std(jax.vmap(loaded.method.energy(state))(made)))
    assert float(ratio) == pytest.approx(1 / spread, rel=0.6)  # two deviations of 64 numbers, of any law


def test_one_picture_and_a_mask_of_its_own(restore, cheap_prior, digits, tmp_path):
    picture("digit.png", digits[0, ..., 0])
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 3:] = 255
    picture("mask.png", mask)
    status, _ = restore("--task", "inpaint", "--mask", "mask.png", "--input", "digit.png", "--out", "out.png")
    assert status == 0
    restored = read_picture(tmp_path / "out.png")
    np.testing.assert_array_equal(restored[:, 3:], digits[0][:, 3:])
    assert (restored[:, :3] != digits[0][:, :3]).any()


def test_mistakes(restore, digits, tmp_path):
    picture("digit.png", digits[0, ..., 0])
    picture("large.png", np.zeros((16, 16), np.uint8))
    picture("black.png", np.zeros((8, 8), np.uint8))
    picture("colour.png", np.zeros((8, 8, 3), np.uint8))
    np.savez("digits.npz", x=digits)
    np.save("loud.npy", np.full((1, 8, 8, 1), 7.0))
    np.save("empty.npy", np.full((1, 8, 8, 1), np.nan))
    np.save("whole.npy", np.zeros((1, 8, 8, 1), np.int64))
    np.savez("other.npz", pixels=digits)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    huge = bytearray((tmp_path / "black.png").read_bytes())  # a header of 30,000 x 30,000 pixels
    huge[16:24] = (30_000).to_bytes(4) * 2
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4)
    (tmp_path / "huge.png").write_bytes(huge)
    (tmp_path / "folder").mkdir()
    (tmp_path / "dir.png").mkdir()
    (tmp_path / "twins").mkdir()
    picture("twins/a.png", digits[0, ..., 0])
    picture("twins/a.bmp", digits[0, ..., 0])
    picture("twins/a.c.png", digits[0, ..., 0])
    picture("deep.png", np.full((8, 8), 31000, np.uint16))
    picture("clear.png", np.zeros((8, 8, 4), np.uint8))
    before = sorted(tmp_path.rglob("*"))
    for arguments, complaint in [
        (["--input", "nowhere.png"], "nowhere.png: no such file or folder"),
        (["--input", "folder"], "folder: no picture (.png, .jpg, .jpeg, .bmp) in this folder"),
        (["--input", "broken.png"], "broken.png: not a picture that can be read"),
        (["--input", "huge.png"], "huge.png: not a picture that can be read, or one too large"),
        (["--input", "digit.png", "--mask", "huge.png"], "huge.png: not a picture that can be read"),
        (["--input", "large.png"], "large.png: the measurement must have the shape (8, 8, 1), got 1 of (16, 16, 1)"),
        (["--input", "colour.png"], "colour.png: the measurement must have the shape (8, 8, 1), got 1 of (8, 8, 3)"),
        (["--input", "deep.png"], "deep.png: pixels of mode I;16; give 8 bits per channel"),
        (["--input", "clear.png"], "clear.png: pixels are transparent; put the picture on a background first"),
        (["--input", "digit.png", "--mask", "deep.png"], "deep.png: pixels of mode I;16; give 8 bits per channel"),
        (["--input", "twins", "--out", "out"], "twins: two pictures are called 'a'; rename one of them"),
        (["--input", "digit.png", "--out", "digit.png"], "digit.png: is the input, which would be overwritten"),
        (["--input", "twins", "--out", "twins"], "twins: is the input, which would be overwritten"),
        (["--input", "digit.png", "--out", "dir.png"], "dir.png: a folder of that name is there"),
        (["--input", "loud.npy"], "loud.npy: the measurement has values that are not in [-1, 1]; scale it, or give"),
        (["--input", "empty.npy"], "empty.npy: the measurement has values that are not in [-1, 1]"),
        (["--input", "whole.npy"], "whole.npy: the measurement is int64; give uint8 in 0..255, or floats in [-1, 1]"),
        (["--input", "other.npz"], "other.npz: holds pixels, but no array 'x'"),
        (["--input", "digits.npz"], "out.png: one picture cannot hold 3 images; give an .npz or a folder"),
        (["--input", "digits.npz", "--out", "out.gif"], "out.gif: give a .png (one image), an .npz, or a folder"),
        (["--input", "digit.png", "--original", "digits.npz"], "digits.npz: 3 originals for 1 measurements"),
        (["--input", "digit.png", "--mask", "large.png"], "the mask is 16x16 pixels, the images are 8x8"),
        (["--input", "digit.png", "--mask", "none.png"], "none.png: no such mask; give box, random or a picture"),
        (["--input", "digit.png", "--mask", "black.png"], "black.png: no pixel of the mask is white"),
        (["--input", "digit.png", "--degrade", "--original", "digit.png"], "an input that is degraded first"),
        (["--input", "digit.png", "--task", "superres", "--factor", "3"], "factor 3: it must be at least 2 and divide"),
        (["--input", "digit.png", "--task", "superres"], "shape (4, 4, 1), got 1 of (8, 8, 1); with --degrade"),
        (["--input", "digit.png", "--task", "colorize"], "colorize: this model makes grey images"),
        (["--input", "digit.png", "--mask", "random", "--fraction", "2"], "fraction 2.0: it must lie between 0 and 1"),
        (["--input", "digit.png", "--restarts", "0"], "restarts=0 is out of range: it must be >=1"),
        (["--input", "digit.png", "--restarts", "9999999"], "--restarts: 9999999: it must be at most 1,000,000"),
        (["--input", "digit.png", "--noise-std", "-1"], "noise_std=-1.0 is out of range"),
    ]:  # fmt: skip
        status, err = restore("--task", "inpaint", "--out", "out.png", *arguments)
        assert (status, err.count("\n")) == (2, 1), arguments
        assert err.startswith("jebm: "), arguments
        assert complaint in err
        assert sorted(tmp_path.rglob("*")) == before
