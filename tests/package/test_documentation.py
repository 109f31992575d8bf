"""The documentation is whole: every public name has an entry, every link leads somewhere, every snippet runs."""

import ast
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT

import jebm

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
API = "\n".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
ENTRIES = set(re.findall(r"^::: ([\w.]+)$", API, re.MULTILINE))
NAVIGATION = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def run(snippet, page, names):
    exec(compile(snippet, page, "exec"), names)  # noqa: S102
    return names


# --- the API pages ----------------------------------------------------------------------------------------------------


def public():
    """``(module, where a name is defined)`` of each entry of an ``__all__``, read from the source."""
    for path in sorted((ROOT / "jebm").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text())
        for node in tree.body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__" and module != "jebm":
                imported = {
                    alias.asname or alias.name: (child.module, alias.name)
                    for child in tree.body
                    if isinstance(child, ast.ImportFrom)
                    for alias in child.names
                }
                for name in ast.literal_eval(node.value):
                    yield (module, name, *imported.get(name, (module, name)))


def test_every_public_name_has_an_entry():
    names = list(public())
    assert len(names) > 600
    missing = [f"{module}.{name}" for module, name, home, _ in names if home not in ENTRIES and module not in ENTRIES]
    # a page shows what a module defines: what it only imports must stand on the page of its own module
    missing += [f"{module}.{name}" for module, name, home, _ in names if home != module and home not in ENTRIES]
    assert missing == []


def test_every_short_name_is_listed():
    listed = (DOCS / "api/index.md").read_text()
    assert [name for name in jebm.__all__ if f"`jebm.{name}`" not in listed] == []


def test_every_entry_is_a_module():
    for entry in ENTRIES:
        path = ROOT / entry.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), entry


def test_every_page_is_in_the_navigation():
    assert [page for page in PAGES if f": {page.relative_to(DOCS)}\n" not in NAVIGATION.replace("- ", ": ")] == []


# --- links ------------------------------------------------------------------------------------------------------------


def anchors(text):
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


LINKING = [*(ROOT / name for name in ("README.md", "launch/README.md", "notebooks/README.md")), *PAGES]


@pytest.mark.parametrize(
    "page", [*LINKING, *(ROOT / "results").glob("*.md")], ids=lambda path: str(path.relative_to(ROOT))
)
def test_links_lead_to_files_of_the_repository(page):
    """The site's own builder checks the pages; this, that they can be read where they are."""
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there.read_text())):
            wrong.append(target)
    assert wrong == []


# --- snippets ---------------------------------------------------------------------------------------------------------


def test_every_snippet_is_python():
    for page in PAGES:
        for snippet in blocks(page.relative_to(DOCS), "python"):
            compile(snippet, str(page), "exec")


def test_products(capsys):
    run(blocks("how-to/products.md", "python")[0], "products.md", {})
    mean, shape = capsys.readouterr().out.rsplit("(", 1)
    assert shape.strip(") \n") == "4096, 200"
    # the product's mean is Λ⁻¹ Σ Λ_i μ_i = (24/23, 17/23)
    values = [float(word) for word in re.findall(r"-?\d+\.\d+", mean)]
    assert values == pytest.approx([24 / 23, 17 / 23], abs=0.05)


def test_samplers(capsys):
    names = {}
    for snippet in blocks("how-to/samplers.md", "python"):
        run(snippet.replace("500, burn_in=200", "20, burn_in=5").replace(", 1000)", ", 10)"), "samplers.md", names)
    assert capsys.readouterr().out.count("4 chains of 20 draws") == 4
    assert names["state"].position.shape == (16, 1)


def test_an_energy_of_your_own():
    (snippet,) = blocks("how-to/own-energy.md", "python")
    assert "300)" in snippet
    names = run(snippet.replace("300)", "60)"), "own-energy.md", {})
    on_data, elsewhere = (float(jnp.mean(jax.vmap(names["learned"])(x))) for x in (names["data"], 3.0 + names["data"]))
    assert on_data < elsewhere


def test_settings_of_a_notebook_are_those_that_there_are():
    config = jebm.config.load_file(ROOT / "configs/digits/ec_vae.py")
    given, refined = (block for block in blocks("how-to/notebook.md", "python") if "override(" in block)
    changed = run(given, "notebook.md", {"jebm": jebm, "config": config})["config"]
    assert (changed.training.num_steps, changed.method.latent_size) == (200, 8)
    refined = refined.replace("configs/", f"{ROOT}/configs/").partition("run = ")[0]
    assert run(refined, "notebook.md", {"jebm": jebm})["config"].method.generator == "given"


def test_configurations_that_pages_name_are_there():
    for page in (*PAGES, ROOT / "README.md"):
        for name in re.findall(r"configs/\w+/\w+\.py", page.read_text()):
            assert (ROOT / name).is_file(), f"{page.name}: {name}"


def test_pictures_are_small():
    for path in (DOCS / "images").iterdir():
        assert path.stat().st_size < 200_000
    assert np.all([path.suffix == ".png" for path in (DOCS / "images").iterdir()])
