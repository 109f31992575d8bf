"""Every file in configs/: it loads, builds, and has the shapes that it should, without memory for one array."""

import ast
import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from helpers import ROOT

from jebm import methods
from jebm.commands.configs import parameter_counts
from jebm.commands.main import main
from jebm.config import from_dict, load_file, named, override, to_dict
from jebm.errors import ConfigError
from jebm.methods import accumulation
from jebm.methods.ec import calibration
from jebm.runs.run import abstract_state

FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.py"))

PAPER = {"cifar10", "stl10_32", "imagenet32", "celeba64", "church64", "celebahq256"}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_experiments_of_the_paper_are_there():
    assert {pathlib.Path(file).stem for file in FILES if file.startswith("configs/ec_vae/")} == PAPER


@pytest.mark.parametrize("file", FILES)
def test_round_trip_through_json(file):
    config = load_file(file)
    assert from_dict(to_dict(config)) == config


@pytest.mark.parametrize("file", FILES)
def test_the_docstring_says_how_to_run_it(file):
    text = ast.get_docstring(ast.parse(pathlib.Path(file).read_text()))
    assert text.splitlines()[0].endswith(".")
    assert f"jebm train {file} --workdir runs/" in text
    if "digits" not in file:
        source = load_file(file).data.source
        assert source.removeprefix("npz:") in text
        for word in ("Hardware:", "Expect:", "From the released code", " Ours"):
            assert word in text


def networks_of(file):
    """Experiments that agree in this have programs of one shape; tracing one takes seconds."""
    config = on_its_own(load_file(ROOT / file))
    same = {"calibration": calibration.CalibrationConfig()} if hasattr(config.method, "calibration") else {}
    return dataclasses.replace(config.method, **same), config.data.batch_size


def on_its_own(config):
    """An experiment over the generator of another run, over a network of its own instead: that run is not here."""
    if not getattr(config.method, "generator", ""):
        return config
    return dataclasses.replace(config, method=dataclasses.replace(config.method, generator="network"))


PROGRAMS = {networks_of(file): file for file in FILES}


# half a minute to trace, and another experiment of its family has the same program at another size
LONG_TO_TRACE = {"configs/denoising_ebm/church64.py", "configs/denoising_ebm/celeba64.py"}


@pytest.mark.parametrize(
    "file",
    [pytest.param(f, marks=pytest.mark.slow) if f in LONG_TO_TRACE else f for f in PROGRAMS.values()],
)
def test_an_iteration_by_shape(file, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # of this size; a CPU's convolutions are slow to trace
    config = on_its_own(load_file(file))
    method = methods.build(config)
    state = abstract_state(method, config).method
    size, channels = config.method.image_size, config.method.channels
    batch = jax.ShapeDtypeStruct((config.data.batch_size, size, size, channels), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    after, metrics = jax.eval_shape(method.update, key, state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert [(a.shape, a.dtype) for a in jax.tree.leaves(after)] == [(a.shape, a.dtype) for a in jax.tree.leaves(state)]
    assert {(m.shape, m.dtype.name) for m in metrics.values()} == {((), "float32")}
    images = jax.eval_shape(lambda key, state: method.generate(key, state, 5), key, state)
    assert (images.shape, images.dtype) == ((5, size, size, channels), jnp.float32)


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("configs/ec_vae/cifar10.py", {"encoder": 44_915_072, "decoder": 32_521_728, "energy": 23_815_169}),
        # as measured from the released classes: the pair for 256 px (less a second head of 192), and
        # the energy of a comment, for 64 px
        ("configs/ec_vae/celebahq256.py", {"encoder": 9_134_064, "decoder": 24_933_344}),
        ("configs/ec_vae/celeba64.py", {"encoder": 44_915_072, "energy": 6_251_521}),
    ],
)
def test_parameter_counts(file, counts):
    counted = parameter_counts(load_file(file))
    assert counts.items() <= counted.items()
    assert counted["total"] == sum(counted[name] for name in ("encoder", "decoder", "energy"))


@pytest.mark.parametrize(
    ("stem", "tolerance", "hinge"),
    [("cifar10", 0.05, 0.07), ("stl10_32", 0.05, 0.07), ("imagenet32", 0.05, 0.07), ("celeba64", 0.20, 0.28),
     ("church64", 0.20, 0.28), ("celebahq256", 3.2, 4.5)],
)  # fmt: skip
def test_tolerance_and_hinge_follow_the_noise_floor(stem, tolerance, hinge):
    method = load_file(f"configs/ec_vae/{stem}.py").method
    dimension = method.image_size**2 * method.channels
    assert calibration.tolerance(method.calibration, dimension) == pytest.approx(tolerance, rel=0.005)
    assert calibration.hinge(method.calibration, dimension) == pytest.approx(hinge, rel=0.005)
    assert calibration.noise_floor(method.calibration, dimension) < tolerance < hinge


def test_widths_count_at_256_pixels_too():
    config = load_file("configs/ec_vae/celebahq256.py")
    wide, narrow = (parameter_counts(override(config, a)) for a in ([], NARROW))
    assert narrow["encoder"] < wide["encoder"] / 3
    assert narrow["decoder"] < wide["decoder"] / 3
    with pytest.raises(ValueError, match="encoder_width=30 is out of range: at 256 px it must be a multiple of 4"):
        dataclasses.replace(config.method, encoder_width=30)


NARROW = ["method.encoder_width=32", "method.decoder_width=32"]


def test_the_command_prints_the_counts_with_commas(capsys):
    assert main(["configs", "--parameters"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines if not line.startswith(" ")] == list(named())
    start = lines.index(next(line for line in lines if line.startswith("ec_vae/cifar10:")))
    assert "CIFAR-10" in lines[start]
    printed = dict(line.split() for line in lines[start + 1 : start + 5])
    assert printed == {
        "encoder": "44,915,072", "decoder": "32,521,728", "energy": "23,815,169", "total": "101,251,969",
    }  # fmt: skip
    # launch/README.md names the largest, and what it takes at 16 bytes a parameter
    totals, file = {}, ""
    for line in lines:
        file = file if line.startswith(" ") else line.partition(":")[0]
        if line.split()[0] == "total":
            totals[file] = int(line.split()[1].replace(",", ""))
    largest, count = max(totals.items(), key=lambda item: item[1])
    page = " ".join((ROOT / "launch/README.md").read_text().split())
    pair = rf"The largest pair of networks here, `configs/{largest}.py`, has {count / 1e6:.0f} million parameters"
    assert f"{pair} (`jebm configs --parameters`): {16e-9 * count:.1f} GB whole, {2e-9 * count:.1f} GB over 8." in page


def test_the_command_says_where_it_looked(capsys, tmp_path):
    assert main(["configs", "--dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"jebm: no configurations in {str(tmp_path)!r}: give a folder of them by --dir\n"
    )


# --- by name, in any folder -------------------------------------------------------------------------------------


def test_each_file_has_a_name():
    assert [f"configs/{name}.py" for name in named()] == FILES
    for name, path in named().items():
        assert path.read_text() == (ROOT / "configs" / f"{name}.py").read_text()


@pytest.mark.parametrize("given", ["digits/ec_vae", "digits/ec_vae.py", "configs/digits/ec_vae.py"])
def test_a_name_is_a_configuration_in_any_folder(given, tmp_path, monkeypatch):
    expected = load_file(ROOT / "configs/digits/ec_vae.py")
    monkeypatch.chdir(tmp_path)
    assert load_file(given) == expected


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits/ec_vae.py").write_text((ROOT / "configs/digits/ec_flow.py").read_text())
    assert load_file("digits/ec_vae.py") == load_file("digits/ec_flow")


@pytest.mark.parametrize(
    ("given", "near"),
    [("digit/ec_vae", "digits/ec_vae"), ("configs/digits/ecvae.py", "configs/digits/ec_vae.py"), ("ec_vae", None)],
)
def test_a_wrong_name_names_the_nearest(given, near, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hint = f"did you mean '{near}'" if near else "see 'jebm configs'"
    with pytest.raises(ConfigError, match=f"no configuration file '{given}'.*{hint}"):
        load_file(given)


def of_paper_size(file):
    return file.split("/")[1] in ("hat_ebm", "denoising_ebm", "ec_vae")


@pytest.mark.parametrize("file", [file for file in FILES if of_paper_size(file)])
def test_what_to_set_on_1_8_16_and_64_devices(file):
    text = " ".join(ast.get_docstring(ast.parse(pathlib.Path(file).read_text())).split())
    paragraph = re.search(r"Devices: (.*?) (?:Scores|Expect):", text)[1]
    config = on_its_own(load_file(file))
    batch = config.data.batch_size
    for devices in (1, 8, 16, 64):
        if batch % devices:
            assert f"{devices} do not divide the batch" in paragraph
        else:
            assert re.search(rf"\b{devices}: {batch // devices} rows?\b", paragraph)
    # every change that the page names is accepted, on the devices that it names; those of training by the method, too
    for change in re.findall(r"--set ([\w.]+=\S*[^\s.,;)`])", text):
        override(load_file(file), [change])
    changes = re.findall(r"--set ((?:training|method)\.\w+=\w+)", paragraph)
    assert changes
    for change in changes:
        changed = override(config, [change])
        parts = changed.training.microbatches
        accumulation.update_of(methods.build(changed.method), parts)
        assert batch % (8 * max(parts, changed.training.fsdp)) == 0
    if methods.build(config.method).whole_batch is not None:
        assert "no microbatches" in paragraph
