"""What MkDocs needs to know of this repository: pages that stay where they are, and equations without scripts."""

import pathlib
import posixpath
import re

from latex2mathml.converter import convert
from mkdocs.plugins import event_priority, get_plugin_logger
from mkdocs.structure.files import File
from mkdocs.utils import get_relative_url

ROOT = pathlib.Path(__file__).parents[1]
# included, not copied: a page keeps its place, so that its links hold in the repository and on the site
PAGES = (
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "results/*.md",
    "launch/README.md",
    "benchmarks/README.md",
    "notebooks/README.md",
    "jebm/models/README.md",
)
LINKED = ("results/*.png", "results/*.json", "notebooks/*.ipynb", "CITATION.cff")
OUTSIDE = re.compile(
    r"(\]\(|src=\")\.\./((?:\.\./)*(?:results|launch|benchmarks|notebooks|jebm|CONTRIBUTING\.md|CHANGELOG\.md))"
)
INSIDE = re.compile(r"(\]\((?:\.\./)*)docs/")
LINK = re.compile(r'(?<= href=")(?!https?:)([^"#]+\.(?:ipynb|md))(?=["#])')
EXECUTED = ROOT / "build"  # docs/notebooks.py writes notebooks with their outputs below it


def notebooks() -> list[str]:
    """Notebooks of the repository, in the order of their names."""
    return sorted(f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb"))


def on_config(config):
    """Every notebook gets a line of the navigation."""
    for entry in config.nav:
        if "Notebooks" in entry:
            entry["Notebooks"] = [*entry["Notebooks"], *notebooks()]
    return config


@event_priority(100)  # before mkdocs-jupyter looks for notebooks
def on_files(files, config):
    """Files of the repository that stand outside ``docs/``."""
    for pattern in (*PAGES, *LINKED):
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            executed = path.suffix == ".ipynb" and (EXECUTED / name).is_file()
            files.append(File(name, str(EXECUTED if executed else ROOT), config.site_dir, config.use_directory_urls))
    return files


def _equations(text: str) -> str:
    block = lambda found: f"<p>{convert(found[1].strip(), display='block')}</p>"  # noqa: E731
    text = re.sub(r"\$\$(.+?)\$\$", block, text, flags=re.DOTALL)
    return re.sub(r"(?<![\\$\w])\$([^$\n`]+?)\$(?![\w$])", lambda found: f"<span>{convert(found[1])}</span>", text)


def _pictures(markdown: str) -> str:
    """The pictures that a page of results links to, shown at its end."""
    linked = dict.fromkeys(re.findall(r"(?<!!)\[[^]]+\]\((\w+\.png)\)", markdown))
    shown = "".join(f"\n![{name}]({name})\n\n*{name}*\n" for name in linked)
    return f"\n\n## Pictures\n{shown}" if shown else ""


def on_page_markdown(markdown, page, config, files):
    r"""Links out of ``docs/`` and into it as on the site; ``$...$`` and ``$$...$$`` as MathML, which browsers draw."""
    if not pathlib.Path(page.file.abs_src_path).is_relative_to(config.docs_dir):
        return INSIDE.sub(r"\1", markdown) + _pictures(markdown)
    markdown = OUTSIDE.sub(r"\1\2", markdown)
    parts = re.split(r"(^```.*?^```[^\n]*$|`[^`\n]+`)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("`") else _equations(part) for part in parts)


def on_page_content(html, page, config, files):
    """Links of notebooks, which MkDocs does not follow; a strict build fails where one leads nowhere."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html

    def address(found):
        name = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), found[1]))
        file = files.get_file_from_path(name.removeprefix("docs/"))
        if file is None:
            get_plugin_logger(__name__).warning("%s: no page %s", page.file.src_uri, found[1])
            return found[1]
        return get_relative_url(file.url, page.file.url)

    return LINK.sub(address, html)
