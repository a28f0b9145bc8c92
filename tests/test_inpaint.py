"""Inpainting as a user does it: files in, files out, known pixels untouched, mistakes named."""
import argparse
import math

import numpy as np
import pytest
import torch
from PIL import Image

import data
import inpaint
import masks
import methods
import train
from ddpm import DDPM
from helpers import photograph
from schedules import cosine_betas
from support import runs
from unet import UNet

SIZE = 32


@pytest.fixture
def command(fill_as_user):
    """Run inpaint.py with arguments, three calls a fill."""
    return lambda *argv: fill_as_user("--steps", 3, *argv)


def read(path):
    return np.asarray(Image.open(path))


def test_a_fresh_clone_fills_the_astronaut(command, tmp_path):
    status, printed, _ = command("--mask", "irregular", "--samples", 2)
    assert status == 0 and "seed 0" in printed and "3 network calls" in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"astronaut{end}.png" for end in ("", "_input", "_hole", "_0", "_1")}
    given, hole = read("out/astronaut_input.png"), read("out/astronaut_hole.png") == 255
    assert given.shape == (156, 156, 3) and 0 < hole.sum() < 156 ** 2
    for k in range(2):
        filled = read(f"out/astronaut_{k}.png")
        assert (filled[~hole] == given[~hole]).all() and (filled[hole] != given[hole]).any()
    assert (read("out/astronaut_0.png") != read("out/astronaut_1.png")).any()


@pytest.mark.parametrize("mask", masks.MASKS)
def test_every_family_keeps_the_known_pixels(command, tmp_path, mask):
    assert command(photograph(tmp_path / "a.png"), "--mask", mask, "--samples", 1)[0] == 0
    given, hole = read("out/a_input.png"), read("out/a_hole.png")
    assert (np.where(hole[..., None], given, read("out/a_0.png")) == given).all()
    assert set(np.unique(hole)) <= {0, 255}


def test_a_folder_in_a_folder_out_and_every_image_as_if_alone(command, tmp_path):
    (tmp_path / "in").mkdir()
    mask = tmp_path / "mask.png"
    Image.fromarray(np.pad(np.full((30, 40), 255, np.uint8), ((15, 15), (20, 20)))).save(mask)
    for name in ("a.png", "b.jpg", "c.webp"):
        photograph(tmp_path / "in" / name)
    assert command(tmp_path / "in", "--mask", mask, "--samples", 3, "--out", "all")[0] == 0
    assert len(list((tmp_path / "all").iterdir())) == 3 * 6
    command(tmp_path / "in" / "b.jpg", "--mask", mask, "--samples", 2, "--out", "one")
    fills = [read(f"all/b_{k}.png") for k in range(3)]
    for k in range(2):
        assert sum((fill == read(f"one/b_{k}.png")).all() for fill in fills) == 1
    command(tmp_path / "in" / "b.jpg", "--mask", mask, "--samples", 1, "--out", "two", "--seed", 1)
    assert (read("two/b_0.png") != read("one/b_0.png")).any()


@pytest.mark.parametrize("width, height, hole", [
    (300, 200, (150, 20, 190, 60)),             # in the centred square
    (300, 200, (5, 150, 25, 190)),              # left of it
    (300, 200, (0, 60, 300, 90)),               # longer than the photograph is high
    (200, 300, (0, 0, 200, 300)),               # all
    (1200, 900, (1100, 10, 1110, 30)),          # a speck in a corner
    (20, 30, (5, 5, 15, 20)),                   # smaller than the network's images
    (300, 200, (100, 50, 300, 51)),             # thin
])
def test_a_photograph_keeps_its_size_and_every_pixel_outside_the_hole(
        command, tmp_path, width, height, hole):
    left, top, right, bottom = hole
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 255
    Image.fromarray(mask).resize((2 * width, 2 * height)).save(tmp_path / "mask.png")
    command(photograph(tmp_path / "a.png", width, height), "--mask", "mask.png", "--samples", 2)
    given, filled = read(tmp_path / "a.png"), read("out/a_1.png")
    assert (read("out/a_input.png") == given).all() and (read("out/a_hole.png") == mask).all()
    assert (filled[mask == 0] == given[mask == 0]).all()
    assert (filled[mask > 0] != given[mask > 0]).any(axis=1).mean() > 0.9


def test_an_empty_hole_is_said_and_the_image_copied(command, tmp_path):
    Image.new("L", (60, 60)).save(tmp_path / "mask.png")
    status, printed, err = command(photograph(tmp_path / "a.png", 60, 60), "--mask", "mask.png")
    assert status == 0 and "nothing to do" in printed + err
    assert (read("out/a_0.png") == read("out/a_input.png")).all()


def test_an_all_white_mask_is_unconditional(command, tmp_path):
    Image.new("L", (60, 60), 255).save(tmp_path / "mask.png")
    command(photograph(tmp_path / "a.png", SIZE, SIZE), "--mask", "mask.png", "--samples", 1)
    command(photograph(tmp_path / "b.jpg", SIZE, SIZE), "--mask", "full", "--samples", 1)
    assert (read("out/a_0.png") == read("out/b_0.png")).all()


@pytest.mark.parametrize("mode, name", [("L", "a.png"), ("RGBA", "a.png"), ("P", "a.png"),
                                        ("I;16", "a.png"), ("1", "a.png"), ("CMYK", "a.jpg")])
def test_photographs_of_every_mode(command, tmp_path, mode, name):
    if mode == "I;16":
        Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(tmp_path / name)
    else:
        photograph(tmp_path / name, mode=mode)
    assert command(tmp_path / name, "--samples", 1)[0] == 0
    if mode == "I;16":
        assert (read("out/a_input.png") == 40_000).all()


def test_fills_larger_than_a_batch_equal_those_of_a_smaller_one(weights_32):
    ddpm, net, _ = inpaint.load_weights(weights_32)
    images, hole = data.synthetic(3, SIZE), masks.random(3, SIZE, torch.Generator().manual_seed(0))
    keep = methods.find("keep", ddpm, net, 4, 1.0).inpaint
    together = inpaint.fill(keep, images, hole, samples=3)
    apart = inpaint.fill(keep, images, hole, samples=3, batch=2)
    assert (together.int() - apart.int()).abs().max() <= 1   # a convolution's rounding
    kept = hole.permute(0, 2, 3, 1)[:, None].expand(3, 3, SIZE, SIZE, 3) == 0
    assert (together[kept] == images[:, None].expand_as(together)[kept]).all()


def test_the_most_typical_fill_comes_first():
    """Fills that a method paints in one grey each: nearest to their mean, in the holes of both
    windows, first, though neither window alone would order them so."""
    greys, seen = torch.tensor([[250, 60, 90, 0], [100, 104, 0, 108]]), []

    def flat(image, hole, generators):
        seen.append(greys[len(seen)])
        return torch.where(hole > 0, seen[-1][:, None, None, None] / 127.5 - 1, image)

    photograph, hole = torch.full((16, 64, 3), 7, dtype=torch.uint8), torch.zeros(1, 16, 64)
    hole[:, 4:12, 4:10] = hole[:, 4:12, 50:56] = 1
    fills, views, order = inpaint.complete(flat, photograph, hole, 16, 4, batch=4)
    far = (greys - greys.float().mean(dim=1, keepdim=True)).square()
    assert len(views) == 2 and order.tolist() == far.sum(dim=0).argsort().tolist()
    assert order.tolist() not in far.argsort(dim=1).tolist() and order.tolist() != [0, 1, 2, 3]
    assert {tuple(fills[:, 8, x, 0].tolist()) for x in (6, 53)} == {
        tuple(row[order].tolist()) for row in greys}
    for _, _, part, drawn in views:
        assert tuple(drawn[:, part[0] > 0, 0][:, 0].tolist()) in {
            tuple(row[order].tolist()) for row in greys}


@pytest.mark.parametrize("samples", [1, 2])
def test_the_order_of_one_fill_of_two_and_without_windows_is_that_of_the_samples(samples):
    drawn, part = torch.arange(samples * 12).reshape(samples, 2, 2, 3).byte(), torch.ones(1, 2, 2)
    for views in ([((0, 0, 2, 2), drawn[0], part, drawn)], []):
        assert inpaint.typical_first(views, samples).tolist() == [*range(samples)]


@pytest.mark.parametrize("batch, sizes", [(1, "111"), (2, "21"), (32, "3")])
def test_a_batch_is_so_many_fills(command, tmp_path, batch, sizes):
    """One at a time, a fill cannot depend on how many there are, not even in a last bit."""
    (tmp_path / "own.py").write_text("def inpaint(image, hole, generator):\n"
                                     "    print(len(image), end='', file=open('sizes', 'a'))\n"
                                     "    return image\n")
    assert command("--method", "own.py", "--samples", 3, "--batch", batch)[0] == 0
    assert (tmp_path / "sizes").read_text() == sizes


@pytest.mark.skipif(not inpaint.WEIGHTS.exists(), reason="no shipped weights yet")
@pytest.mark.parametrize("device, bf16", [("cpu", True), ("cuda", False)])
def test_a_coarser_or_another_processor_draws_almost_the_same_fill(device, bf16):
    """Two fills of 20 calls, against float32 on the CPU: 40 dB are a hundredth of the range."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    hole, fills = masks.center(1, 64), []
    for where, coarse in (("cpu", False), (device, bf16)):
        ddpm, net, size = inpaint.load_weights(device=where)
        image = torch.from_numpy(data.square(inpaint.astronaut(), size).copy())[None]
        method = methods.find("keep", ddpm, net, bf16=coarse).inpaint
        fills.append(inpaint.fill(method, image, hole.to(where), 2).cpu()[:, :, 16:48, 16:48])
    error = (fills[0].double() - fills[1].double()).square().mean()
    assert 20 * math.log10(255) - 10 * error.log10() > 40


@pytest.mark.parametrize("make, argv, said", [
    (lambda d: None, ["nowhere.png"], "nowhere.png: no such file"),
    (lambda d: (d / "a.png").write_bytes(b"no image"), ["a.png"], "a.png: not a readable image"),
    (lambda d: (d / "a.png").write_bytes(photograph(d / "b.png").read_bytes()[:2000]), ["a.png"],
     "a.png: not a readable image"),
    (lambda d: (d / "empty").mkdir(), ["empty"], "no image in this folder"),
    (lambda d: photograph(d / "a.png"), ["a.png", "--mask", "square"], "square: neither"),
    (lambda d: (photograph(d / "a.png"), Image.new("L", (60, 60)).save(d / "m.png")),
     ["a.png", "--mask", "m.png"], "photograph's shape"),
    (lambda d: photograph(d / "a.png"), ["a.png", "--steps", "21"], "--steps is 1 … 20"),
    (lambda d: photograph(d / "a.png"), ["a.png", "--steps", "0"], "--steps"),
    (lambda d: photograph(d / "a.png"), ["a.png", "--samples", "0"], "--samples"),
    (lambda d: (d / "w.pt").write_bytes(b"no weights"), ["--weights", "w.pt"], "not weights"),
    (lambda d: torch.save({"settings": {}}, d / "w.pt"), ["--weights", "w.pt"], "not weights"),
    (lambda d: None, ["--weights", "none.pt"], "none.pt: no such file"),
    (lambda d: photograph(d / "a.png"), ["a.png", "--out", "."], "overwrite"),
    (lambda d: ((d / "in").mkdir(), photograph(d / "in" / "a.png"), photograph(d / "a_hole.png")),
     ["in/a.png", "--mask", "a_hole.png", "--out", "."], "where a_hole.png lies"),
    (lambda d: (photograph(d / "a.png"), photograph(d / "a.jpg")), ["a.png", "a.jpg"], "two im"),
    (lambda d: (d / "out").write_text("a file"), [], "out"),
    (lambda d: ((d / "f" / "g").mkdir(parents=True), photograph(d / "f" / "a.png"),
                photograph(d / "f" / "g" / "b.png")), ["f", "--out", "f/g"], "b.png, which is no"),
    (lambda d: (photograph(d / "a.png"), photograph(d / "a_0.png")), ["a.png", "a_0.png"],
     "a result of a"),
    (lambda d: None, [""], "the setting images is empty"),
])
def test_bad_input_is_one_line_and_status_2(command, tmp_path, make, argv, said):
    make(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    status, printed, err = command(*argv)
    assert status == 2 and said in err and len(err.splitlines()) == 1 and not printed
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_weights_of_another_size_rebuild_another_network(tmp_path):
    torch.manual_seed(0)
    args = argparse.Namespace(out=str(tmp_path), size=16, patch=1, widths=[8], blocks=1,
                              schedule="linear", T=7, prediction="eps", coarse=None)
    state = {"ema": UNet(16, 1, [8], 1)}
    runs.save(args, train.settings(args), state, "ema", torch.Generator(), 1, [], 8)
    ddpm, net, size = inpaint.load_weights(tmp_path / "weights.pt")
    assert (ddpm.T, ddpm.prediction, size, net.patch) == (7, "eps", 16, 1)


def test_a_perfect_network_restores_the_image():
    """An oracle that knows the image: whatever the noise, steps and eta, the fill is the image."""
    images = data.synthetic(2, 16)
    x0, hole = data.to_float(images), masks.center(2, 16)
    ddpm = DDPM(cosine_betas(30), "v")

    def oracle(x, t, hole):
        alpha_bar = ddpm.alpha_bar(t, x)
        eps = (x - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()
        return alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x0

    for steps, eta in ((1, 0.0), (5, 0.0), (30, 1.0)):
        keep = methods.find("keep", ddpm, oracle, steps, eta).inpaint
        fills = inpaint.fill(keep, images, hole, samples=1)
        assert (fills[:, 0] == images).all()


@pytest.mark.skipif(not inpaint.WEIGHTS.exists(), reason="no shipped weights yet")
def test_the_shipped_weights_fill_a_face_better_than_its_mean_colour():
    assert inpaint.WEIGHTS.stat().st_size <= 25e6
    ddpm, net, size = inpaint.load_weights()
    image = torch.from_numpy(data.square(inpaint.astronaut(), size).copy())[None]
    hole = masks.center(1, size)
    fills = inpaint.fill(methods.find("keep", ddpm, net, 10).inpaint, image, hole).float()
    inside = hole[0, 0].bool()
    face = image[0].float()[inside]
    error = (fills[0].mean(dim=0)[inside] - face).square().mean()
    assert error < 0.7 * (face - image[0].float()[~inside].mean(dim=0)).square().mean()


def test_the_older_ways_fill_by_name(command, tmp_path):
    status, printed, _ = command(photograph(tmp_path / "a.png"), "--mask", "center", "--method",
                                 "patchmatch")
    assert status == 0 and "1 fill," in printed and "0 network calls" in printed
    status, printed, _ = command("--method", "mean", "--train", "synthetic", "--out", "mean")
    assert status == 0 and not (tmp_path / "mean/astronaut_1.png").exists()


@pytest.mark.parametrize("method, said", [("nobody", "neither a .py file"), ("ridge", "--train")])
def test_a_method_that_cannot_be_had_is_named(command, method, said):
    status, _, error = command("--method", method)
    assert status == 2 and said in error and error.count("\n") == 1


@pytest.mark.parametrize("values, mode", [
    ((0, 255), "L"), ((0, 1), "L"), ((0, 100), "L"), ((20, 90), "L"), ((0, 1), "1"),
    ((0, 1), "P"), ((0, 65_535), "I;16")])
def test_a_mask_of_two_values_is_filled_where_it_is_brighter(command, tmp_path, values, mode):
    """As drawing programs, numpy and datasets write them."""
    photograph(tmp_path / "a.png")
    pixels = np.zeros((60, 80), bool)
    pixels[20:40, 30:50] = True
    low, high = values
    if mode == "I;16":
        mask = Image.fromarray(np.where(pixels, high, low).astype(np.uint16))
    elif mode == "P":
        mask = Image.fromarray(pixels.astype(np.uint8), "P")
        mask.putpalette([0, 0, 0, 255, 255, 255])
    else:
        mask = Image.fromarray(pixels if mode == "1" else
                               np.where(pixels, high, low).astype(np.uint8))
    mask.save(tmp_path / "mask.png")
    assert command(tmp_path / "a.png", "--mask", tmp_path / "mask.png", "--samples", 1)[0] == 0
    assert ((read("out/a_hole.png") == 255) == pixels).all()


def test_a_mask_too_dark_to_tell_is_refused_with_its_brightest_value(command, tmp_path):
    photograph(tmp_path / "a.png")
    Image.fromarray((np.arange(60 * 80) % 120).astype(np.uint8).reshape(60, 80)).save(
        tmp_path / "mask.png")
    status, _, error = command(tmp_path / "a.png", "--mask", tmp_path / "mask.png")
    assert status == 2 and "the brightest of its values is 119" in error


@pytest.mark.parametrize("other", ["face_0", "face_input", "face_hole", "face_12"])
def test_a_photograph_called_like_anothers_result_is_refused(command, tmp_path, other):
    (tmp_path / "faces").mkdir()
    for name in ("face", other):
        photograph(tmp_path / "faces" / f"{name}.png")
    status, _, error = command(tmp_path / "faces", "--mask", "center")
    assert status == 2 and f"{other} is also the name of a result of face" in error
