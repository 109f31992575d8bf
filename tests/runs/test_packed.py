"""A trained model as one file: the same numbers come from it, and a file that is not whole is one line."""

import contextlib
import hashlib
import http.server
import io
import json
import pathlib
import threading
import zipfile

import jax
import numpy as np
import pytest
from helpers import toy  # its row
from helpers.families import CONFIGS

import jebm
from jebm import files, methods
from jebm.commands.main import main
from jebm.config import Config, DataConfig, EvaluationConfig
from jebm.errors import ConfigError, DataError
from jebm.evaluation.run import run_weights
from jebm.methods.shared import has_ema, with_weights
from jebm.runs import packed
from jebm.runs.checkpoints import NoCheckpoint
from jebm.runs.directory import RunDirectory
from jebm.runs.run import Run, abstract_state

KEY = jax.random.key(3)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JEBM_CACHE", str(tmp_path / "cache"))


def command(line):
    return main(line.split())


def a_run(settings, folder, step=7):
    """A run in memory, its state drawn number by number."""
    config = Config(settings, DataConfig(batch_size=4), evaluation=EvaluationConfig(num_samples=20, batch_size=20))
    method = methods.build(config)
    random = np.random.default_rng(0)  # positive: some are variances
    draw = lambda a: jax.numpy.asarray(random.uniform(0.5, 1.5, a.shape), a.dtype)  # noqa: E731
    state = jax.tree.map(draw, abstract_state(method, config).method)
    return Run(RunDirectory(folder / "run"), config, method, state, step, {})


@pytest.fixture
def toy_file(tmp_path):
    """A run of the toy family, and its file."""
    run = a_run(toy.ToyConfig(), tmp_path)
    packed.pack(run, tmp_path / "toy.jebm", {"licence": "Apache-2.0"})
    return run, tmp_path / "toy.jebm"


# --- what comes from it ----------------------------------------------------------------------------------------


def without_optimizers(tree):
    return {n: getattr(t, "params", t) for n, t in tree.items()} if isinstance(tree, dict) else tree


@pytest.mark.parametrize("family", CONFIGS)
def test_a_file_gives_the_bits_of_the_run(family, tmp_path):
    """Optimisers and banks are zeros in it, so nothing that draws or scores may read them."""
    run = a_run(CONFIGS[family], tmp_path)
    packed.pack(run, tmp_path / "model.jebm", {})
    found = jebm.load(tmp_path / "model.jebm")
    assert (found.step, found.config) == (7, run.config)
    weights = run.method.weights if has_ema(run.state) else "raw"
    state = with_weights(run.state, weights)
    assert jax.tree.structure(found.state) == jax.tree.structure(run.state)
    functions = [run.method.energy, run.method.networks]
    functions += [run.method.generator] if run.method.generator else []
    for function in functions:
        old, new = (jax.tree.leaves(without_optimizers(function(s))) for s in (state, found.state))
        assert len(old) == len(new) > 0
        assert all(np.array_equal(a, b) for a, b in zip(old, new, strict=True))
    generate = jax.jit(lambda state: run.method.generate(KEY, state, 2))
    np.testing.assert_array_equal(generate(run.state), generate(found.state))


def test_what_is_left_out_is_not_in_the_file(tmp_path):
    run = a_run(CONFIGS["ec_vae"], tmp_path)
    packed.pack(run, tmp_path / "model.jebm", {})
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(run.state))
    arrays = packed.read(tmp_path / "model.jebm").arrays
    assert sum(array.nbytes for array in arrays.values()) < 0.4 * size
    assert not [name for name in arrays if "optimizer" in name or "ema" in name.split("/")]
    with np.load(tmp_path / "model.jebm") as archive:  # as any program reads them
        name = next(iter(arrays))
        np.testing.assert_array_equal(archive[name], arrays[name])


def test_the_same_run_gives_the_same_bytes(toy_file, tmp_path):
    run, file = toy_file
    assert packed.pack(run, tmp_path / "again.jebm", {"licence": "Apache-2.0"}) == files.sha256(file)


def test_the_verbs_take_a_file(toy_experiment, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(toy_experiment), "--workdir", "run", "--set", "training.num_steps=2"]) == 0
    assert command("evaluate run --metrics ood") == 0
    capsys.readouterr()
    assert command("export run --out m.jebm --card licence=Apache-2.0") == 0
    out = capsys.readouterr().out
    card = packed.read(pathlib.Path("m.jebm")).card
    assert card["licence"] == "Apache-2.0"
    assert card["scores"]
    assert json.loads(out.partition("\n\n")[0]) == card
    assert f"sha256={files.sha256(pathlib.Path('m.jebm'))}" in out
    assert command("sample run --num 3 --out a.npz") == command("sample m.jebm --num 3 --out b.npz") == 0
    with np.load("a.npz") as a, np.load("b.npz") as b:
        np.testing.assert_array_equal(a["x"], b["x"])
    assert command("evaluate m.jebm --metrics ood") == 0
    records = list((tmp_path / "cache/models").glob("*/evaluation/*.json"))
    again = {json.loads(path.read_text())["metric"]: json.loads(path.read_text())["value"] for path in records}
    assert again == pytest.approx({name: s["value"] for name, s in card["scores"].items()}, rel=1e-5)
    assert command("report m.jebm") == 0
    assert list((tmp_path / "cache/models").glob("*/report.html"))
    assert command("export m.jebm --out n.jebm --card licence=Apache-2.0") == 0
    assert files.sha256(pathlib.Path("n.jebm")) == files.sha256(pathlib.Path("m.jebm"))


def test_only_the_weights_that_are_there_are_scored(tmp_path):
    run = a_run(CONFIGS["ec_vae"], tmp_path)
    packed.pack(run, tmp_path / "model.jebm", {})
    found = jebm.load(tmp_path / "model.jebm")
    assert run_weights(found)[1] == run_weights(found, "ema")[1] == "ema"
    with pytest.raises(ConfigError, match="model.jebm holds its 'ema' weights alone"):
        run_weights(found, "raw")


# --- what is no such file --------------------------------------------------------------------------------------


def test_a_truncated_file_is_one_line(toy_file):
    _, file = toy_file
    content = file.read_bytes()
    for length in (0, 30, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"toy.jebm: no model that 'jebm export' wrote, or a damaged one .* again$"):
            jebm.load(file)


def test_a_changed_byte_is_seen(toy_file):
    """The archive's own checksums see it."""
    _, file = toy_file
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        array = next(info for info in archive.infolist() if info.filename.endswith(".npy"))
    content[array.header_offset + 30 + len(array.filename) + array.compress_size // 2] ^= 4
    file.write_bytes(content)
    with pytest.raises(DataError, match="a damaged one"):
        jebm.load(file)


def changed(file, change):
    """The file with another description, or other arrays."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    description = json.loads(members["model.json"])
    change(description, members)
    members["model.json"] = json.dumps(description).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def without_an_array(description, members):
    members.pop(next(name for name in members if name.endswith(".npy")))


def with_a_pickle(description, members):
    stream = io.BytesIO()
    np.save(stream, np.array([{}], dtype=object), allow_pickle=True)
    members["extra.npy"] = stream.getvalue()


OTHERS = {
    "a format of later": (lambda d, m: d.update(format=2, jebm="9.9"), "a model of format 2, written by jebm '9.9'"),
    "a key of later": (lambda d, m: d["config"]["data"].update(colour=1), "configuration is not of this version"),
    "no step": (lambda d, m: d.pop("step"), "a damaged one"),
    "an array less": (without_an_array, "as nothing, and this version of jebm takes float32"),
    "a pickle": (with_a_pickle, "a damaged one"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_version_is_one_line(name, toy_file):
    change, message = OTHERS[name]
    changed(toy_file[1], change)
    with pytest.raises(DataError, match=message) as error:
        jebm.load(toy_file[1])
    assert "\n" not in str(error.value)


def test_a_file_holds_one_checkpoint(toy_file):
    _, file = toy_file
    assert jebm.load(file, step=7).step == 7
    with pytest.raises(NoCheckpoint, match="one checkpoint, that of step 7"):
        jebm.load(file, step=6)


# --- from an address --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def server(content, length=None):
    """Serves ``content`` at any path, and says that it has ``length`` bytes; yields the address and the requests."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) if length is None else length))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{serving.server_port}/m.jebm", requests
        finally:
            serving.shutdown()
            thread.join()


def test_an_address_with_its_hash_is_downloaded_once(toy_file, tmp_path):
    run, file = toy_file
    digest = files.sha256(file)
    with server(file.read_bytes()) as (url, requests):
        for _ in range(2):
            assert jebm.load(f"{url}#sha256={digest}").step == run.step
        assert len(requests) == 1
        kept = tmp_path / f"cache/models/{digest}.jebm"
        kept.write_bytes(b"something else")
        assert jebm.load(f"{url}#sha256={digest}").step == run.step
        assert len(requests) == 2


def test_another_content_than_the_hash_says_is_not_kept(toy_file, tmp_path):
    digest = hashlib.sha256(b"another").hexdigest()
    with (
        server(toy_file[1].read_bytes()) as (url, _),
        pytest.raises(DataError, match="its SHA-256 is .* nothing is ke"),
    ):
        jebm.load(f"{url}#sha256={digest}")
    assert not list((tmp_path / "cache").rglob("*.jebm"))


def test_a_download_that_breaks_off_is_not_kept(toy_file, tmp_path):
    content = toy_file[1].read_bytes()
    with server(content[:100], len(content)) as (url, _), pytest.raises(DataError, match="broke off after 100 of"):
        jebm.load(f"{url}#sha256={files.sha256(toy_file[1])}")
    assert not list((tmp_path / "cache").rglob("*.jebm"))


@pytest.mark.parametrize("address", ["https://host/m.jebm", "https://host/m.jebm#sha256=12", "http://host/m#x"])
def test_an_address_without_a_hash_is_refused(address):
    with pytest.raises(ConfigError, match="URL#sha256=HASH"):
        jebm.load(address)


# --- the models that come with jebm -----------------------------------------------------------------------------


def test_the_released_models_are_small_and_say_what_they_are():
    assert "digits/ec_vae" in packed.released()
    for name, path in packed.released().items():
        assert path.stat().st_size < 2e6, name
        card = packed.read(path).card
        for key in ("what", "command", "commit", "data", "licence", "scores", "parameters"):
            assert card[key], (name, key)
        assert "frechet_distance" in card["scores"]


def test_a_released_model_makes_digits(monkeypatch, tmp_path):
    """In any folder; mean and deviation of its grey levels are about those of the digits."""
    monkeypatch.chdir(tmp_path)
    run = jebm.load("digits/ec_vae")
    assert repr(run).startswith("Run('digits/ec_vae', ec_vae, step 1,000")
    drawn = np.asarray(run.generate(jax.random.key(0), 64))
    real = jebm.data.load("digits").test / 127.5 - 1
    assert drawn.shape == (64, 8, 8, 1)
    assert abs(drawn.mean() - real.mean()) < 0.1
    assert abs(drawn.std() - real.std()) < 0.1
    assert list(tmp_path.glob("*")) == [tmp_path / "cache"]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(packed.released()))
def test_the_scores_of_the_card_are_those_of_the_weights(name):
    run = jebm.load(name)
    if run.config.data.source != "digits":
        pytest.skip(f"{run.config.data.source} is not here")
    records = {record.metric: record.value for record in jebm.evaluate(run, metrics=("generation", "reconstruction"))}
    card = {metric: score["value"] for metric, score in run.meta["card"]["scores"].items() if metric in records}
    assert card == pytest.approx({metric: records[metric] for metric in card}, rel=1e-2)
