"""The package as a whole: light to import, light to install, imports downwards only."""

import ast
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
FILES = [ROOT / "__init__.py", *sorted(set(ROOT.rglob("*.py")) - {ROOT / "__init__.py"})]

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


# --- which part knows which ---------------------------------------------------------------------------------

# a part may import its own layer and those above it in this list; parts not named are tools, just below the
# command line: they may use everything but it, and no named part may use them
LAYERS = (
    {"config", "data", "energy", "images", "losses", "paths"},
    {"networks", "sharding"},
    {"bank", "mcmc"},
    {"methods"},
    {"evaluation", "restoration", "runs", "training"},
    {"tools"},
    {"cli"},
    {"__main__"},
)
# the registry of families, read when a configuration is resolved
EXCEPTIONS = {("config", "methods")}


def layer(part):
    return next((rank for rank, parts in enumerate(LAYERS) if part in parts), LAYERS.index({"tools"}))


def part_of(file):
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_parts(tree):
    """The parts of the package imported anywhere in a file, functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "jebm" and rest:
                yield rest.partition(".")[0]


def upward_imports(part, source):
    parts = set(imported_parts(ast.parse(source)))
    return {(part, other) for other in parts if layer(other) > layer(part)} - EXCEPTIONS


@pytest.mark.parametrize("file", FILES[1:], ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_run_downwards(file):
    assert upward_imports(part_of(file), file.read_text()) == set()


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("energy", "from jebm import mcmc"),
        ("mcmc", "from jebm.methods.base import Method"),
        ("networks", "def f():\n    import jebm.methods.hat.ebm"),
        ("methods", "from jebm.training import train"),
        ("training", "from jebm import data, cli"),
        ("methods", "from jebm.some_new_tool import f"),
    ],
)
def test_an_import_upwards_is_seen(part, source):
    assert len(upward_imports(part, source)) == 1
    assert upward_imports("cli", source) == set()


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
    users = {part_of(file) for file in FILES if mesh_words(file.read_text())}
    assert users == {"sharding"}
