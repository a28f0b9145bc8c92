"""Every `python …` command of the README runs, word for word, with settings that make it small;
git, pip, pytest and torchrun are left to CI and to other tests."""
import re
import runpy
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
import ddpm
import inpaint
import masks
from helpers import life

ROOT = Path(__file__).parents[1]
SMALL = {"train.py": "--steps 2 --limit 3 --size 16 --widths 8 --patch 1 --batch 2 --every 1",
         "inpaint.py": "--steps 2 --samples 1",
         "evaluate.py": "--limit 3 --steps 2 --samples 2 --masks center --batch 2",
         "tools.demo": ""}
KINDS = ("kills", "faults", "strangers", "unet", "windows", "baselines", "photographs",
         "demo")                                                      # with tests of docs/faults.md
README, FAULTS = ((ROOT / name).read_text() for name in ("README.md", "docs/faults.md"))
COMMANDS = re.findall(r"^ {4}(?:\./run )?python (?:-m )?(([\w.]+)[^#\n]*)", README, re.MULTILINE)
BLOCKS = [re.sub("^ {4}", "", block, flags=re.MULTILINE)
          for block in re.findall(r"(?:^ {4}.*\n)+", README, re.MULTILINE)]
(MASK,), (METHOD,) = ([block for block in BLOCKS if block.startswith(f"def {name}(")]
                      for name in ("border", "inpaint"))


def test_the_readme_names_the_commands():
    assert {script for _, script in COMMANDS} == set(SMALL)


@pytest.mark.parametrize("page", ["README.md", "weights/README.md", "docs/benchmark.md",
                                  "docs/calls.md", "docs/choices.md", "docs/faults.md",
                                  "docs/older-ways.md", "docs/references.md", "docs/speed.md"])
def test_the_pictures_and_files_that_a_page_links_are_there(page):
    links = re.findall(r"\]\((?!https:|#)([^)]+)\)", (ROOT / page).read_text())
    assert len(links) > 20 or page != "README.md"
    for link in links:
        assert (ROOT / page).parent.joinpath(link).exists(), link


def test_the_references_are_the_papers_that_are_cited():
    """By the first author and the year, such as Ho et al. 2020; Li and He 2025; Bishop 2006."""
    listed = re.findall(r"^- ([A-Z]\w+).*? (\d{4}b?)\.", (ROOT / "docs/references.md").read_text(),
                        re.MULTILINE)
    pages = [*ROOT.glob("*.py"), *ROOT.glob("baselines/*.py"), *ROOT.glob("support/*.py"),
             *(page for page in ROOT.glob("docs/*.md") if page.name != "references.md"),
             ROOT / "weights/README.md"]
    text = " ".join(re.sub(r"[\s#]+", " ", page.read_text()) for page in pages)
    several = r"(?:,? et al\.,?|(?:,| and) (?:[A-Z][\w-]+,? )*[A-Z]\w+)"
    cited = {*re.findall(rf"([A-Z]\w+){several} ((?:19|20)\d\db?)", text), ("Bishop", "2006")}
    assert len(cited) > 40 and cited == set(listed)


def test_the_library_example_runs(monkeypatch):
    names = {}
    exec(re.search(r"```python\n(.*?)```", README, re.DOTALL)[1], names)
    assert names["fills"].shape == (2, 4, 64, 64, 3) and names["fills"].dtype == torch.uint8


def test_what_the_course_table_names_is_there():
    """Files, and names such as DDPM.q_step."""
    tour = README.partition("## The course")[2].partition("\n## ")[0]
    for name in re.findall(r"`([\w/.]+)`", tour):
        file, _, attribute = name.partition(".")
        if name.endswith(".py"):
            assert (ROOT / name).exists(), name
        elif file == "DDPM":
            assert hasattr(ddpm.DDPM, attribute), name


def test_each_row_of_what_was_tried_names_tests():
    words = re.findall(r"\| `\"?([^`|]+?)\"?` \|$", FAULTS, re.MULTILINE)
    assert len(words) > 10
    names = [name for kind in KINDS for name in re.findall(
        r"^def (test_\w+)", (ROOT / f"tests/test_{kind}.py").read_text(), re.MULTILINE)]
    for word in " or ".join(words).split(" or "):
        assert any(word in name for name in names), word


def test_its_own_mask_is_a_hole():
    names = vars(masks).copy()
    exec(MASK, names)
    hole = names["border"](3, 16)
    assert torch.equal(hole + masks.center(3, 16), torch.ones(3, 1, 16, 16))


@pytest.mark.skipif(not inpaint.WEIGHTS.exists(), reason="no shipped weights yet")
def test_the_readmes_commands_run(tmp_path, monkeypatch):
    """In the README's order, as one user would: what one command leaves, the next goes on from."""
    celeba = tmp_path / "PATH" / "TO" / "celeba" / "img_align_celeba"
    celeba.mkdir(parents=True)
    (tmp_path / "folder").mkdir()
    names = [celeba / f"{number:06}.jpg" for number in
             (1, 2, 3, 162_771, 162_772, 162_773, 182_638, 182_639, 182_640)]
    faces = data.synthetic(11, 64).numpy()
    for name, face in zip([*names, tmp_path / "photo.jpg", tmp_path / "folder" / "a.png"], faces):
        Image.fromarray(face).save(name)
    faces_folder = tmp_path / "PATH" / "TO" / "faces"
    faces_folder.mkdir()
    for i in range(12):
        Image.new("RGB", (40, 30), (20 * i, 99, 50)).save(faces_folder / f"{i}.png")
    (tmp_path / "flat.py").write_text(METHOD)
    for mask in ("mask.png", "masks/a.png", "PATH/TO/masks/0.png"):
        (tmp_path / mask).parent.mkdir(exist_ok=True)
        Image.new("L", (64, 64), 255).save(tmp_path / mask)
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    monkeypatch.chdir(tmp_path)
    for command, script in COMMANDS:
        if script == "tools.demo":
            serves([sys.executable, "-m", script], ROOT)
            continue
        small = SMALL[script] if "--init" not in command else "--steps 1 --batch 1 --every 1"
        if "--masks" in command:
            small = small.replace("--masks center", "")
        status, said = life(lambda: runpy.run_path(str(ROOT / script), run_name="__main__"),
                            *command.split()[1:], *small.split())
        assert status == 0, f"{command}\n{said}"
    assert (tmp_path / "out" / "astronaut.png").exists()
    assert (tmp_path / "out" / "folder" / "a_0.png").exists()
    given, hole, flat = (np.asarray(Image.open(tmp_path / f"out/flat/astronaut_{name}.png")) / 1.0
                         for name in ("input", "hole", "0"))
    assert np.abs(flat[hole > 0] - given[hole == 0].mean(axis=0)).max() <= 1
    assert (tmp_path / "runs" / "celeba64" / "weights.pt").exists()
    assert (tmp_path / "runs" / "faces" / "weights.pt").exists()
    assert (tmp_path / "results" / "latest" / "table.md").exists()


def serves(words, folder):
    """It says where its page is, and ends when told to; or, without gradio, what is missing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        words = [*words, "--port", str(server.getsockname()[1])]
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as process:
        if process.stdout.readline():
            assert find_spec("gradio")
            process.terminate()
        error = process.stderr.read()
    assert process.returncode == (130 if find_spec("gradio") else 2), error
    assert find_spec("gradio") or "pip install -r requirements-demo.txt" in error
