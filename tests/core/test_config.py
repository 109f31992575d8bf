"""Configuration: typed overrides, and one clear line for each mistake."""

import dataclasses
import itertools
import os
import re
import subprocess
import sys
from typing import Literal

import pytest
from helpers.families import CONFIGS

from jebm.commands.main import main
from jebm.config import Config, config_hash, from_dict, load_file, override, to_dict
from jebm.errors import ConfigError, check
from jebm.methods import DenoisingEBMConfig, ECVAEConfig
from jebm.typed import described, keys, leaves, written

FILE = "configs/digits/ec_vae.py"


@pytest.fixture
def config():
    return Config(method=ECVAEConfig())


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch, pytestconfig, tmp_path):
    monkeypatch.chdir(pytestconfig.rootpath)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))


def get(config, key):
    for name in key.split("."):
        config = getattr(config, name)
    return config


VALUES = [
    ("training.num_steps=7", 7),
    ("training.num_steps=2e3", 2000),
    ("training.seed=0", 0),
    ("method.kl_weight=1e-3", 1e-3),
    ("method.kl_weight=2", 2.0),
    ("method.calibration.step_size=2.5e-7", 2.5e-7),
    ("method.spectral_norm=false", False),
    ("method.spectral_norm=True", True),
    ("method.calibration.tolerance=none", None),
    ("method.calibration.tolerance=0.2", 0.2),
    ("method.energy_scales=1", 1),
    ("method.power_iterations=per_evaluation", "per_evaluation"),
    ("method.reuse_negatives=true", True),
    ("method.energy_layers=[[64,2],[128,3]]", ((64, 2), (128, 3))),
    ("method.energy_layers=((64, 2), (128, 3))", ((64, 2), (128, 3))),
    ("data.source=npz:a=b.npz", "npz:a=b.npz"),
    ("data.source=folder:none", "folder:none"),
]


@pytest.mark.parametrize(("assignment", "value"), VALUES, ids=[a for a, _ in VALUES])
def test_values_are_parsed_by_the_type_of_their_field(config, assignment, value):
    changed = override(config, [assignment])
    parsed = get(changed, assignment.partition("=")[0])
    assert parsed == value
    assert type(parsed) is type(value)


def test_later_assignments_win_and_the_original_stays(config):
    changed = override(config, ["training.num_steps=3", "method.channels=1", "training.num_steps=4"])
    assert (changed.training.num_steps, changed.method.channels) == (4, 1)
    assert (config.training.num_steps, config.method.channels) == (1000, 3)


def test_assignments_are_put_in_together(config):
    """Three scales of four layers need 32 px: 8 px alone are refused, and with fewer layers not."""
    for assignment in ("method.image_size=8", "method.image_size=16"):
        with pytest.raises(ConfigError, match="fewer layers"):
            override(config, [assignment])
    together = ["method.image_size=8", "method.energy_layers=[[4,1],[4,1]]", "data.batch_size=7"]
    for order in itertools.permutations(together):
        changed = override(config, order)
        assert (changed.method.image_size, changed.method.energy_layers) == (8, ((4, 1), (4, 1)))
        assert changed.data.batch_size == 7
    with pytest.raises(ConfigError, match=r"^method.image_size=8 method.kl_weight=2: ") as caught:
        override(config, ["method.image_size=8", "method.kl_weight=2", "data.batch_size=7"])
    assert "\n" not in str(caught.value)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Neither number can be changed alone."""

    a: int = 1
    b: int = 1

    def __post_init__(self):
        if self.a != self.b:
            raise ConfigError(f"a={self.a} must be b")


@dataclasses.dataclass(frozen=True)
class Holder:
    pair: Pair = dataclasses.field(default_factory=Pair)
    size: int = 8

    def __post_init__(self):
        if self.size != 8 * self.pair.a:
            raise ValueError(f"size={self.size} is not\n8 a")


def test_what_no_order_would_allow():
    together = ["pair.a=2", "pair.b=2", "size=16"]
    for order in itertools.permutations(together):
        assert override(Holder(), order) == Holder(Pair(2, 2), 16)
    for given, message in {
        ("pair.a=2", "size=16"): "pair.a=2: a=2 must be b",
        ("pair.a=2", "pair.b=2"): "pair.a=2 pair.b=2: size=8 is not 8 a",
        ("size=9",): "size=9 is not 8 a",
    }.items():
        with pytest.raises(ConfigError) as caught:
            override(Holder(), given)
        assert str(caught.value) == message


def test_one_noise_level_in_every_order():
    """No order of single changes would do: the number alone is refused, and so is each level without it."""
    config = Config(method=DenoisingEBMConfig())
    together = ["method.semantic_levels=1", "method.sigma_max=0.2", "method.semantic_sigma_min=0.2"]
    for some in (together[:1], together[:2], together[::2], together[1:]):
        with pytest.raises(ConfigError):
            override(config, some)
    changed = [override(config, order) for order in itertools.permutations(together)]
    assert changed == [changed[0]] * 6
    method = changed[0].method
    assert (method.semantic_levels, method.sigma_max, method.semantic_sigma_min) == (1, 0.2, 0.2)


def test_a_group_and_what_holds_it_are_checked_once(config):
    changed = override(config, ["method.calibration.dual_max=10", "method.calibration.dual_initial=5"])
    assert (changed.method.calibration.dual_max, changed.method.calibration.dual_initial) == (10.0, 5.0)
    assert override(config, []) is config


def test_several_assignments_after_one_option(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("jebm.training.train", lambda config, *_, **__: seen.append(config) or 1 / 0)
    run = str(tmp_path / "run")
    both = ["training.num_steps=7", "method.kl_weight=2"]
    for words in (
        [FILE, "--workdir", run, "--set", *both],
        ["--set", *both, FILE, "--workdir", run],
        ["--set", both[0], FILE, "--workdir", run, "--set", both[1]],
        [f"--set={both[0]}", both[1], "--workdir", run, FILE],
    ):
        with pytest.raises(ZeroDivisionError):
            main(["train", *words])
        assert (seen[-1].training.num_steps, seen[-1].method.kl_weight) == (7, 2.0)
    assert main(["train", FILE, "--workdir", run, "--set", *both, "loose"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("jebm: unrecognized arguments: loose")
    assert err.count("\n") == 1


def test_round_trip_through_json(config):
    changed = override(config, [a for a, _ in VALUES])
    assert from_dict(to_dict(changed)) == changed
    assert config_hash(from_dict(to_dict(changed))) == config_hash(changed) != config_hash(config)


def test_an_unknown_key_in_a_stored_configuration_is_refused(config):
    tree = to_dict(config)
    tree["method"]["calibration"]["num_stps"] = 3
    with pytest.raises(ConfigError, match=r"method\.calibration\.num_stps"):
        from_dict(tree)
    with pytest.raises(ConfigError, match=r"method\.family='nonesuch': expected one of \[.*'ec_vae'"):
        from_dict({**to_dict(config), "method": {"family": "nonesuch"}})


# --- the keys ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Documented:
    """A group.

    Attributes:
        rate: how fast, in units of
            100% a second. The second sentence is left out.
        name: ``"a"`` or ``"b"``.
        pair: of whole numbers.
        silent: of no rule.
    """

    rate: float = 1e-3
    name: Literal["a", "b"] = "a"
    pair: tuple[int, ...] | None = (1, 2)
    silent: bool = True
    undocumented: int = 3

    def __post_init__(self):
        check(self, rate=">0", undocumented=">=1")


def test_a_key_has_its_type_value_range_and_meaning():
    node = dataclasses.make_dataclass("Node", [("group", Documented), ("size", int)])(Documented(), 7)
    found = {key.name: (described(key.kind), written(key.value), key.rule, key.meaning) for key in keys(node)}
    assert found == {
        "group.rate": ("a number", "0.001", ">0", "how fast, in units of 100% a second."),
        "group.name": ("one of 'a', 'b'", "a", "", '``"a"`` or ``"b"``.'),
        "group.pair": ("a list such as [1, 2] or none", "[1, 2]", "", "of whole numbers."),
        "group.silent": ("true or false", "true", "", "of no rule."),
        "group.undocumented": ("a whole number", "3", ">=1", ""),
        "size": ("a whole number", "7", "", ""),
    }


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_key_of_a_family_can_be_printed_and_given_back(name):
    config = Config(method=CONFIGS[name])
    table = keys(config)
    assert [key.name for key in table] == leaves(config)
    assert {key.name for key in table if not key.meaning} == set()
    assert override(config, [f"{key.name}={written(key.value)}" for key in table]) == config


def test_the_keys_are_printed_and_nothing_is_trained(capsys, tmp_path, monkeypatch):
    assert main(["train", FILE, "--keys", "--set", "training.num_steps=7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    assert names == leaves(override(load_file(FILE), []))
    (line,) = [line for line in lines if line.startswith("training.num_steps ")]
    assert re.fullmatch(r"training\.num_steps +a whole number +7 +>=1 +training iterations\.", line)
    # aligned: every meaning begins where this one does
    starts = {line.rindex("  ") + 2 for line in lines if line.startswith("training.") and line.endswith(".")}
    assert starts == {line.index("training iterations")}
    assert main(["train", FILE, "--keys", "--set", "training.num_stps=7"]) == 2
    assert "did you mean 'training.num_steps'" in capsys.readouterr().err


# --- mistakes: one line that names the key, the value and what is allowed; exit status 2 ---------------------------

MISTAKES = {
    # misspelt keys
    "training.num_step=5": ["unknown key 'training.num_step'", "did you mean 'training.num_steps'"],
    "trainig.num_steps=5": ["unknown key 'trainig.num_steps'", "did you mean 'training.num_steps'", "method, data"],
    "method.calibration.stepsize=1": ["'method.calibration.stepsize'", "did you mean 'method.calibration.step_size'"],
    "training.num_steps.x=1": ["unknown key 'training.num_steps.x'"],
    "method.calibration=1": ["'method.calibration' is a group", "step_size"],
    "training.num_steps": ["write key.path=value"],
    # wrong types
    "training.num_steps=ten": ["training.num_steps='ten'", "a whole number"],
    "training.num_steps=2.5": ["training.num_steps=2.5", "a whole number"],
    "training.num_steps=true": ["training.num_steps=True", "a whole number"],
    "training.num_steps=none": ["training.num_steps=None", "a whole number"],
    "method.kl_weight=high": ["method.kl_weight='high'", "a number"],
    "method.spectral_norm=1": ["method.spectral_norm=1", "true or false"],
    "method.calibration.tolerance=x": ["method.calibration.tolerance='x'", "a number or none"],
    "method.energy_scales=2": ["method.energy_scales=2", "one of 1, 3"],
    "method.energy_scales=true": ["method.energy_scales=True", "one of 1, 3"],
    "method.power_iterations=per_updat": ["per_updat'", "did you mean 'per_update'", "'per_evaluation'"],
    "method.energy_layers=[64, 2]": ["method.energy_layers", "[[64, 2], [128, 2]]"],
    "method.energy_layers=[[64, 2, 1]]": ["method.energy_layers", "[[64, 2], [128, 2]]"],
    # out of range
    "method.calibration.step_size=-1e-6": ["method.calibration.step_size=-1e-6", "step_size=-1e-06", ">0"],
    "method.calibration.num_steps=0": ["method.calibration.num_steps=0", ">=1"],
    "method.vae_learning_rate=0": ["method.vae_learning_rate=0", ">0"],
    "method.vae_learning_rate=1e999": ["method.vae_learning_rate=1e999", ">0"],
    "method.vae_learning_rate=NaN": ["method.vae_learning_rate=NaN", ">0"],
    "method.b2=1": ["method.b2=1", "in [0, 1)"],
    "method.image_size=33": ["method.image_size=33", "8, 16, 32, 64 or 256"],
    "method.energy_layers=[]": ["method.energy_layers=", "one pair"],
    "method.energy_layers=[[-4, 1]]": ["method.energy_layers=", ">=1"],
    "method.energy_layers=[[4,1],[4,1],[4,1],[4,1],[4,1]]": ["method.energy_layers=", "fewer layers"],
    "method.reconstruction=l2": ["method.reconstruction=l2", "squared_error"],
    "data.batch_size=0": ["data.batch_size=0", ">=1"],
    "data.batch_size=63": ["data.batch_size=63", "2 devices"],
    "data.batch_size=2000": ["data.batch_size=2000", "1..1500"],
    "data.source=digit": ["data.source=digit", "digits, npz:PATH", "did you mean 'digits'"],
    "data.source=npz:nowhere.npz": ["data.source=npz:nowhere.npz", "no such file"],
    "method.channels=3": ["data.source=digits has 1 channels", "method.channels=1"],
    "training.seed=-1": ["training.seed=-1", "[0, 2**63)"],
    "training.seed=9223372036854775808": ["training.seed=9223372036854775808", "[0, 2**63)"],
    # what no parser likes
    "training.seed=" + "9" * 400: ["training.seed=9999", "(400 characters)", "a whole number of at most 1e+19"],
    "training.seed=" + "9" * 5000: ["training.seed='9999", "a whole number"],
    "method.latent_size=1e18": ["method.latent_size=1e+18", "a whole number of at most 1e+09"],
    "method.kl_weight=" + "9" * 400: ["method.kl_weight=9999", "expected a number"],
    "training.seed=" + "[" * 100_000: ["training.seed='[[[[", "(100,002 characters)", "a whole number"],
    "method.energy_layers=" + "[" * 500 + "]" * 500: ["method.energy_layers=[[[", "a list such as"],
    "x" * 5000 + "=1": ["unknown key 'xxxx", "(5,002 characters)", "method, data"],
    "training.seed=1\n2": ["training.seed='1\\n2'", "a whole number"],
    "data.source=npz:~nouser/x": ["data.source=npz:~nouser/x", "no home folder of '~nouser'"],
    "data.source=folder:ftp://bucket/x": ["ftp:// is not supported"],
    'training.writers=["tensorbord"]': ["training.writers=", 'expected a list such as ["tensorboard", "wandb"]'],
    "data.source=npz:": ["no data source 'npz:'"],
}


@pytest.mark.parametrize("assignment", MISTAKES, ids=lambda text: text[:80])
def test_a_mistake_is_one_line_and_status_2(assignment, capsys, tmp_path):
    status = main(["train", FILE, "--workdir", str(tmp_path / "run"), "--set", assignment])
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    assert err.startswith("jebm: ")
    assert err.count("\n") == 1
    for part in MISTAKES[assignment]:
        assert part in err
    assert not (tmp_path / "run").exists()


FILES = {
    "syntax error": ("def get_config(:\n    pass\n", ["does not run", "SyntaxError", "line 1"]),
    "no get_config": ("CONFIG = 3\n", ["no function get_config()"]),
    "raises": ("def get_config():\n    return {}['method']\n", ["does not run", "KeyError", "'method'"]),
    "unknown argument": (
        "from jebm.methods import ECVAEConfig\ndef get_config():\n    return ECVAEConfig(witdh=3)\n",
        ["does not run", "TypeError", "witdh"],
    ),
    "out of range": (
        "from jebm.methods import ECVAEConfig\ndef get_config():\n    return ECVAEConfig(kl_weight=-1.0)\n",
        ["kl_weight=-1.0", ">=0"],
    ),
    "ends the program": ("raise SystemExit(0)\n", ["does not run, line 1: SystemExit: 0"]),
    "ends it when it is called": (
        "import sys\ndef get_config():\n    sys.exit('no\\nmore')\n",
        ["does not run, line 3: SystemExit: no more"],
    ),
    "never ends": ("def get_config():\n    return get_config()\n", ["does not run, line 2: RecursionError"]),
    "a field of another type": (
        "from jebm.config import *\nfrom jebm.methods import ECVAEConfig\n"
        "def get_config():\n    return Config(ECVAEConfig(), DataConfig(flip=3))\n",
        ["data.flip=3", "true or false"],
    ),
    "a group of another type": (
        "from jebm.config import *\nfrom jebm.methods import ECVAEConfig\n"
        "def get_config():\n    return Config(ECVAEConfig(), 'digits')\n",
        ["groups"],
    ),
    "no method": ("from jebm.config import *\ndef get_config():\n    return Config(3)\n", ["no configuration of"]),
    "something else": ("def get_config():\n    return 3\n", ["returned int", "jebm.config.Config"]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_configuration_file_is_one_line_and_status_2(name, capsys, tmp_path):
    text, parts = FILES[name]
    file = tmp_path / "experiment.py"
    file.write_text(text)
    assert main(["train", str(file), "--workdir", str(tmp_path / "run")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    for part in [str(file), *parts]:
        assert part in err


def test_a_missing_configuration_file_suggests_the_nearest(capsys, tmp_path):
    assert main(["train", "configs/digit/ec_vae.py", "--workdir", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert "no configuration file 'configs/digit/ec_vae.py' (did you mean 'configs/digits/ec_vae.py'?)" in err
    assert err.count("\n") == 1


def test_a_real_process_prints_no_traceback(tmp_path):
    command = [sys.executable, "-m", "jebm", "train", FILE, "--workdir", str(tmp_path / "run")]
    result = subprocess.run(
        [*command, "--set", "method.calibration.step_size=-1"], capture_output=True, text=True, env=os.environ
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == ("jebm: method.calibration.step_size=-1: step_size=-1.0 is out of range: it must be >0\n")


def test_the_checks_run_again_on_what_dataclasses_replace_makes(config):
    with pytest.raises(ConfigError, match="num_samples=1 is out of range"):
        dataclasses.replace(config.evaluation, num_samples=1)
