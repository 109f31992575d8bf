"""A thousand wrong inputs: each ends with 0, 1 or 2 and one line, and writes nothing outside its folder.

An input is a function of its number. ``pytest -m slow tests/commands/test_fuzz.py`` tries all
of them, CI the first few.
"""

import contextlib
import io
import json
import os
import random
import sys
import traceback
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

from jebm.commands import common
from jebm.commands.main import main
from jebm.config import Config, DataConfig, load_file
from jebm.errors import ConfigError
from jebm.evaluation import Record, write_record
from jebm.images import save_png
from jebm.methods import DenoisingEBMConfig
from jebm.restoration import files
from jebm.runs.directory import RunDirectory
from jebm.runs.run import abstract_state, build, load_source
from jebm.typed import leaves

FILES = sorted(str(path) for path in (ROOT / "configs").rglob("*.py"))
VALUES = [
    "", " ", "0", "-1", "1", "2", "3", "8", "16", "32", "7.5", "-0.0", "1e-400", "1e400", "-1e400", "nan", "NaN", "inf",
    "Infinity", "1e18", "1e19", "1e20", "9" * 400, "-" + "9" * 400, "9" * 5000, "true", "false", "None", "null", "yes",
    "[]", "[[]]", "[1]", "[1,2]", "[[1,2]]", "[[64,2],[128,3]]", "((4,1),(4,1))", "[[1,2],3]", "[1e400]", "[[-1,0]]",
    "[" * 3000, "[" * 100_000, "[" * 500 + "]" * 500, "{}", '{"a":1}', '"', "'", "x", "x" * 10_000, "a=b", "=", "\0",
    "\n", "é", "\ud800", "$x$", "<script>", "0x10", "1_000", "١", "digits", "npz:", "npz:none.npz", "npz:\0", "npz:.",
    "npz:~nouser/x", "npz:gs://a/b", "folder:", "folder:~nouser/", "folder:none", "tfds:", "tfds:none", "tfds:../x",
    "tfds:cifar10:train[", "centre", "centre:0", "centre:" + "9" * 400, "box:0,0,1,1", "box:", "random",
    "squared_error", "langevin", "network", "http://x", "~", "/", "/dev/null",
]  # fmt: skip
NASTY = [
    None, [], {}, "", "x", 0, -1, 1, True, 0.5, 10**400, 10**5000, float("nan"), float("inf"), [1], [[1]], {"a": 1},
    "\0", "<script>", "x" * 5000, "\ud800", "$\\foo$",
]  # fmt: skip

# a warning, not an error
pytestmark = pytest.mark.filterwarnings("ignore:.*damaged and left out")


def flipped(draw, content):
    """Bytes that are damaged: cut short, changed, lengthened, or others altogether."""
    kind = draw.randrange(6)
    if kind == 0:
        return content[: draw.randrange(len(content) + 1)]
    if kind == 1:
        return draw.choice([b"", b"\0", b"x", b"\xff\xfe", b"[" * 100_000, b"PK\x03\x04", b"null", b"{}", b"\n" * 9])
    if kind == 2:
        return content + draw.randbytes(draw.randrange(1, 40))
    damaged = bytearray(content)
    for _ in range(draw.choice([1, 1, 3, 30])):
        if damaged:
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
    return bytes(damaged)


def changed(draw, tree):
    """A JSON tree in which one node is another."""
    if isinstance(tree, dict | list) and tree and draw.random() < 0.8:
        key = draw.choice(list(tree)) if isinstance(tree, dict) else draw.randrange(len(tree))
        copy = dict(tree) if isinstance(tree, dict) else list(tree)
        if isinstance(copy, dict) and draw.random() < 0.15:
            del copy[key]
        else:
            copy[key] = changed(draw, tree[key])
        return copy
    return draw.choice(NASTY)


def text_of(tree):
    sys.set_int_max_str_digits(0)  # so that it can be written
    try:
        return json.dumps(tree).encode()
    finally:
        sys.set_int_max_str_digits(4300)


def assignments(draw, folder):
    """`jebm train` with values of --set that may be anything; the rest of training is left out."""
    file = draw.choice(FILES)
    keys = leaves(load_file(file))
    words = []
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        key = draw.choice(keys)
        if draw.random() < 0.2:
            group = key.partition(".")[0]
            key = draw.choice([key[:-1], key + ".x", group, "", ".", "..", key.upper(), "x" * 3000, "a b"])
        words.append(f"{key}={draw.choice(VALUES)}" if draw.random() < 0.95 else key)
    given = ["--set", *words] if draw.random() < 0.5 else [word for w in words for word in ("--set", w)]
    return ["train", file, "--workdir", draw.choice([f"{folder}/run"] * 9 + ["gs://x", "\0", "", "~nouser/x"]), *given]


def archives(draw, folder):
    """`jebm data info` of an archive that may hold anything."""
    rows = lambda *shape, dtype=np.uint8: np.zeros(shape, dtype)  # noqa: E731
    arrays = {"x_train": rows(20, 8, 8, 1), "x_test": rows(4, 8, 8, 1), "y_train": rows(20), "y_test": rows(4)}
    others = [
        rows(20, 8, 8), rows(20, 8, 8, 2), rows(20, 8, 8, 1, dtype=float), rows(0, 8, 8, 1), rows(20), rows(3, 9, 9, 1),
        np.array(3), np.array("x"), np.array([None], object), rows(20, dtype=np.int64) - 1, np.full(20, np.nan),
        np.full(20, 2**63, np.uint64), rows(1, 1, 1, 1), rows(20, 0, 8, 1), np.array([("a", 1)], "U1,i4"),
    ]  # fmt: skip
    for _ in range(draw.choice([0, 1, 1, 2])):
        name = draw.choice([*arrays, "x", "y"])
        if draw.random() < 0.3:
            arrays.pop(name, None)
        else:
            arrays[name] = draw.choice(others)
    path = folder / "data.npz"
    np.savez(path, **arrays)
    if draw.random() < 0.5:
        path.write_bytes(flipped(draw, path.read_bytes()))
    elif draw.random() < 0.2:  # a header that lies
        with zipfile.ZipFile(path, "w") as archive, archive.open("x.npy", "w") as file:
            shape = draw.choice([(10**18, 8, 8, 1), (3, 8, 8, 1), (-1, 8, 8, 1), (2**40,)])
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            file.write(b"\0" * 100)
    size = draw.choice([[], [], ["--size", draw.choice(["4", "8", "9", "16", "0", "-3", "x", "99999999999"])]])
    crop = draw.choice([[], [], ["--crop", draw.choice(["centre", "none", "box:1,2,3,4", "x", ""])]])
    return ["data", "info", f"npz:{draw.choice([path, path, path, folder])}", *size, *crop]


def run_directories(draw, folder):
    """A command on a run directory of which a file is damaged."""
    run = RunDirectory(folder / "run")
    method = DenoisingEBMConfig(image_size=8, channels=1, multipliers=(1, 2))
    run.write_config(Config(method=method, data=DataConfig("digits")))
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    event = {"step": 1, "event": "recovery", "attempt": 1, "detected": 2, "restored": 1, "reason": "a loss"}
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in [lines[0], event, lines[1]]))
    save_png(run.samples / "step_0000002.png", np.zeros((9, 9, 1), np.uint8), 1)
    protocol = {"step": 2, "weights": "ema", "bootstrap_interval_95": [0.5, 0.75], "auroc_of_compressed_size": 0.5,
                "standard_error": 0.1, "features": {"feature_space": "FD"}}  # fmt: skip
    write_record(run.evaluation, Record("auroc_constant", 0.6, 9, protocol))
    write_record(run.evaluation, Record("long_run_energy_10x", 0.6, 9, protocol))
    x = np.random.default_rng(0).integers(0, 256, (7, 9, 8, 8, 1), dtype=np.uint8)
    np.savez(run.evaluation / "samples-ema-step00000002.npz", x=x[0])
    np.savez(run.evaluation / "chain-ema-step00000002.npz", x=x, every=np.array(1))
    np.savez(run.evaluation / "ood_scores-ema-step00000002.npz", **{"energy/in": np.arange(9.0)})
    for _ in range(draw.choice([1, 1, 2])):
        path = draw.choice(sorted(p for p in run.path.rglob("*") if p.is_file()))
        if draw.random() < 0.06:
            path.unlink()
            path.mkdir()
        elif path.suffix == ".json" and draw.random() < 0.7:
            path.write_bytes(text_of(changed(draw, json.loads(path.read_text()))))
        elif path.suffix == ".jsonl" and draw.random() < 0.7:
            whole = [changed(draw, line) if draw.random() < 0.5 else line for line in [lines[0], event, lines[1]]]
            path.write_bytes(b"\n".join(text_of(line) for line in whole))
        elif path.suffix == ".npz" and draw.random() < 0.6:
            wrong = [
                np.array(3), np.array("x"), x, x[0], x[0, 0], x.astype(float), x[:0], np.array([None], object),
                np.full(3, np.nan), np.arange(2.0), x[:, :2], x[:1], np.zeros((2, 9, 8, 8, 2), np.uint8),
            ]  # fmt: skip
            np.savez(path, **{draw.choice(["x", "every", "energy/in", "energy/$x$", "energy/"]): draw.choice(wrong)})
        else:
            path.write_bytes(flipped(draw, path.read_bytes()))
    rest = {"report": [], "sample": ["--out", f"{folder}/x.png"], "evaluate": [], "restore":
            ["--task", "inpaint", "--input", f"{folder}/run", "--out", f"{folder}/y.png"]}  # fmt: skip
    verb = draw.choice(["report"] * 9 + list(rest))
    return [verb, str(run.path), *rest[verb]]


def picture_files(draw, folder):
    """Pictures, one of them damaged or of another kind, as a data source and as an input to be restored."""
    root = folder / "pictures"
    root.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        mode = draw.choice(["L"] * 5 + ["RGB", "P", "1", "RGBA", "LA", "CMYK", "I", "F"])
        image = Image.fromarray(pixels).convert("L" if mode == "LA" else mode).convert(mode)
        name = draw.choice(["png"] * 6 + ["bmp", "jpg", "gif", "tiff", "webp"])
        with contextlib.suppress(OSError, ValueError):  # a mode that the kind does not hold
            image.save(root / f"{i}.{name}")
    if not any(root.iterdir()):
        Image.new("L", (8, 8)).save(root / "0.png")
    path = draw.choice(sorted(root.iterdir()))
    content = path.read_bytes()
    if path.suffix == ".png" and draw.random() < 0.2:  # a header of many pixels
        content = content[:16] + draw.choice([30_000, 2**31 - 1, 0]).to_bytes(4, "big") * 2 + content[24:]
    path.write_bytes(flipped(draw, content) if draw.random() < 0.7 else content)
    if draw.random() < 0.5:
        return ["data", "info", f"folder:{root}", *draw.choice([[], ["--crop", "centre", "--size", "4"]])]
    task = draw.choice([
        ["inpaint"], ["inpaint", "--mask", str(path)], ["superres", "--factor", draw.choice("0234x")],
        ["colorize"], ["deblur"], ["inpaint", "--mask", "random", "--fraction", draw.choice(VALUES)],
    ])  # fmt: skip
    given = ["--input", str(draw.choice([root, path])), *draw.choice([[], ["--degrade"], ["--original", str(path)]])]
    out = folder / draw.choice(["out", "o.png", "o.npz", "o.x"])
    return ["restore", "run", "--task", *task, *given, "--out", str(out)]


KINDS = (assignments, archives, run_directories, picture_files, assignments, run_directories)


WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
watched = SimpleNamespace(inside=None, outside=[])


def hook(event, arguments):
    """Notes every file that Python opens for writing, makes, renames or deletes outside of `watched.inside`."""
    if watched.inside is None or event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
        return
    path = arguments[0]
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITES):
        return
    if isinstance(path, str | bytes | os.PathLike):
        path = os.path.abspath(os.fsdecode(path))
        compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR", "/dev/")
        if not path.startswith((watched.inside, compiled, "/dev/")):
            watched.outside.append((event, path))


@pytest.fixture
def attempt(tmp_path, monkeypatch):
    """``number -> complaint`` about input ``number``, or None."""
    if hook not in HOOKED:
        sys.addaudithook(hook)
        HOOKED.append(hook)
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "JEBM_CACHE", "XDG_CACHE_HOME", "TFDS_DATA_DIR"):
        monkeypatch.setenv(name, str(home))

    def train(config, directory, say, **options):
        if config.method.image_size <= 64 and config.data.source == "digits":
            method = build(config)
            load_source(config, method.image_shape)
            if watched.deep:
                abstract_state(method, config)
        raise ConfigError("as far as this test goes")

    def enough(run):
        raise ConfigError("as far as this test goes")

    monkeypatch.setattr("jebm.training.train", train)
    monkeypatch.setattr(files, "prior", enough)
    settings = SimpleNamespace(image_size=8, channels=1)
    digits = SimpleNamespace(config=SimpleNamespace(method=settings), method=SimpleNamespace(image_shape=(8, 8, 1)))
    load = common.load
    monkeypatch.setattr(common, "load", lambda path, *step: digits if str(path) == "run" else load(path, *step))

    def try_one(number, deep=False):
        draw, folder = random.Random(number), tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        words = KINDS[number % len(KINDS)](draw, folder)
        out, err = io.StringIO(), io.StringIO()
        watched.inside, watched.outside, watched.deep = str(tmp_path), [], deep
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = main(words)
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            return f"{number}: {short(words)}: {traceback.format_exc()[-600:]}"
        finally:
            watched.inside = None
        lines = [line for line in err.getvalue().splitlines() if not line.startswith("jebm: warning: ")]
        good = status == 0 or (status in (1, 2) and len(lines) == 1 and lines[0].startswith("jebm"))
        if not good or "Traceback" in err.getvalue() or max(map(len, lines), default=0) > 2000:
            return f"{number}: {short(words)}: status {status!r}, {lines[:5]}"
        if watched.outside or "~" in "".join(path.name for path in folder.iterdir()):
            return f"{number}: {short(words)}: wrote {watched.outside or list(folder.iterdir())}"
        return None

    return try_one


HOOKED = []


def short(words):
    return " ".join(repr(word)[:60] for word in words)


def test_a_few_wrong_inputs(attempt):
    assert [complaint for number in range(36) if (complaint := attempt(number))] == []


@pytest.mark.slow
def test_a_thousand_wrong_inputs(attempt):
    complaints = [complaint for number in range(36, 1036) if (complaint := attempt(number, deep=number % 12 == 0))]
    assert not complaints, f"{len(complaints)} of 1,000:\n" + "\n".join(complaints[:20])


def test_a_traceback_and_a_stray_file_are_seen(attempt, monkeypatch, tmp_path_factory):
    def fault(*_):
        raise ZeroDivisionError

    stray = tmp_path_factory.mktemp("elsewhere") / "stray"
    monkeypatch.setattr("jebm.data.prepare.archives.info", fault)
    assert "ZeroDivisionError" in attempt(1)
    monkeypatch.setattr("jebm.data.prepare.archives.info", lambda *_: [str(stray.write_text("x"))])
    assert "stray" in attempt(7)
