"""The package as a whole: light to import, light to install, imports downwards only."""

import ast
import graphlib
import importlib.metadata
import json
import pathlib
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import jebm

ROOT = pathlib.Path(jebm.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] != "configs")  # experiments
FILES.sort(key=lambda path: path != ROOT / "__init__.py")

# --- what an import brings along ----------------------------------------------------------------------------

HEAVY = {
    "IPython", "PIL", "grain", "matplotlib", "orbax", "pandas", "scipy", "sklearn", "tensorflow",
    "tensorflow_datasets", "torch", "tqdm",
}  # fmt: skip


def python(code):
    """What ``code`` prints in a fresh interpreter, from JSON."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def loaded_by(imports):
    modules = python(f"{imports}; import json, sys; print(json.dumps(list(sys.modules)))")
    return {module.partition(".")[0] for module in modules}


def test_import_loads_nothing_heavy():
    alone = loaded_by("import jax, flax.linen")
    with_jebm = loaded_by("import jax, flax.linen, jebm")
    assert "jebm" in with_jebm - alone
    assert not HEAVY & (with_jebm - alone)


def test_import_takes_little_longer_than_jax_and_flax():
    timed = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"
    alone, with_jebm = [], []
    for _ in range(3):  # in turns, so that load from elsewhere meets both
        alone.append(python(timed.format("jax, flax.linen")))
        with_jebm.append(python(timed.format("jax, flax.linen, jebm")))
    assert min(with_jebm) < 1.5 * min(alone)


# --- what an installation brings along ----------------------------------------------------------------------


def requirements_of(package, extras):
    """Names of the packages that an installation of ``package[extras]`` needs directly, with their extras."""
    for line in importlib.metadata.requires(package) or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
            yield canonicalize_name(requirement.name), frozenset(requirement.extras)


def test_installation_brings_neither_torch_nor_tensorflow():
    seen, open_ends = set(), {("jebm", frozenset({"test"}))}
    while open_ends:
        package = open_ends.pop()
        seen.add(package)
        try:
            needed = set(requirements_of(package[0], {"", *package[1]}))
        except importlib.metadata.PackageNotFoundError:
            continue  # not for this platform, or the distribution of a system
        open_ends |= needed - seen
    names = {name for name, _ in seen}
    assert {"jax", "optax", "jaxlib", "pytest"} <= names
    assert not names & {"torch", "torchvision", "tensorflow", "tensorflow-cpu", "tf-nightly", "keras"}


# --- which file imports which ---------------------------------------------------------------------------------

# a room is a folder or a file just below jebm/; it may import the rooms of earlier lines, and no other
RANKS = (
    {"errors", "paths"},
    {"files", "partials", "typed"},
    {"energy"},
    {"problems"},
    {"images", "sharding"},
    {"mcmc"},
    {"diagnostics"},
    {"plot"},
    {"learning"},
    {"losses", "networks"},
    {"data"},
    {"metrics"},  # numbers from arrays: they know no model
    {"methods"},
    {"config"},
    {"runs"},
    {"evaluation", "restoration"},
    {"convert", "report", "training"},
    {"notebook"},
    {"planning"},
    {"jebm"},  # the package's own face, which names all of them
    {"commands"},
    {"__main__"},
)
MODULES = {".".join(("jebm", *f.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): f for f in FILES}


def room(module):
    return (module.split(".") + ["jebm"])[1] if "." in module else "jebm"


def rank(module):
    return next(number for number, rooms in enumerate(RANKS) if room(module) in rooms)


def imports(module, source):
    """The files that a file imports anywhere, in functions and for type checkers, too.

    An import of ``a.b`` runs ``a/__init__.py`` first, so that is imported as well, unless the file is of ``a`` itself.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            known = [".".join(name.split(".")[:count]) for count in range(1, name.count(".") + 2)]
            known = [other for other in known if other in MODULES]
            found |= {other for other in known[1:] if not f"{module}.".startswith(f"{other}.")}
            found |= set(known[-1:]) - {module}  # of its own package it may ask by name only
    return found


def graph(changed=()):
    """The files that each file imports; ``changed`` maps modules to another text."""
    texts = {module: file.read_text() for module, file in MODULES.items()} | dict(changed)
    return {module: imports(module, text) for module, text in texts.items()}


def upward_imports(imported):
    return {
        f"{module} imports {other}"
        for module, others in imported.items()
        for other in others
        if room(module) != room(other) and rank(module) <= rank(other)
    }


def circle(imported):
    """A circle of imports as graphlib finds it, or nothing."""
    try:
        graphlib.TopologicalSorter(imported).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_every_room_has_its_rank():
    rooms = [name for rooms in RANKS for name in rooms]
    assert sorted(rooms) == sorted({room(module) for module in MODULES})


def test_imports_run_downwards_and_in_no_circle():
    imported = graph()
    assert upward_imports(imported) == set()
    assert circle(imported) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("jebm.energy", "from jebm import mcmc"),
        ("jebm.mcmc.chains", "from jebm.methods.base import Method"),
        ("jebm.networks.layers", "def f():\n    import jebm.methods.hat.ebm"),
        ("jebm.methods.base", "if TYPE_CHECKING:\n    from jebm.training import train"),
        ("jebm.methods.base", "import jebm"),
        ("jebm.evaluation.run", "from jebm.restoration import restore"),  # of one rank
    ],
)
def test_an_import_upwards_is_seen(module, source):
    assert {line.split()[0] for line in upward_imports(graph({module: source}))} == {module}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("jebm.errors", "def f():\n    from jebm.files import whole"),
        ("jebm.mcmc.langevin", "from jebm.mcmc import chains"),
        ("jebm.mcmc.langevin", "from jebm.mcmc import sample"),
        ("jebm.methods.hat.networks", "from jebm.methods.ec import vae"),
    ],
)
def test_a_circle_is_seen(module, source):
    more = {"jebm.files": "import jebm.errors", "jebm.mcmc.chains": "import jebm.mcmc.langevin"}
    more |= {"jebm.methods.ec.vae": "from jebm.methods.hat import networks"}
    assert module in circle(graph(more | {module: source}))


def test_no_file_is_long():
    lengths = {name: len(file.read_text().splitlines()) for name, file in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > 450} == {}


# --- who speaks of mesh axes ------------------------------------------------------------------------------------


MESH_WORDS = {
    "DATA_AXIS", "PartitionSpec", "all_gather", "axis_index", "axis_name", "axis_names", "pmean", "psum",
}  # fmt: skip


def mesh_words(source):
    """Names, attributes, imported names and keywords in a file that only concern mesh axes."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found.add(node.name.rpartition(".")[2])
        elif isinstance(node, ast.keyword):
            found.add(node.arg)
    return found & MESH_WORDS


def test_only_sharding_names_mesh_axes():
    users = {room(module) for module, file in MODULES.items() if mesh_words(file.read_text())}
    assert users == {"sharding"}
