"""Every command of the README runs, word for word, with settings that make it small."""
import re
import runpy
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import test_faults
import torch
from PIL import Image
from test_faults import life

import data
import ddpm
import inpaint
import masks

ROOT = Path(__file__).parents[1]
SMALL = {"train.py": "--steps 2 --limit 3 --size 16 --widths 8 --patch 1 --batch 2 --every 1",
         "inpaint.py": "--steps 2 --samples 1",
         "evaluate.py": "--limit 3 --steps 2 --samples 2 --masks center --batch 2",
         "bench.py": "--size 16 --widths 8 8 --repeats 1 --calls 2",
         "figures.py": "", "demo.py": ""}
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^ {4}(?:\./run )?python ((\w+\.py)[^#\n]*)", README, re.MULTILINE)
BLOCKS = [re.sub("^ {4}", "", block, flags=re.MULTILINE)
          for block in re.findall(r"(?:^ {4}.*\n)+", README, re.MULTILINE)]
(MASK,), (METHOD,) = ([block for block in BLOCKS if block.startswith(f"def {name}(")]
                      for name in ("border", "inpaint"))


def test_the_readme_names_the_commands():
    assert {script for _, script in COMMANDS} == set(SMALL)


def test_the_pictures_and_files_that_it_links_are_there():
    links = re.findall(r"\]\((?!https:)([^)]+)\)", README)
    assert len(links) > 20
    for link in links:
        assert (ROOT / link).exists(), link


def test_what_the_tour_names_is_there():
    """Files, test files, and names such as DDPM.q_step."""
    tour = README.partition("## The tour")[2].partition("\n## ")[0]
    for name in re.findall(r"`([\w/.]+)`", tour):
        file, _, attribute = name.partition(".")
        if name.endswith(".py"):
            assert (ROOT / name).exists() or (ROOT / "tests" / name).exists(), name
        else:
            assert file == "DDPM" and hasattr(ddpm.DDPM, attribute), name


def test_each_row_of_what_was_tried_names_tests():
    words = re.findall(r"\| `\"?([^`|]+?)\"?` \|$", README.partition("## Nothing lost")[2], re.MULTILINE)
    assert len(words) > 10
    for word in " or ".join(words).split(" or "):
        assert any(name.startswith("test") and word in name for name in vars(test_faults)), word


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
    flowers = tmp_path / "PATH" / "TO" / "flowers"
    flowers.mkdir()
    for i in range(12):
        Image.new("RGB", (40, 30), (20 * i, 99, 50)).save(flowers / f"{i}.png")
    (tmp_path / "flat.py").write_text(METHOD)
    Image.new("L", (64, 64), 255).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    for command, script in COMMANDS:
        if script == "demo.py":
            serves([sys.executable, ROOT / script], tmp_path)
            continue
        status, said = life(lambda: runpy.run_path(str(ROOT / script), run_name="__main__"),
                            *command.split()[1:], *SMALL[script].split())
        assert status == 0, f"{command}\n{said}"
    assert (tmp_path / "out" / "astronaut.png").exists()
    assert (tmp_path / "out" / "folder" / "a_0.png").exists()
    given, hole, flat = (np.asarray(Image.open(tmp_path / f"out/flat/astronaut_{name}.png")) / 1.0
                         for name in ("input", "hole", "0"))
    assert np.abs(flat[hole > 0] - given[hole == 0].mean(axis=0)).max() <= 1
    assert (tmp_path / "runs" / "celeba64" / "weights.pt").exists()
    assert (tmp_path / "runs" / "flowers" / "weights.pt").exists()
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
