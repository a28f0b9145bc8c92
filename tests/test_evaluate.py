"""The evaluation as a user runs it: the files it leaves, runs cut off and resumed and shared out,
methods and fills of strangers, every mistake named."""
import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import data
import evaluate
import inpaint
import masks
import methods
import report
import scores
from helpers import save_weights
from support.cli import BadInput

SIZE, N = 16, 8
HELD_OUT = next(i for i in range(99) if data.split_of(f"{i}.png") != "train")
SMALL = (f"--data synthetic --limit {N} --batch 2 --steps 2 --samples 3 --no-perceptual "
         "--device cpu --methods keep,masked --masks center,irregular --out out").split()
STRANGERS = {
    "noise.py": """
import os
import torch
from ddpm import randn_like

def inpaint(image, hole, generator):
    with open(f"calls{os.environ.get('RANK')}", "a") as calls:
        calls.write(".")
    return torch.where(hole > 0, randn_like(image, generator).clamp(-1, 1), image)
""", "learned.py": """
import torch
import data
import inpaint
DRAWS = False

def fit(images):
    assert images.dtype == torch.uint8 and images.shape[1:] == (16, 16, 3)
    face = data.to_float(images[:]).mean(dim=0)
    return lambda image, hole, generator: torch.where(hole > 0, face, image)
""", "flat.py": """
DRAWS = False

def inpaint(image, hole, generator):
    return image + hole / 2
""", "neither.py": "import inpaint", "broken.py": "def inpaint(", "lonely.py": "import nobody_s",
    "arrays.py": """
import flat
DRAWS = False

def inpaint(image, hole, generator):
    return flat.inpaint(image, hole, generator).numpy()
"""}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_weights(tmp_path_factory.mktemp("weights"), SIZE, [8])


@pytest.fixture
def command(weights, as_user):
    """Run evaluate.py with SMALL and more arguments, where STRANGERS lie."""
    for name, source in STRANGERS.items():
        Path(name).write_text(source)

    return lambda *argv: as_user(evaluate, *SMALL, "--weights", weights, *argv)


def refused(answer, *said):
    """Whether the command ended with status 2 and a line, below the progress, that says so."""
    status, printed, err = answer
    *progress, last = err.splitlines()
    return (status == 2 and not printed and last.startswith("evaluate.py: ")
            and all(words in last for words in said)
            and {line[:7] for line in progress} <= {"", "to do: ", "scored ", "other i", "scoring"})


def lines(out="out"):
    """scores.csv, whatever the order of its lines."""
    return sorted(Path(out, "scores.csv").read_text().splitlines())


def rows(out="out"):
    """scores.csv as {(image, mask, method): {score: value}}."""
    with open(Path(out, "scores.csv"), newline="") as file:
        return {(int(row.pop("image")), row.pop("mask"), row.pop("method")):
                {key: float(value) for key, value in row.items()} for row in csv.DictReader(file)}


def results(out="out"):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(Path(out, "results.json").read_text(), parse_constant=refuse)


def contents(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_run_leaves_a_table_every_score_the_settings_the_holes_and_a_picture(command):
    status, printed, _ = command("--seed", 3)
    assert status == 0 and {path.name for path in Path("out").iterdir()} == {
        "table.md", "scores.csv", "results.json", "holes.npz", "preview.png"}
    assert Path("out/table.md").read_text() == printed
    scored, told = rows(), results()
    families, methods = ("center", "irregular"), ("keep", "masked")
    assert list(scored) == [(i, *place) for place in product(families, methods) for i in range(N)]
    columns = [*scores.SCORES, "variance", "error", "area"]
    assert all(list(row) == columns for row in scored.values())

    asked = json.loads(json.dumps(vars(evaluate.parse()), default=str))
    assert asked["seed"] == 3 and asked.items() <= told["settings"].items()
    assert told["versions"]["torch"] == torch.__version__ and told["versions"]["processes"] == 1
    assert [(r["mask"], r["method"]) for r in told["results"]] == list(product(families, methods))
    for r in told["results"]:
        draws = r["method"] == "keep"
        assert (r["n"], r["samples"], r["calls"]) == (N, 3 if draws else 1, 2 if draws else 0)
        mean, low, high = r["crps"]
        assert mean == pytest.approx(np.mean([scored[i, r["mask"], r["method"]]["crps"]
                                              for i in range(N)]))
        assert low < mean < high and r["lpips"] == [None] * 3
        assert f"| {r['mask']} | {r['method']} | {N} | {r['psnr_hole'][0]:.2f} ± " in printed

    holes = np.load("out/holes.npz")
    assert list(holes) == list(families)
    for mask in families:
        hole = masks.MASKS[mask](N, SIZE, torch.Generator().manual_seed(3))
        assert (holes[mask] == hole.numpy()).all()
    picture = np.asarray(Image.open("out/preview.png"))[:, -N * SIZE:]
    given, kept, masked, *_, original = picture.reshape(-1, SIZE, N * SIZE, 3)
    images = data.load("synthetic", "test", SIZE, limit=N).numpy()
    assert (original == np.concatenate(images, axis=1)).all()
    assert (given == masked).all() and (given != kept).any() and len(picture) == 7 * SIZE


# ---- cut off, resumed, shared out, shuffled --------------------------------------------------

def cut_off(command, monkeypatch, *argv, after=5):
    """Begin a run that is interrupted at its sixth batch of sixteen."""
    with monkeypatch.context() as patch:
        score, calls = scores.score, []

        def interrupted(*args):
            if len(calls) == after:
                raise KeyboardInterrupt
            calls.append(1)
            return score(*args)

        patch.setattr(scores, "score", interrupted)
        assert command(*argv)[0] == 130
    assert len(list(Path("out/parts").glob("*.npz"))) == after


def test_an_interrupted_run_goes_on_where_it_was(command, monkeypatch):
    command("--out", "whole")
    cut_off(command, monkeypatch)
    part = next(Path("out/parts").glob("0.0.*"))     # a batch that a kill caught midway
    part.rename(part.with_name(f".{part.name}.1.tmp")).write_bytes(part.name.encode())
    before = contents("out")
    assert refused(command(), "go on with --resume") and contents("out") == before
    drawn, draw_fills = [], evaluate.draw_fills
    monkeypatch.setattr(evaluate, "draw_fills", lambda *a: drawn.append(a) or draw_fills(*a))
    Path("out/parts/mine").mkdir()
    assert command("--resume")[0] == 0 and len(drawn) == 16 - 5 + 1
    assert Path("out/scores.csv").read_bytes() == Path("whole/scores.csv").read_bytes()
    assert [path.name for path in Path("out/parts").iterdir()] == ["mine"]


def test_a_part_is_written_whole_or_not_at_all(command, monkeypatch):
    def torn(file, **arrays):
        file.write(b"half a part")
        raise KeyboardInterrupt

    command("--out", "whole")
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", torn)
        assert command()[0] == 130
    assert [path.name for path in Path("out/parts").iterdir()] == ["settings.json"]
    assert command("--resume")[0] == 0 and lines("out") == lines("whole")


@pytest.mark.parametrize("change, named", [
    (["--seed", "1"], "seed"), (["--steps", "3"], "steps"), (["--batch", "3"], "batch"),
    (["--train", "elsewhere"], "train"), (["--limit", "5"], "limit"),
    (["--weights", "other.pt"], "weights"), ("mine.pt", "content of mine.pt"),
    ("noise.py", "content of noise.py"), ("colours.pt", "content of colours.pt"),
    ("fills/center/flat/00003_0.png", "content of fills/center/flat"),
])
def test_a_run_does_not_go_on_with_other_settings(command, faces, monkeypatch, tmp_path, weights,
                                                  change, named):
    """Nor with another content of the files that it was begun with."""
    shutil.copy(weights, "mine.pt")
    save_weights(tmp_path, SIZE, [8], seed=1).rename("other.pt")
    command("--methods", "flat.py", "--save", "--out", ".")
    same = ["--weights", "mine.pt", "--methods", "keep,noise.py", "--from", "fills", *FEATURES]
    cut_off(command, monkeypatch, *same)
    if change == "mine.pt":
        shutil.copy("other.pt", change)
    elif change == "noise.py":
        Path(change).write_text(STRANGERS["flat.py"])
    elif "flat" in change:
        shutil.copy("fills/center/flat/00002_0.png", change)
    elif change == "colours.pt":
        torch.jit.script(torch.nn.Flatten()).save(change)
    before = contents("out")
    answer = command(*same, "--resume", *(change if isinstance(change, list) else []))
    assert refused(answer, "--resume with other settings", f": {named}")
    assert contents("out") == before


def test_a_run_does_not_go_on_with_other_weights_of_a_baseline(command, monkeypatch, tmp_path):
    monkeypatch.setattr(inpaint, "WEIGHTS", tmp_path / "celeba64.pt")
    (tmp_path / "biharmonic.pt").write_bytes(b"before")              # as glcic has
    cut_off(command, monkeypatch, "--methods", "biharmonic,flat.py")
    (tmp_path / "biharmonic.pt").write_bytes(b"after")
    assert refused(command("--methods", "biharmonic,flat.py", "--resume"),
                   "--resume with other settings", "biharmonic.pt")


@pytest.mark.parametrize("name", ["table.md", "scores.csv", "holes.npz", "preview.png"])
def test_a_file_of_the_same_name_that_is_no_result_is_not_written_over(command, name):
    Path("out").mkdir()
    Path("out", name).write_text("mine")
    assert refused(command(), f"out/{name} is not of an evaluation: name another --out")
    assert [path.read_text() for path in Path("out").iterdir()] == ["mine"]
    Path("out", name).unlink()
    assert command()[0] == 0 and command()[0] == 0                   # over its own, as before


def test_a_run_does_not_go_on_with_other_images_to_learn_from(command, faces, monkeypatch):
    cut_off(command, monkeypatch, "--methods", "keep,mean", "--train", "faces")
    path = next(path for path in Path("faces").iterdir() if data.split_of(path.name) == "train")
    path.unlink()
    status, _, said = command("--methods", "keep,mean", "--train", "faces", "--resume")
    assert status == 2 and "--resume with other settings" in said and ": training images" in said


def test_two_processes_share_the_work_and_score_what_one_does(command, weights):
    settings = "--methods keep,noise.py --samples 1 --features unet --reference held-out".split()
    command(*settings, "--out", "one")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         evaluate.__file__, *SMALL, "--weights", weights, *settings], capture_output=True,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert results()["versions"]["processes"] == 2 and not Path("out/parts").exists()
    calls = [len(Path(f"calls{rank}").read_text()) for rank in (0, 1)]
    assert min(calls) > 0 and sum(calls) == 8
    one, two = rows("one"), rows("out")
    assert list(one) == list(two)
    np.testing.assert_allclose([list(row.values()) for row in two.values()],
                               [list(row.values()) for row in one.values()], rtol=1e-9)
    for mine, theirs in zip(results("one")["results"], results()["results"]):
        assert mine["fd_unet"] == pytest.approx(theirs["fd_unet"])
        assert mine["kd_unet"] == pytest.approx(theirs["kd_unet"])


def test_neither_the_order_of_methods_and_masks_nor_their_company_changes_a_number(command):
    command("--methods", "keep,noise.py,masked", "--masks", "irregular,random")
    command("--methods", "masked,noise.py,keep", "--masks", "random,irregular", "--out", "other")
    command("--methods", "noise.py", "--masks", "random", "--out", "alone")
    assert lines("out") == lines("other") and set(lines("alone")) < set(lines("out"))


def test_the_size_of_a_batch_changes_no_number(command):
    for batch in (1, 4, 6):
        command("--methods", "keep,noise.py", "--eta", 1, "--batch", batch, "--out", batch)
    for batch in ("4", "6"):
        for place, row in rows("1").items():
            assert rows(batch)[place] == pytest.approx(row, rel=1e-3, nan_ok=True)


# ---- methods ---------------------------------------------------------------------------------

def test_strangers_methods_stand_beside_our_own(command):
    assert command("--methods", "mean,learned.py,noise.py,flat.py", "--masks", "random")[0] == 0
    scored = rows()
    samples = {r["method"]: r["samples"] for r in results()["results"]}
    assert samples == {"mean": 1, "learned.py": 1, "noise.py": 3, "flat.py": 1}
    for i in range(N):
        ours, theirs = scored[i, "random", "mean"], scored[i, "random", "learned.py"]
        assert theirs == pytest.approx(ours, rel=0.01, nan_ok=True)
        assert math.isnan(theirs["spread"]) and scored[i, "random", "noise.py"]["spread"] > 50


@pytest.mark.parametrize("fill, said", [
    ("image + 0.1", "known"), ("image / 2 + 0.5", "known"), ("(image + 1) * 127.5", "known"),
    ("image + hole * float('nan')", "finite"), ("image[:, :1]", "shape"), ("image[:1]", "shape"),
])
def test_a_broken_method_is_refused_by_name_and_mended(command, fill, said):
    Path("broken.py").write_text(f"def inpaint(image, hole, generator):\n    return {fill}")
    assert refused(command("--methods", "broken.py"), "method broken.py: a fill must", said)
    Path("broken.py").write_text(STRANGERS["flat.py"])
    assert command("--methods", "broken.py")[0] == 0, "nothing stands in the mended one's way"


def test_no_method_learns_from_what_it_is_scored_on(command):
    """Scene Completion would find each picture in its own index, and paste it."""
    words = "--masks", "center", "--split", "train", "--limit", "3"
    answer = command(*words, "--methods", "scene_completion")
    assert refused(answer, "images that are scored", "--train"), answer
    assert command(*words, "--methods", "masked", "--out", "other")[0] == 0       # learns nothing


@pytest.mark.parametrize("names, why", [
    (range(9), "images that are scored are among"), ([HELD_OUT], "no image of the train split")])
def test_a_default_method_that_cannot_learn_honestly_is_left_out(
        as_user, weights, tmp_path, names, why):
    (tmp_path / "few").mkdir()
    for name, face in zip(names, data.synthetic(9, SIZE, seed=7).numpy()):
        Image.fromarray(face).save(tmp_path / f"few/{name}.png")
    words = ("--data few --split all --steps 2 --samples 1 --no-perceptual --device cpu "
             "--masks center --out out --weights").split()
    status, printed, err = as_user(evaluate, *words, weights)
    assert status == 0 and "mean left out: " in err and why in err
    assert [r["method"] for r in results()["results"]] == ["keep", "biharmonic", "masked"]
    others = "--train", "synthetic", "--out", "others"
    assert as_user(evaluate, *words, weights, *others)[0] == 0
    assert "mean" in {r["method"] for r in results("others")["results"]}
    assert refused(as_user(evaluate, *words, weights, "--methods", "mean", "--out", "named"), why)


def example(B=3, size=24):
    hole = masks.random(B, size, torch.Generator().manual_seed(0))
    return data.synthetic(B, size), hole


def test_keep_is_the_sampler_with_the_steps_and_eta_asked_for(weights):
    ddpm, net, _ = inpaint.load_weights(weights)
    images, hole = example(size=SIZE)
    fills = evaluate.draw_fills("keep", methods.find("keep", ddpm, net, 4, 1.0), images, hole, 1, 0)
    known = torch.where(hole > 0, 0.0, data.to_float(images))
    seeded = [torch.Generator().manual_seed(inpaint.noise_seed(0, *pair, 0))
              for pair in zip(known, hole)]
    x = ddpm.sample(net, data.to_float(images), hole, 4, 1.0, seeded)
    assert torch.equal(fills[:, 0], data.to_uint8(x))


def test_no_method_is_shown_what_lies_under_the_hole():
    def peek(image, hole, generator):
        assert (image[hole.expand_as(image) > 0] == 0).all()
        return image

    evaluate.draw_fills("peek", SimpleNamespace(inpaint=peek), *example(), 1, 0)


def test_noise_depends_on_seed_image_hole_and_sample_alone():
    images, hole = example()

    def noise(image, hole, generators):
        drawn = torch.stack([torch.rand(image[0].shape, generator=g) for g in generators])
        return torch.where(hole > 0, drawn, image)

    def draw(images=images, hole=hole, samples=2, seed=5):
        return evaluate.draw_fills("noise", SimpleNamespace(inpaint=noise), images, hole, samples,
                                   seed)

    assert torch.equal(draw()[2:], draw(images[2:], hole[2:]))
    assert torch.equal(draw(), draw(samples=3)[:, :2])
    below = torch.where(hole.permute(0, 2, 3, 1) > 0, 9, images)          # never looked at
    assert torch.equal(draw()[:, :, 12][..., :3], draw(below)[:, :, 12])
    others = draw(seed=6), draw(1 + images // 2), draw().roll(1, dims=1), draw().roll(1, dims=0)
    inside = hole.permute(0, 2, 3, 1)[:, None].expand_as(draw()) > 0
    for other in others:
        assert (draw() == other)[inside].float().mean() < 0.02
    larger = torch.maximum(hole, masks.center(3, 24))
    assert (draw() == draw(hole=larger))[inside].float().mean() < 0.02


def test_an_evaluated_fill_is_drawn_again_by_inpaint_py(command, as_user, weights):
    """From its input and hole as PNGs, under any name; in a folder, each face has its own noise."""
    command("--masks", "irregular", "--methods", "keep", "--save", "--limit", "2", "--samples", "2")
    Path("again").mkdir()
    for i in range(2):
        folder = Path("out/fills/irregular")
        Image.open(folder / f"_input/{i:05}.png").save(f"again/face{i}.png")
        status, printed, error = as_user(
            inpaint, f"again/face{i}.png", "--mask", folder / f"_hole/{i:05}.png", "--weights",
            weights, "--steps", 2, "--samples", 2, "--out", f"filled{i}", "--device", "cpu")
        assert status == 0, error
        for k in range(2):
            one, two = (np.asarray(Image.open(path)).astype(int) for path in
                        (folder / f"keep/{i:05}_{k}.png", f"filled{i}/face{i}_{k}.png"))
            assert np.abs(one - two).max() <= 1          # batches of other sizes round differently


# ---- fills from files ------------------------------------------------------------------------

def read(path):
    return torch.from_numpy(np.array(Image.open(path)))


def test_saved_fills_are_what_was_scored_and_score_the_same_again(command):
    command("--samples", 5, "--methods", "noise.py", "--save")           # more than are saved next
    command("--methods", "keep,noise.py,flat.py", "--save")
    images, fills = data.load("synthetic", "test", SIZE, limit=N), Path("out/fills")
    for mask, hole in np.load("out/holes.npz").items():
        inside, folder = torch.from_numpy(hole).permute(0, 2, 3, 1), fills / mask
        assert {path.name for path in folder.iterdir()} == {
            "_input", "_hole", "keep", "noise", "flat"}
        for i in range(N):
            assert (read(folder / f"_hole/{i:05}.png") == 255 * inside[i, :, :, 0]).all()
            assert (read(folder / f"_input/{i:05}.png")
                    == torch.where(inside[i] > 0, 128, images[i])).all()
        saved = torch.stack([torch.stack([read(folder / f"keep/{i:05}_{k}.png") for k in range(3)])
                             for i in range(N)])
        scored = scores.score(images, saved, torch.from_numpy(hole).float())
        for i in range(N):
            assert rows()[i, mask, "keep"] == pytest.approx(
                {key: value[i].item() for key, value in scored.items()}, nan_ok=True)

    assert command("--from", "out/fills", "--out", "again", "--methods", "masked")[0] == 0
    again = [line for line in lines("again") if ",masked," not in line]
    assert again == [line.replace(".py", "") for line in lines("out")]


@pytest.mark.parametrize("damage, said", [
    (lambda folder: (folder / "00003_0.png").unlink(), "irregular/theirs: 00003_0.png is missing"),
    (lambda folder: Image.new("RGB", (8, 8)).save(folder / "00001_0.png"), "of 16×16 pixels"),
    (lambda folder: Image.new("RGB", (SIZE, SIZE)).save(folder / "00001_0.png"), "method theirs"),
    (lambda folder: shutil.copy(folder / "00001_0.png", folder / "00001_1.png"),
     "00001_1.png is one more than image 00000 has"),
    (lambda folder: shutil.copy(folder / "00001_0.png", folder / "00001_2.png"), "00001_2.png"),
    (lambda folder: shutil.copy(folder / "00000_0.png", folder / "00000_1.png"),
     "00001_1.png is missing"),
    (lambda folder: (folder / "00001_0.png").write_bytes(b"no image"), "theirs/00001_0.png: not a"),
    (shutil.rmtree, "irregular/theirs"),
])
def test_a_strangers_damaged_fills_are_refused_by_name(command, damage, said):
    command("--methods", "flat.py", "--save")
    for mask in ("center", "irregular"):
        Path("out/fills", mask, "flat").rename(Path("out/fills", mask, "theirs"))
    assert command("--from", "out/fills", "--out", "good", "--methods", "masked")[0] == 0
    damage(Path("out/fills/irregular/theirs"))
    assert refused(command("--from", "out/fills", "--out", "bad", "--methods", "masked"), said)
    assert Path("bad/parts").exists() == said.startswith(("theirs", "method", "of "))   # seen late


# ---- holes from files ------------------------------------------------------------------------

def mask_file(path, size, box):
    picture = Image.new("L", size)
    picture.paste(255, box)
    picture.save(path)


def test_a_folder_of_masks_is_used_in_order_and_again_from_its_start(command):
    """Of any size, cut to the middle square as photographs are; one file is for all images."""
    Path("sets/four.quarters").mkdir(parents=True)
    mask_file("sets/four.quarters/a.png", (64, 64), (0, 0, 32, 64))           # left
    mask_file("sets/four.quarters/b.png", (40, 20), (0, 0, 40, 10))           # top
    mask_file("sets/four.quarters/c.png", (8, 8), (4, 4, 8, 8))
    Path("sets/four.quarters/notes.txt").write_text("no image")
    mask_file("sets/one.png", (40, 20), (10, 0, 20, 20))                      # left, of the square
    status, printed, err = command("--masks", "sets/four.quarters,center,sets/one.png", "--methods",
                                   "masked", "--save")
    assert status == 0, err
    holes, half = np.load("out/holes.npz"), SIZE // 2
    assert list(holes) == ["four.quarters", "center", "one"]
    assert "| four.quarters | masked |" in printed
    left, top, corner = (np.zeros((1, SIZE, SIZE)) for _ in range(3))
    left[:, :, :half] = top[:, :half] = corner[:, half:, half:] = 1
    assert (holes["four.quarters"] == np.stack([left, top, corner] * 3)[:N]).all()
    assert (holes["one"] == left).all() and len(holes["one"]) == N
    assert (read("out/fills/four.quarters/_hole/00004.png").numpy() == 255 * top[0]).all()
    scored = rows()
    assert [scored[i, "four.quarters", "masked"]["area"] for i in range(3)] == [0.5, 0.5, 0.25]


def test_of_more_masks_than_images_every_so_many_is_used_and_lamas_by_their_names(tmp_path):
    for i in range(10):
        mask_file(tmp_path / f"{i}.png", (16, 16), (0, 0, 16, i + 1))
    for n, rows in ((4, [1, 3, 6, 8]), (8, [1, 2, 3, 4, 6, 7, 8, 9]), (12, [*range(1, 11), 1, 2])):
        heights = evaluate.read_holes(tmp_path, n, 16, "centre140").sum(dim=(1, 2, 3)) / 16
        assert heights.tolist() == rows
    mask_file(tmp_path / "9_mask000.png", (16, 16), (0, 0, 16, 12))
    assert (evaluate.read_holes(tmp_path, 4, 16, "centre140").sum(dim=(1, 2, 3)) / 16 == 12).all()


def test_paint_on_a_transparent_ground_is_the_hole_as_it_is_to_inpaint(tmp_path):
    layer = Image.new("RGBA", (16, 16))
    layer.paste((0, 0, 0, 255), (0, 0, 4, 16))
    layer.save(tmp_path / "painted.png")
    hole = evaluate.read_holes(tmp_path / "painted.png", 1, 16, "centre140")
    assert torch.equal(hole, (torch.arange(16) < 4).float().expand(1, 1, 16, 16))


def test_what_is_hole_is_decided_by_the_whole_mask_as_in_inpaint(tmp_path):
    """Not by the part that is cut out of it, which may hold two values by chance."""
    grey = np.zeros((16, 32), np.uint8)
    grey[:, 8:24], grey[:4, 8:24], grey[:, :8] = 9, 0, 200
    Image.fromarray(grey).save(tmp_path / "soft.png")
    with pytest.raises(BadInput, match="no hole is left"):
        evaluate.read_holes(tmp_path / "soft.png", 1, 16, "centre140")
    Image.new("L", (16, 16), 100).save(tmp_path / "constant.png")
    with pytest.raises(BadInput, match="no hole is left"):
        evaluate.read_holes(tmp_path / "constant.png", 1, 16, "centre140")
    mask_file(tmp_path / "good.png", (16, 16), (0, 0, 4, 16))
    (tmp_path / "set").mkdir()
    shutil.copy(tmp_path / "good.png", tmp_path / "set" / "a.png")
    (tmp_path / "set" / "._a.png").write_bytes(b"of a Mac")
    assert len(evaluate.read_holes(tmp_path / "set", 2, 16, "centre140")) == 2


def test_a_mask_without_a_hole_and_a_folder_without_a_mask_are_refused(command):
    Image.new("L", (8, 8)).save("black.png")
    Path("empty").mkdir()
    assert refused(command("--masks", "black.png"), "black.png: no hole is left", "white")
    assert refused(command("--masks", "empty"), "/empty: no image in it")
    assert refused(command("--masks", "black.png,empty/../black.png"), "two of one name")
    Path("empty").rename("center")
    assert refused(command("--masks", "center,./center"), "two of one name")


def test_a_run_does_not_go_on_with_another_content_of_its_masks(command, monkeypatch):
    mask_file("mask.png", (16, 16), (0, 0, 8, 8))
    same = ("--masks", "mask.png,center", "--methods", "masked,flat.py")
    cut_off(command, monkeypatch, *same)
    mask_file("mask.png", (16, 16), (0, 0, 8, 9))
    assert refused(command(*same, "--resume"), "--resume with other settings", ": holes")


# ---- tables ----------------------------------------------------------------------------------

def test_a_hole_of_exactly_a_tenth_belongs_to_the_bin_that_ends_there():
    """The bins of Liu et al. 2018 are (0, 0.1], (0.1, 0.2], …; areas are single precision."""
    areas = np.float32([0.1, 0.2, 0.3, 0.6, 0.7, 0.1001, 1]).astype(np.float64)
    values = {key: np.ones(7) for key in (*scores.SCORES, "variance", "error")}
    values |= {"area": areas, "samples": np.ones(1), "calls": np.ones(1), "seconds": np.ones(1),
               "scoring": np.ones(1)}
    told = report.by_area(SimpleNamespace(masks=["a"], methods=["b"]), {("a", "b"): values})
    assert [(r["mask"], r["n"]) for r in told] == [
        ("0–10 %", 1), ("10–20 %", 2), ("20–30 %", 1), ("50–60 %", 1), ("60–70 %", 1),
        ("90–100 %", 1)]


def test_masks_and_methods_of_any_name_are_kept_apart(command):
    """Joined by a dot, (a, b.c) and (a.b, c) would be one."""
    for name, box in (("a.png", (0, 0, 8, 8)), ("a.b.png", (8, 8, 16, 16)),
                      ("file.png", (0, 8, 8, 16))):
        mask_file(name, (16, 16), box)
    shutil.copy("noise.py", "c.py")
    shutil.copy("flat.py", "b.c.py")
    names = "--masks", "a.png,a.b.png,file.png", "--methods", "c.py,b.c.py"
    assert command(*names)[0] == 0
    for one in ("a.png", "a.b.png"):
        command("--masks", one, "--methods", "b.c.py", "--out", "alone")
        alone = {key[0]: row["psnr_hole"] for key, row in rows("alone").items()}
        assert alone == {i: row["psnr_hole"] for (i, mask, name), row in rows().items()
                         if (mask, name) == (Path(one).stem, "b.c.py")}
    assert set(np.load("out/holes.npz")) == {"a", "a.b", "file"}


def test_a_method_may_be_written_with_dataclasses(command):
    Path("modern.py").write_text("""
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Settings:
    shift: float = 0.5

def inpaint(image, hole, generator):
    return image + hole * Settings().shift
""")
    assert command("--methods", "modern.py", "--masks", "center")[0] == 0


def test_results_do_not_become_data(command, faces):
    assert refused(command("--data", "faces", "--out", "faces/run"), "faces/run lies in faces")


def test_the_settings_reach_the_method(command, monkeypatch):
    """--seed draws other noise in the same hole; --eta and --bf16 are the network's."""
    given, find = [], methods.find
    monkeypatch.setattr(methods, "find", lambda *a, **k: given.append(a) or find(*a, **k))
    for seed in ("0", "1"):
        command("--masks", "center", "--methods", "noise.py", "--seed", seed, "--out", seed)
    assert [row["psnr_hole"] for row in rows("0").values()] != [
        row["psnr_hole"] for row in rows("1").values()]
    command("--eta", "0.25", "--steps", "3", "--bf16", "--methods", "keep")
    assert given[-1][0] == "keep" and given[-1][3:6] == (3, 0.25, True)


@pytest.mark.parametrize("parts", [1, 5])
def test_by_area_numbers_of_samples_are_not_averaged(parts):
    """Two holes of every image, of one area, filled twice and four times; in parts of 5 images
    or of one each, as --batch has it."""
    def part_of(samples):
        of_parts = {"samples": samples, "calls": 7, "seconds": 1.0, "scoring": 1.0}
        return ({key: np.ones(5) for key in (*scores.SCORES, "variance", "error")}
                | {"area": np.full(5, 0.25)}
                | {key: np.full(5 // parts, value) for key, value in of_parts.items()})
    (told,) = report.by_area(SimpleNamespace(masks=["a", "b"], methods=["m"]),
                             {("a", "m"): part_of(2), ("b", "m"): part_of(4)})
    assert told["n"] == 5 and told["calls"] == 7
    assert math.isnan(told["samples"]) and math.isnan(told["spread_skill"])


def test_a_table_shows_the_longer_side_of_an_interval():
    told = {"mask": "a", "method": "b", "n": 9, "crps": (10.0, 9.5, 12.0), "l1": (4.0, 2.0, 4.5)}
    assert "| 10.0 ± 2.0 |" in report.table([told]) and "| 4.0 ± 2.0 |" in report.table([told])


def test_tables_are_written_whatever_names_hold(command):
    mask_file("a|b–é.png", (16, 16), (0, 0, 4, 16))
    for name in ("lama-1.0", "lama-1.1"):
        command("--methods", "flat.py", "--masks", "a|b–é.png", "--save", "--out", ".")
        Path("fills/a|b–é/flat").rename(Path("fills/a|b–é", name))
    command("--methods", "masked", "--masks", "a|b–é.png", "--from", "fills")
    table = Path("out/table.md").read_text()
    assert r"| a\|b–é | lama-1.0 | " in table and r"| a\|b–é | lama-1.1 | " in table
    assert Path("out/scores.csv").read_text().count("a|b–é,lama") == 2 * N


def test_tables_are_written_in_any_locale(command, weights):
    done = subprocess.run(
        [sys.executable, evaluate.__file__, *SMALL, "--weights", weights, "--methods", "masked"],
        env={**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        capture_output=True)
    assert done.returncode == 0, done.stderr
    assert f"{SIZE}×{SIZE}" in Path("out/table.md").read_text(encoding="utf-8")


def test_a_run_says_what_it_will_do_and_draws_few_faces_unless_told(command, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    assert evaluate.parse().limit == 16
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--data", "faces"])
    assert evaluate.parse().limit is None
    _, _, err = command("--features", "unet", "--methods", "keep,masked,keep@1,flat.py")
    (told,) = [line for line in err.splitlines() if line.startswith("to do: ")]
    calls = N * 2 * 3 * (2 + 1)                                 # images, masks, samples, steps
    for words in (f"{N} images of {SIZE}×{SIZE}", "center 25 %", "irregular ", f"{calls} network",
                  "features by unet", "keep, masked, keep@1, flat.py"):
        assert words in told, words
    assert re.search(r": about \d+ (s|min)\b", told)


def test_by_area_every_image_counts_once_in_a_tenth_however_many_its_holes_are(command):
    _, printed, _ = command("--masks", "center,irregular,hybrid", "--by-area", "--limit", 20)
    scored, told = rows(), results()["by_area"]
    for name in ("keep", "masked"):
        mine = {r["mask"]: r for r in told if r["method"] == name}
        assert 2 * 20 < sum(r["n"] for r in mine.values()) < 3 * 20 and len(mine) > 3
        for tenth, r in mine.items():
            low, high = (float(end) / 100 for end in tenth.removesuffix(" %").split("–"))
            chosen = {}
            for (i, _, method), row in scored.items():
                if method == name and low < row["area"] <= high:
                    chosen.setdefault(i, []).append(row["psnr_hole"])
            assert high == pytest.approx(low + 0.1) and r["n"] == len(chosen)
            assert r["psnr_hole"] == pytest.approx(
                report.finite(scores.interval([np.mean(chosen[i]) for i in sorted(chosen)])))
            assert f"| {tenth} | {name} | {len(chosen)} |" in printed


def test_one_sample_of_a_method_that_draws_has_no_crps_and_unequal_numbers_no_spread(command):
    """One sample's would be its mean error, which a blur wins."""
    _, printed, _ = command("--samples", 1)
    for (_, _, method), row in rows().items():
        assert math.isnan(row["crps"]) == (method == "keep") and math.isnan(row["spread"])
    command("--samples", 1, "--methods", "noise.py", "--out", "strangers")
    assert all(math.isnan(row["crps"]) for row in rows("strangers").values())
    assert [r["crps"][0] is None for r in results()["results"]] == [True, False] * 2
    for mask, samples in (("center", 2), ("irregular", 3)):
        command("--methods", "noise.py", "--masks", mask, "--samples", samples, "--save", "--out",
                "kept")
    command("--from", "kept/fills", "--methods", "masked", "--by-area", "--out", "mixed")
    told = results("mixed")
    assert [r["samples"] for r in told["results"]] == [1, 2, 1, 3]
    assert {r["spread_skill"] is None for r in told["by_area"] if r["method"] == "noise"
            if r["n"] == N} == {True}


def test_paired_differences_are_those_of_the_same_images(command):
    command("--methods", "keep,masked,noise.py")
    scored = rows()
    for r in results()["results"]:
        for key in ("psnr_hole", "ssim", "crps"):
            pairs = [scored[i, r["mask"], r["method"]][key] - scored[i, r["mask"], "keep"][key]
                     for i in range(N)]
            assert r[f"{key}_minus_first"] == pytest.approx(scores.interval(pairs), abs=1e-6)


# ---- networks that see -----------------------------------------------------------------------

FEATURES = ["--train", "faces", "--features", "colours.pt"]


@torch.jit.script
def colours(x):
    """Stands in for Inception: uint8 [B, 3, H, W] -> [B, 3]."""
    return x.float().mean(dim=(2, 3))


@pytest.fixture
def faces(tmp_path):
    """What FEATURES name: training images in a folder, and a network."""
    (tmp_path / "faces").mkdir()
    for i, face in enumerate(data.synthetic(30, SIZE, seed=7).numpy()):
        Image.fromarray(face).save(tmp_path / f"faces/{i}.png")
    colours.save(str(tmp_path / "colours.pt"))


def missing(*_):
    raise scores.Missing("it needs more")


@pytest.mark.parametrize("reference", ["train", "held-out"])
def test_distances_in_the_features_of_a_network_of_ones_own(command, faces, reference):
    _, printed, _ = command(*FEATURES, "--methods", "masked,flat.py,noise.py", "--save",
                            "--reference", reference, "--masks", "center")
    *told, other = results()["results"]
    sets = {"train": data.load("faces", "train", SIZE),
            "held-out": data.load("synthetic", "test", SIZE, limit=N)}
    features = {name: colours(images.permute(0, 3, 1, 2)) for name, images in sets.items()}
    real = features[reference]
    for r in told:
        fills = [read(f"out/fills/center/{Path(r['method']).stem}/{i:05}_0.png") for i in range(N)]
        mine = colours(torch.stack(fills).permute(0, 3, 1, 2))
        assert r["fd_colours"] == pytest.approx(scores.frechet(real, mine), rel=1e-6)
        distance = scores.kernel(real, mine, paired=reference == "held-out")
        assert r["kd_colours"][0] == pytest.approx(distance[0], rel=1e-6)
        assert r["n_real"] == len(real)
    rest = features["held-out"] if reference == "train" else features["train"][:N]
    assert (other["method"], other["n"]) == ("real", N)
    assert other["fd_colours"] == pytest.approx(scores.frechet(real, rest), rel=1e-6)
    assert "FD(colours) | KD(colours) × 1000" in printed and "FID" not in printed
    assert other["kd_colours"][0] == pytest.approx(scores.kernel(real, rest)[0], rel=1e-6)
    kd, low, high = told[0]["kd_colours"]
    assert low < kd < high and (f"| {told[0]['fd_colours']:.2f} | {1000 * kd:.2f} ± "
                                f"{1000 * max(high - kd, kd - low):.2f} |") in printed


def test_the_crps_of_features_is_that_of_its_definition(command, faces):
    _, printed, _ = command(*FEATURES, "--methods", "noise.py,masked", "--masks", "center",
                            "--save")
    images = data.load("synthetic", "test", SIZE, limit=N)
    truth = colours(images.permute(0, 3, 1, 2))
    for i in range(N):
        x = torch.stack([colours(read(f"out/fills/center/noise/{i:05}_{k}.png")
                                 .permute(2, 0, 1)[None])[0] for k in range(3)])
        pairs = np.mean([(x[j] - x[k]).abs().mean() for j in range(3) for k in range(3) if j != k])
        assert rows()[i, "center", "noise.py"]["crps_colours"] == pytest.approx(
            (x - truth[i]).abs().mean().item() - pairs / 2, rel=1e-5)
    told = results()["results"][0]
    assert told["crps_colours"][0] == pytest.approx(
        np.mean([rows()[i, "center", "noise.py"]["crps_colours"] for i in range(N)]))
    assert "CRPS(colours)" in printed and f"| {told['crps_colours'][0]:.4f} ± " in printed
    assert results()["results"][1]["crps_colours_minus_first"][0] != 0


def test_distances_in_the_middle_of_the_inpainters_own_network(command, weights):
    _, printed, _ = command("--features", "unet", "--reference", "held-out", "--save",
                            "--methods", "keep@1,keep@5,ddnm", "--masks", "center")
    _, net, _ = inpaint.load_weights(weights)
    features = scores.unet_features(net)
    images = data.load("synthetic", "test", SIZE, limit=N)
    told = results()["results"][:3]
    for r, calls in zip(told, (1, 5, 2)):
        fills = [read(f"out/fills/center/{r['method']}/{i:05}_0.png") for i in range(N)]
        want = scores.frechet(features(images), features(torch.stack(fills)))
        assert (r["fd_unet"], r["calls"]) == (pytest.approx(want, rel=1e-6), calls)
    assert told[0]["fd_unet"] != told[1]["fd_unet"] and "FD(unet)" in printed


def test_the_middle_is_that_of_an_all_hole_image_at_level_0(weights):
    _, net, _ = inpaint.load_weights(weights)
    images, seen = data.load("synthetic", "test", SIZE, limit=3), []
    got = scores.unet_features(net)(images)
    watch = net.middle[-1].register_forward_hook(lambda *call: seen.append(call[-1]))
    net(data.to_float(images), torch.zeros(3, dtype=torch.int64), torch.ones(3, 1, SIZE, SIZE))
    watch.remove()
    torch.testing.assert_close(got, seen[0].mean(dim=(2, 3)))
    net(data.to_float(images), torch.zeros(3, dtype=torch.int64), torch.ones(3, 1, SIZE, SIZE))
    assert len(seen) == 1 and got.std(dim=0).min() > 0


def test_the_same_fills_are_at_the_same_distance(command, faces):
    shutil.copy(methods.BASELINES / "masked.py", "same.py")
    command(*FEATURES, "--methods", "masked,same.py,flat.py", "--batch", 4)
    for masked, same, flat in zip(*[iter(results()["results"])] * 3):
        assert all(masked[key] == same[key] for key in ("fd_colours", "kd_colours"))
        assert masked["fd_colours"] != flat["fd_colours"]


def test_a_single_image_is_scored_without_distances_and_without_intervals(command, faces):
    status, printed, _ = command(*FEATURES, "--limit", 1, "--methods", "masked,flat.py")
    assert status == 0 and results()["results"][0]["fd_colours"] is None
    assert all(" ± " not in line for line in printed.splitlines() if line.startswith("|"))
    assert f"| {results()['results'][0]['psnr'][0]:.2f} |" in printed


def stand_in(factor):
    """In place of a network: uint8 [B, H, W, 3] to features [B, 3], and the images it was shown."""
    def features(images):
        features.shown.append(len(images))
        return factor * images.float().mean(dim=(1, 2))
    features.shown = []
    return features


def test_the_networks_that_are_installed_stand_side_by_side_without_being_asked_for(
        command, monkeypatch):
    monkeypatch.setattr(scores, "lpips_network", missing)
    networks = {"efficientnet-lite0": stand_in(1), "inception": stand_in(2)}
    monkeypatch.setattr(scores, "extractor", lambda name, device: networks[name])
    status, printed, err = command("--perceptual", "--methods", "masked,flat.py")
    assert status == 0 and err.count("left out") == 1
    heads, _, *body = [line.split(" | ") for line in printed.splitlines() if line.startswith("|")]
    columns = ("FD(efficientnet-lite0)", "KD(efficientnet-lite0) × 1000", "FID", "KID × 1000")
    *told, real = results()["results"]
    for line, r in zip(body, told):
        values = [number for ruler in networks for number in (r[f"fd_{ruler}"],
                                                              r[f"kd_{ruler}"][0])]
        assert values[2] == pytest.approx(4 * values[0]) and values[0] > 0
        for head, value, factor in zip(columns, values, (1, 1000) * 2):
            assert line[heads.index(head)].partition(" ± ")[0] == f"{value * factor:.2f}"
    assert real["method"] == "real"


def test_the_networks_that_are_not_installed_leave_a_line_each_and_no_column(command, monkeypatch):
    monkeypatch.setattr(scores, "lpips_network", missing)
    monkeypatch.setattr(scores, "extractor", missing)
    status, printed, err = command("--perceptual")
    assert status == 0 and err.count("left out: ") == 3 and "Traceback" not in err
    heads, _, *body = [line.split(" | ") for line in printed.splitlines() if line.startswith("|")]
    assert "FD" not in printed and "FID" not in printed and body[0][heads.index("LPIPS")] == "–"
    assert "–" not in body[0][heads.index("PSNR hole"):heads.index("LPIPS")]
    command("--out", "without")
    assert lines("out") == lines("without")


def test_a_network_that_is_named_must_be_there(command, monkeypatch):
    monkeypatch.setattr(scores, "extractor", missing)
    assert refused(command("--features", "inception"), "--features: it needs more")


def test_a_network_found_halfway_is_not_mixed_with_none(command, monkeypatch):
    monkeypatch.setattr(scores, "lpips_network", missing)
    monkeypatch.setattr(scores, "extractor", missing)
    cut_off(command, monkeypatch, "--perceptual")
    monkeypatch.setattr(scores, "extractor", lambda name, device: stand_in(1))
    status, _, err = command("--perceptual", "--resume")
    assert status == 2 and "--resume with other settings" in err and "networks" in err


def test_features_of_real_images_are_computed_once(command, monkeypatch):
    """As long as the images and the network are the same."""
    def shown(factor, *argv):
        network = stand_in(factor)
        monkeypatch.setattr(scores, "extractor", lambda name, device: network)
        status, _, err = command("--features", "inception", "--methods", "masked", "--masks",
                                 "center", "--batch", 6, *argv)
        assert status == 0
        return sum(network.shown), err, results()["results"][0]["fd_inception"]

    first, err, distance = shown(1)
    assert "scored images by inception" in err and "other images by inception" in err
    again, err, same = shown(1)
    assert first - again == 2 * N and same == distance and "images by" not in err
    assert shown(2)[0] == first and shown(2)[2] == pytest.approx(4 * distance)
    assert shown(1, "--split", "val")[0] == first - N                     # the others are the same
    for path in Path("cache").glob("features-*"):
        path.write_bytes(path.read_bytes()[:-4])                    # as after a disk that failed
    assert shown(1)[0] == first and shown(1)[2] == distance


def test_without_other_images_there_is_no_row_of_real_ones(command, faces):
    Path("celeba").mkdir()
    for i, face in enumerate(data.synthetic(4, SIZE).numpy()):
        Image.fromarray(face).save(f"celeba/{190_000 + i}.png")               # of the test split
    words = ("--features", "colours.pt", "--masks", "center", "--methods", "masked", "--data",
             "celeba")
    assert command(*words)[0] == 0
    assert [r["method"] for r in results()["results"]] == ["masked"]
    assert results()["results"][0]["fd_colours"] > 0
    answer = command(*words, "--reference", "train")
    assert answer[0] == 2 and "no image of the train split" in answer[2]
    shutil.copytree("celeba", "celeba_train")
    Image.fromarray(data.synthetic(9, SIZE).numpy()[8]).save("celeba_train/000001.png")
    Path("celeba_train/190000.png").rename("celeba_train/000002.png")         # scored, too
    command(*words, "--train", "celeba_train")
    assert [r["n"] for r in results()["results"]] == [4, 1]


# ---- mistakes --------------------------------------------------------------------------------

@pytest.mark.parametrize("argv, said", [
    (["--masks", "square"], "--masks square: neither a file or folder nor one of center, "),
    (["--samples", "0"], "--samples"),
    (["--batch", "0"], "--batch"), (["--limit", "0"], "--limit"), (["--eta", "1.5"], "--eta"),
    (["--steps", "0"], "--steps is 1 … 20"), (["--steps", "21"], "--steps is 1 … 20"),
    (["--seed", "-1"], "--seed"), (["--seed", str(10 ** 20)], "--seed"),
    (["--weights", "none.pt"], "none.pt: no such file"),
    (["--weights", "noise.py"], "noise.py: not weights"), (["--data", "nowhere"], "nowhere"),
    (["--methods", "nowhere.py"], "nowhere.py: neither"),
    (["--methods", "kepe"], "kepe: neither a .py file nor one of keep, "),
    (["--methods", "neither.py"], "neither.py: it has neither inpaint(image, hole, generator) nor"),
    (["--from", "."], "--from .: no center/METHOD/ in it"),
    (["--from", "nowhere"], "--from nowhere: no center/METHOD/ in it"),
    (["--features", "none.pt"], "--features none.pt: no such file"),
    (["--features", "noise.py"], "--features noise.py: not a TorchScript network"),
    (["--features", "unet,a/unet"], "--features: two networks of one name"),
    (["--masks", "center,nowhere/center"], "--masks nowhere/center: neither"),
    (["--data", ""], "the setting data is empty"), (["--from", ""], "the setting read_from is"),
    (["--train", ""], "the setting train is empty"),
    (["--methods", "broken.py"], "broken.py cannot be imported: SyntaxError: '(' was"),
    (["--methods", "lonely.py"], "lonely.py cannot be imported: ModuleNotFoundError: No module "),
    (["--masks", ""], "masks is empty"), (["--masks", "/"], "--masks /: neither"),
    (["--resume"], "nothing to resume"),
])
def test_bad_arguments_are_one_line_and_status_2_and_leave_nothing(command, argv, said):
    assert refused(command(*argv), said)
    assert not Path("out").exists()


def test_a_method_that_returns_no_tensor_is_named(command):
    """It finds the module beside it, too."""
    assert refused(command("--methods", "arrays.py"), "method arrays.py: a fill must be a tensor")
