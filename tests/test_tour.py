"""docs/tour.ipynb: every cell runs, again with the number that its question names, and the file
holds what its cells show."""
import ast
import contextlib
import io
import json
import re
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "tour.ipynb"
TOUR = json.loads(FILE.read_text())
TEXTS = ["".join(cell["source"]) for cell in TOUR["cells"] if cell["cell_type"] == "markdown"][1:-1]
CELLS = [cell for cell in TOUR["cells"] if cell["cell_type"] == "code"]
CODES = ["".join(cell["source"]) for cell in CELLS]
TRAINING = next(i for i, code in enumerate(CODES) if "train.algorithm_1(" in code)
LONG, SHORT = re.search(r"^steps = \d+$", CODES[TRAINING], re.MULTILINE)[0], "steps = 25"


def short(code):
    """The same with few steps of training."""
    return re.sub(r"^steps = \d+$", SHORT, code, flags=re.MULTILINE)


def changed(text, code):
    """The cell with the number that its question names in place of its own."""
    name, value = re.findall(r"`(\w+) = ([-\d.]+)`", text.partition("**?**")[2])[-1]
    return re.sub(rf"^{name} = ([-\d.]+)$", f"{name} = {value}", code, flags=re.MULTILINE)


def shown(code, names):
    """Run a cell: (what it printed, how many pictures it drew)."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, FILE.name, "exec"), names)
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()
    drawn = len(plt.get_fignums())
    plt.close("all")
    return printed.getvalue(), drawn


@pytest.fixture
def plain(monkeypatch):
    """A notebook's own path, settings of matplotlib and random numbers."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path and Path(path) != ROOT])
    with matplotlib.rc_context(), torch.random.fork_rng():
        matplotlib.use("Agg")
        yield


@pytest.mark.parametrize("folder", [ROOT, ROOT / "docs"])
def test_the_first_cell_finds_the_project(folder, plain, monkeypatch):
    monkeypatch.chdir(folder)
    shown(CODES[0], {})
    assert Path(sys.path[0]) == ROOT


def test_every_cell_runs_and_shows_what_the_file_keeps(plain, monkeypatch):
    """From docs/, as Jupyter does; what is printed before the training, word for word. After each
    cell, a copy of its names lets the question's number be tried, which changes what it shows."""
    monkeypatch.chdir(ROOT / "docs")
    names = {}
    for i, (text, cell, code) in enumerate(zip(TEXTS, CELLS, CODES, strict=True)):
        printed, drawn = shown(short(code), names)
        kept = "".join("".join(output.get("text", "")) for output in cell["outputs"])
        pictures = [output for output in cell["outputs"] if "image/png" in output.get("data", {})]
        assert drawn == len(pictures) and bool(printed) == bool(kept), code
        assert i >= TRAINING or printed == kept
        if i != TRAINING:
            shown(changed(text, code), dict(names))


def test_the_notebook_runs_in_a_kernel():
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    tour = nbformat.read(FILE, as_version=4)
    for cell in tour.cells:
        cell.source = short(cell.source)
    place = {"metadata": {"path": FILE.parent}}
    nbclient.NotebookClient(tour, timeout=600, resources=place).execute()


def test_each_cell_has_a_line_of_prose_and_a_question_that_a_number_answers():
    assert [cell["cell_type"] for cell in TOUR["cells"][1:-1]] == len(CELLS) * ["markdown", "code"]
    assert 18 <= len(CELLS) <= 22 and LONG != SHORT
    for number, (text, code) in enumerate(zip(TEXTS, CODES), 1):
        title, prose, empty, question = text.split("\n")
        assert title.startswith(f"### {number}. ") and prose.endswith(".") and not empty
        assert question.startswith("**?** ") and question.count("?") == 2
        assert changed(text, code) != code, question
        assert len(code.splitlines()) <= 20


def test_it_imports_the_projects_own_and_defines_nothing():
    """But for the first cell, which finds the project and names torch and matplotlib."""
    own = {path.stem for path in ROOT.glob("*.py")} | {"tools"}
    used = set()
    for i, tree in enumerate(map(ast.parse, CODES)):
        for node in ast.walk(tree):
            assert not isinstance(node, (ast.FunctionDef, ast.ClassDef))
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [node.module] if isinstance(node, ast.ImportFrom) else []
            used.update(found if i else [])
            assert {name.partition(".")[0] for name in found} <= (
                own if i else {"sys", "pathlib", "torch", "matplotlib"})
    assert {"data", "ddpm", "inpaint", "masks", "methods", "schedules", "scores", "train",
            "unet"} <= used


def test_its_outputs_are_kept_small_and_without_errors_or_paths():
    assert [cell["execution_count"] for cell in CELLS] == [*range(1, len(CELLS) + 1)]
    assert FILE.stat().st_size < 600_000
    for cell in CELLS:
        for output in cell["outputs"]:
            assert output["output_type"] in ("stream", "display_data")
            assert output.get("name") != "stderr"
    assert all(CELLS[i]["outputs"] for i in range(1, len(CELLS)))
    texts = re.sub(r'"image/png": "[^"]*"', "", FILE.read_text())
    assert not re.search(r"(?<![\w.])/(?:home|root|tmp|usr|work|opt|Users|mnt|var)/|\b[A-Z]:\\|~/",
                         texts)
