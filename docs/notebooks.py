"""Runs the notebooks from the top, into build/notebooks/, where the site's build takes them with their outputs.

Command:   python docs/notebooks.py [notebooks/x.ipynb ...]
"""

import pathlib
import sys

import nbformat
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parents[1]
OUT = ROOT / "build/notebooks"


def main(names: list[str]) -> None:
    """See above."""
    OUT.mkdir(parents=True, exist_ok=True)
    for path in map(pathlib.Path, names) if names else sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        folder = {"metadata": {"path": str(path.parent)}}
        # a stream in one piece: of a progress bar the last state
        NotebookClient(notebook, timeout=600, resources=folder, coalesce_streams=True).execute()
        nbformat.write(notebook, OUT / path.name)
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
