"""The course's pictures: every one is drawn, and shows what its title says."""
import itertools
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from test_foreign import guided

import data
import masks
from helpers import save_weights
from schedules import linear_betas
from support import foreign
from tools import figures
from unet import timestep_embedding
from worlds import sharpener_of_noise

SHIPPED = Path(figures.__file__).parents[1] / "docs" / "figures"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_weights(tmp_path_factory.mktemp("weights"), 16)


@pytest.fixture
def course(weights):
    return figures.Course(weights)


@pytest.fixture
def command(weights, monkeypatch, as_user):
    """Run figures.py, small."""
    monkeypatch.setattr(figures, "SAMPLES", 500)
    monkeypatch.setattr(figures, "STEPS", 20)
    monkeypatch.setattr(figures, "BATCH", 8)
    monkeypatch.setitem(figures.STYLE, "savefig.dpi", 50)

    return lambda *argv: as_user(figures, "--weights", weights, *argv)


def draw(name, course):
    with matplotlib.rc_context(figures.STYLE):
        return figures.FIGURES[name](course)


def picture(ax):
    """The image that a gallery shows, uint8 [H, W, 3]."""
    (image,) = ax.images
    return np.asarray(image.get_array())


def panels(ax, size=16):
    """{(row, column): the image [H, W, 3] there}, and the titles of the columns."""
    shown, gap = picture(ax), max(1, size // 16)
    titles = [label.get_text() for label in ax.get_xticklabels()]
    places = {(i, j): (i * (size + gap), j * (size + gap))
              for i in range(-(-len(shown) // (size + gap)))
              for j in range(-(-shown.shape[1] // (size + gap)))}
    return {at: shown[y:y + size, x:x + size].astype(int) for at, (y, x) in places.items()}, titles


def bytes_of(image):
    """[3, H, W] in [-1, 1] as a gallery shows it."""
    return data.to_uint8(image[None])[0].numpy().astype(int)


def test_all_of_them_are_drawn_and_none_is_blank(command, tmp_path):
    status, printed, _ = command()
    assert status == 0 and [path.name for path in tmp_path.iterdir()] == ["out"]
    files = {file.stem: file for file in (tmp_path / "out/figures").iterdir()}
    drawn = [name for name in figures.FIGURES if name != "sharpened"]     # by ours, not these
    assert [*map(tmp_path.joinpath, printed.splitlines())] == [files[name] for name in drawn]
    assert set(files) == set(drawn)
    for name, file in files.items():
        with Image.open(file) as image:
            assert file.suffix == (".gif" if name == "animation" else ".png")
            pixels = np.asarray(image.convert("L"))
            assert min(pixels.shape) > 60 and pixels.std() > 15, name
            assert len(np.unique(pixels)) > 10, name
    with Image.open(files["animation"]) as film:
        assert film.n_frames > 10
        first = np.asarray(film.convert("L")).astype(int)
        film.seek(film.n_frames - 1)
        assert np.abs(np.asarray(film.convert("L")) - first).max() > 50


def test_what_is_sharpened_is_shown_beside_what_it_is_sharpened_from(course):
    """Six holes; the known pixels are the picture's, and the two fills agree when averaged."""
    course.sharpener = sharpener_of_noise(16, 32)
    shown, titles = panels(draw("sharpened", course).axes[0], 32)
    assert titles == ["to fill", "16×16, enlarged", "sharpened: 32×32", "original"]
    assert len(shown) == 6 * 4
    for i in range(6):
        hole = (shown[i, 0] == 128).all(axis=-1)
        assert 0.05 < hole.mean() < 0.7
        enlarged, sharpened, original = (shown[i, j] for j in (1, 2, 3))
        assert (enlarged[~hole] == original[~hole]).all()
        assert (sharpened[~hole] == original[~hole]).all()
        assert 0 < np.abs(sharpened - enlarged)[hole].mean() < 20


def test_those_named_are_drawn_and_do_not_depend_on_the_others(command, tmp_path):
    assert command("jump", "step", "--out", "a")[0] == 0
    assert command("step", "--out", "b")[0] == 0
    assert {file.name for file in (tmp_path / "a").iterdir()} == {"jump.png", "step.png"}
    assert (tmp_path / "a/step.png").read_bytes() == (tmp_path / "b/step.png").read_bytes()


def test_with_other_peoples_weights_those_that_show_our_network_are_left_out(
        command, tmp_path, monkeypatch):
    monkeypatch.setattr(foreign, "linear_betas", lambda T: linear_betas(12))
    guided(tmp_path / "g.pt")
    status, printed, said = command("--weights", "g.pt", "--out", "a")
    rest = [name for name in figures.FIGURES if name not in figures.OURS]
    assert status == 0 and [Path(line).stem for line in printed.splitlines()] == rest
    assert {path.stem for path in (tmp_path / "a").iterdir()} == {*rest}
    left = ", ".join(name for name in figures.FIGURES if name in figures.OURS)
    assert f"left out: {left}, of our own network only\n" in said
    for name in figures.OURS:
        status, printed, said = command("--weights", "g.pt", "--out", "b", name, "linear")
        assert status == 2 and not printed and not (tmp_path / "b").exists()
        assert said.splitlines()[-1] == (
            f"tools.figures.py: {name}: of our own network only; with these weights one can draw "
            f"{', '.join(rest)}")


def test_faces_drawn_for_methods_without_a_network_stay_small(tmp_path):
    """Ridge regression's memory grows with the fourth power of their side: 154 GB at 256 pixels."""
    course = figures.Course(guided(tmp_path / "g.pt", size=128))
    assert course.size == 128 and course.x.shape == (1, 3, 128, 128)
    shown, _ = panels(draw("scene", course).axes[0], 64)
    assert len(shown) == 6 and shown[0, 5].shape == (64, 64, 3)


def test_a_draw_that_fails_keeps_the_picture_that_was_there(command, tmp_path, monkeypatch):
    """A figure and the film: in the drawing, in the saving, half of the file being written."""
    assert command("linear", "animation", "--out", ".")[0] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"linear.png", "animation.gif"}

    save = figures.Image.Image.save

    def half(image, file, *args, **options):
        if not isinstance(file, Path):
            return save(image, file, *args, **options)           # matplotlib's, in memory
        file.write_bytes(b"half")
        raise OSError("no space left")

    def fail(*_, **__):
        raise ValueError("drawn wrong")

    for name, place, what, error in [("linear", figures.Image.Image, "save", half),
                                     ("animation", figures.Image.Image, "save", half),
                                     ("linear", figures.Figure, "savefig", fail),
                                     ("linear", figures, "curves", fail),
                                     ("animation", figures.ImageDraw, "Draw", fail)]:
        with monkeypatch.context() as patch:
            patch.setattr(place, what, error)
            if error is half:
                status, printed, err = command(name, "--out", ".")
                assert status == 2 and not printed and "what was there before is kept" in err
            else:
                with pytest.raises(ValueError, match="drawn wrong"):
                    command(name, "--out", ".")
        assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.mark.parametrize("argv, said", [
    (["schedule"], "no figure 'schedule': masks, "),
    (["masks", "--weights", "none.pt"], "none.pt: no such file"),
    (["linear", "--out", "file"], "file"),
    (["linear", "--out", ""], "the setting out is empty"),
])
def test_bad_input_is_one_line_and_status_2(command, tmp_path, argv, said):
    (tmp_path / "file").write_text("kept")
    status, printed, err = command(*argv)
    assert status == 2 and said in err and len(err.splitlines()) == 1 and not printed
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


def test_those_shipped_are_all_there_and_light():
    sizes = {file.stem: file.stat().st_size for file in SHIPPED.iterdir()}
    assert set(sizes) == set(figures.FIGURES)
    assert sizes.pop("animation") <= 800_000
    assert max(sizes.values()) <= 200_000 and sum(sizes.values()) <= 1_200_000


def test_a_gallery_puts_every_image_under_its_title():
    ax = figures.Figure().subplots()
    values = [[-1.0, -0.5, 0.0], [0.25, 0.5, 0.75]]
    rows = [[torch.full((3, 32, 32), value) for value in row] for row in values]
    assert figures.gallery(ax, rows, "abc", "de") == (3 * 32 + 4, 2 * 32 + 2)
    shown = picture(ax)
    for i, y in enumerate(ax.get_yticks()):
        for j, x in enumerate(ax.get_xticks()):
            middle = shown[int(y) - 14:int(y) + 14, int(x) - 14:int(x) + 14]
            assert np.abs(middle - (values[i][j] + 1) * 127.5).max() <= 0.5
    assert (shown[32:34] == 255).all() and (shown[:, 32:34] == 255).all()


def test_steps_and_jump_are_one_distribution(course):
    """Both are N(√ᾱ x_0, 1-ᾱ), ᾱ = ∏ (1-β) of the linear schedule, to 4.5 errors."""
    torch.manual_seed(0)
    found = figures.walk_and_jump(course.linear, 0.8, (30, 100, 300))
    assert [t for t, _, _ in found] == [30, 100, 300]
    for t, walked, jumped in found:
        bar = np.prod(1 - np.linspace(1e-4, 0.02, 300)[:t])
        n = len(walked)
        assert n == len(jumped) == figures.SAMPLES and not (walked == jumped).any()
        assert stats.ks_2samp(walked, jumped).pvalue > 1e-3
        for x in (walked.double(), jumped.double()):
            assert abs(x.mean() - bar ** 0.5 * 0.8) < 4.5 * ((1 - bar) / n) ** 0.5
            assert abs(x.var() / (1 - bar) - 1) < 4.5 * (2 / n) ** 0.5


def test_the_table_counts_every_parameter_and_every_product(course):
    """FLOPs by hand: two for every weight of a convolution at every place, and for every entry of
    the attention's two products."""
    rows = figures.summary(course.net, 16)
    assert sum(row[4] for row in rows) == sum(p.numel() for p in course.net.parameters())
    parts = {row[0].split(".")[0] for row in rows}
    assert parts == {"time", "stem", "down", "middle", "up", "head"}
    expected, names = {}, {layer: name for name, layer in course.net.named_modules()}

    def count(layer, inputs, output):
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            places = output[0, 0].numel() if output.dim() == 4 else 1
            expected[names[layer]] = 2 * layer.weight.numel() * places
        elif type(layer).__name__ == "SelfAttention":
            channels, tokens = output.shape[1], output[0, 0].numel()
            expected[names[layer] + "."] = 4 * channels * tokens ** 2

    hooks = [layer.register_forward_hook(count) for layer in names]
    course.net(torch.zeros(1, 3, 16, 16), torch.zeros(1).long(), torch.ones(1, 1, 16, 16))
    for hook in hooks:
        hook.remove()
    for name, what, before, after, _, flops in rows:
        inside = [value for key, value in expected.items() if f"{key}.".startswith(f"{name}.")]
        assert flops == sum(inside), name
        assert ("Attention" in what) == any(key.startswith(name) and key.endswith(".")
                                            for key in expected)
    assert rows[1][2:4] == ("16×8×8", "8×8×8")         # the stem: 4 channels in patches of 2×2


def test_the_table_leaves_nothing_behind_in_the_network(course):
    figures.summary(course.net, 16)
    assert not any(layer._forward_hooks for layer in course.net.modules())


def test_known_pixels_are_exact_in_every_picture_of_the_strip(course):
    hole = masks.random(1, 16, torch.Generator().manual_seed(0))
    xs, x0s = figures.reverse(course.ddpm, course.net, course.x, hole)
    assert len(xs) == len(x0s) == course.ddpm.T + 1
    inside = hole[0].bool().expand(3, -1, -1)
    for x in xs + x0s:
        assert (x[~inside] == course.x[0][~inside]).all()
    for before, after in zip(xs, xs[1:]):
        assert (before[inside] != after[inside]).any()
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(course.x.shape, generator=generator)[0]
    assert (xs[0][inside] == start[inside]).all()                       # x_T is the noise itself
    end = course.ddpm.sample(course.net, course.x, hole,
                             generator=torch.Generator().manual_seed(0))[0]
    assert (xs[-1] == end).all() and (x0s[-1] == end).all()


def test_adagn_turns_the_map_by_the_scale_and_shift_drawn_above_it(course):
    fig = draw("adagn", course)
    top, bottom = fig.subfigs
    scale, shift = (ax.lines[0].get_ydata() for ax in top.axes)
    maps = [np.asarray(ax.images[0].get_array()) for ax in bottom.axes if ax.get_title()]
    levels = [int(re.search(r"t = (\d+)", ax.get_title())[1]) for ax in bottom.axes[1:5]]
    assert levels == [1, 7, 13, 20]
    for t, shown in zip(levels, maps[1:]):
        assert np.allclose(shown, scale[t - 1] * maps[0] + shift[t - 1], atol=1e-4)
    emb = course.net.time(timestep_embedding(torch.arange(20), 8))
    lines = torch.tensor(np.array([line.get_ydata() for line in top.axes[1].lines[1:]]))
    assert torch.allclose(lines.T, course.net.down[0].norm2.scale_shift(emb)[:, 8:], atol=1e-5)


def test_patchmatch_finds_patches_whole_periods_away(course):
    """As the last panel's title says; and the difference falls from panel to panel."""
    fig = draw("patchmatch", course)
    bottoms = fig.axes[4:]
    told = [float(ax.get_xlabel().split()[-1]) for ax in bottoms]
    assert (np.diff(told) < 0).all() and told[0] > 0.3 and told[-1] < 0.001
    (arrows,) = [c for c in fig.axes[3].collections]
    assert (np.stack([arrows.U, arrows.V]) % 12 == 0).all()
    image, hole = figures.wallpaper()
    right = data.to_uint8(image)[0].numpy().astype(int)
    assert np.abs(picture(bottoms[-1]) - right).max() < 8


def test_schedules_lines_are_one_schedule_seen_three_ways(course):
    fig = draw("schedules", course)
    for k, name in enumerate(("linear", "rescaled", "cosine")):
        betas, bars, snr = (ax.lines[k].get_ydata() for ax in fig.axes[:3])
        assert [ax.lines[k].get_label() for ax in fig.axes[:3]] == 3 * [name]
        assert np.allclose(np.cumprod(1 - betas), bars, rtol=1e-9)
        assert np.allclose(snr, np.log(bars / (1 - bars)), rtol=1e-9)
    assert fig.axes[1].lines[0].get_ydata()[-1] == pytest.approx(0.048, abs=5e-4)
    ghost = picture(fig.axes[3])[:, -16:].astype(float)   # √0.048 of the photograph, or nothing
    face = data.to_uint8(course.x)[0].numpy()
    like = [np.corrcoef(part.ravel(), face.ravel())[0, 1]
            for part in (ghost[:16], ghost[17:33], ghost[-16:])]
    assert like[0] > 0.5 and max(map(abs, like[1:])) < 0.2


def test_the_posteriors_lines_are_its_closed_form(course):
    fig = draw("posterior", course)
    betas = course.cosine.betas.numpy()
    bars = np.cumprod(1 - betas)
    before = np.append(1, bars[:-1])
    of_x0, of_xt = (line.get_ydata() for line in fig.axes[0].lines)
    assert np.allclose(of_x0, before ** 0.5 * betas / (1 - bars), rtol=1e-9)
    assert np.allclose(of_xt, (1 - betas) ** 0.5 * (1 - before) / (1 - bars), rtol=1e-9)
    assert np.allclose(fig.axes[1].lines[0].get_ydata(), (1 - before) / (1 - bars) * betas)
    for t, line in zip((5, 20, 60), fig.axes[2].lines):
        mean = 0.5 * of_x0[t - 1] - 0.5 * of_xt[t - 1]
        assert_bell(line, t, mean, (1 - before[t - 1]) / (1 - bars[t - 1]) * betas[t - 1])


def test_one_steps_bells_have_its_mean_and_variance(course):
    fig = draw("step", course)
    for t, line in zip((20, 100, 300), fig.axes[0].lines):
        beta = 1e-4 + (0.02 - 1e-4) * (t - 1) / 299
        assert_bell(line, t, 0.8 * (1 - beta) ** 0.5, beta)
    betas = np.linspace(1e-4, 0.02, 300)
    assert np.allclose(fig.axes[1].lines[0].get_ydata(), (1 - betas) ** 0.5, rtol=1e-12)
    assert np.allclose(fig.axes[2].lines[0].get_ydata(), betas, rtol=1e-12)


def assert_bell(line, t, mean, variance):
    assert line.get_label() == f"t = {t}"
    x, density = (np.asarray(v, dtype=float) for v in line.get_data())
    assert np.trapezoid(density, x) == pytest.approx(1, abs=1e-3)
    assert np.trapezoid(density * x, x) == pytest.approx(mean, abs=1e-3)
    assert np.trapezoid(density * (x - mean) ** 2, x) == pytest.approx(variance, rel=0.01)


def test_signal_and_noise_add_up_to_the_picture_below_them(course):
    rows = picture(draw("levels", course).axes[0]).astype(float) / 127.5 - 1
    signal, noise, both = rows[:16], rows[17:33], rows[34:]
    assert np.allclose(signal[:, :16], course.x[0].permute(1, 2, 0), atol=0.01)         # t = 0
    whole = (np.abs(noise) < 1) & (np.abs(both) < 1)                          # not clipped
    assert whole.mean() > 0.5 and np.abs(signal + noise - both)[whole].max() < 0.02


def test_algorithm_1_learns(monkeypatch):
    monkeypatch.setattr(figures, "BATCH", 8)
    torch.manual_seed(0)
    losses, samples = figures.algorithm_1([30, 50])
    assert len(losses) == 50 and len(samples) == 2 and samples[0].shape == (5, 3, 16, 16)
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    assert (samples[0] != samples[1]).any()


def test_the_masks_drawn_are_those_of_the_families_that_are_named(course):
    shown, titles = panels(draw("masks", course).axes[0])
    assert [title.split("\n")[0] for title in titles] == list(masks.FAMILIES)
    photograph = bytes_of(course.x[0])
    for j, (family, title) in enumerate(zip(masks.FAMILIES.values(), titles)):
        holes = family(400, 16, torch.Generator().manual_seed(2))
        assert float(title.split()[-1].strip("%")) == pytest.approx(100 * holes.mean(), abs=0.5)
        assert (shown[0, j] == 255 * holes[0].permute(1, 2, 0).numpy()).all()
        for i, hole in enumerate(holes[:3].permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy() > 0):
            assert (shown[i + 1, j][~hole] == photograph[~hole]).all()
            assert (shown[i + 1, j][hole] == 128).all()


def test_scene_matches_are_the_nearest_and_only_the_hole_is_pasted(course):
    """Against every distance, of the quarter-size cells that are wholly known."""
    shown, _ = panels(draw("scene", course).axes[0])
    faces, face = data.synthetic(2000, 16), data.synthetic(1, 16, seed=7)[0].numpy().astype(int)
    hole = masks.center(1, 16)[0, 0].numpy() > 0
    cells = faces.numpy().reshape(-1, 4, 4, 4, 4, 3).mean(axis=(2, 4))
    cell = face.reshape(4, 4, 4, 4, 3).mean(axis=(1, 3))
    known = ~hole.reshape(4, 4, 4, 4).any(axis=(1, 3))
    nearest = ((cells - cell) ** 2)[:, known].sum(axis=(1, 2)).argsort()
    for j, match in ((1, nearest[0]), (2, nearest[1])):
        assert (shown[0, j] == faces[match].numpy()).all()
    assert (shown[0, 0][hole] == 128).all() and (shown[0, 5] == face).all()
    for j in (0, 3, 4):
        assert (shown[0, j][~hole] == face[~hole]).all()
    assert (shown[0, 3] != shown[0, 4]).any()
    assert np.abs(shown[0, 4] - face)[hole].mean() < np.abs(shown[0, 3] - face)[hole].mean()


def test_noise_is_added_step_by_step(course):
    """x_t = √(1-β_t) x_{t-1} + √β_t ε, with the linear schedule's β."""
    torch.manual_seed(0)
    shown, titles = panels(draw("noising", course).axes[0])
    assert titles == [f"$x_{{{t}}}$" for t in range(0, 301, 60)]
    torch.manual_seed(0)
    x = course.x.double()
    assert (shown[0, 0] == bytes_of(course.x[0])).all()
    for t, beta in enumerate(np.linspace(1e-4, 0.02, 300), 1):
        x = (1 - beta) ** 0.5 * x + beta ** 0.5 * torch.randn_like(course.x)
        if t % 60 == 0:
            assert np.abs(shown[0, t // 60] - bytes_of(x[0])).max() <= 1


def test_the_linear_schedules_line_is_a_straight_one_with_its_ends_named(course):
    ax, = draw("linear", course).axes
    t, betas = ax.lines[0].get_data()
    assert (t == np.arange(1, 301)).all()
    assert np.allclose(betas, np.linspace(1e-4, 0.02, 300), rtol=1e-12)
    assert [float(text.get_text().split()[-1]) for text in ax.texts] == [1e-4, 0.02]


def test_the_embedding_drawn_is_the_networks(course):
    """And its products are Σ cos ω (t - s), from cos a cos b + sin a sin b = cos (a - b)."""
    fig = draw("embedding", course)
    assert (picture(fig.axes[0]) == timestep_embedding(torch.arange(300), 64).T.numpy()).all()
    omega = 10_000 ** (-np.arange(32) / 32)
    assert len(fig.axes[1].lines) == 2
    for line in fig.axes[1].lines:
        t, product = line.get_data()
        away = np.subtract(t, int(line.get_label().split()[-1]))
        assert np.allclose(product, np.cos(np.outer(away, omega)).mean(axis=1), atol=1e-4)
        assert t[np.argmax(product)] == int(line.get_label().split()[-1])


def test_the_strips_titles_say_which_step_is_drawn(course):
    xs, x0s = course.inpainting
    shown, titles = panels(draw("inpainting", course).axes[0])
    assert titles == [f"t = {t}" for t in (20, 16, 12, 8, 4, 0)]
    for j, title in enumerate(titles):
        i = 20 - int(title.split()[-1])
        assert (shown[0, j] == bytes_of(xs[i])).all() and (shown[1, j] == bytes_of(x0s[i])).all()


def test_the_film_shows_every_step_of_the_strip_beside_its_estimate(course):
    frames = figures.FIGURES["animation"](course)
    assert len(frames) == 20 + 8
    for frame, x, x0 in zip(frames, *course.inpainting):
        seen = np.asarray(frame).astype(int)[22 + 6::12]                      # 12 pixels a pixel
        assert (seen[:, 6:192:12] == bytes_of(x)).all()
        assert (seen[:, 196 + 6::12] == bytes_of(x0)).all()


@pytest.mark.parametrize("name, greys, drawn", [
    ("results", {"encoder_decoder": 10, "glcic": 60, "gated_convolution": 85, "biharmonic": 110,
                 "patchmatch": 160}, False),
    ("drawn", {"mean_face": 10, "ridge_regression": 60, "scene_completion": 85, "biharmonic": 110,
               "patchmatch": 160}, True)])
def test_columns_hold_their_methods_fills_and_known_pixels_are_exact(
        course, monkeypatch, name, greys, drawn):
    """Every method's fill a grey of its own, the network's two a draw of its generator."""
    def find(method, *_, **__):
        def inpaint(image, hole, generator):
            (grey,) = [value for title, value in greys.items()
                       if title.startswith(method)] or [None]
            if grey is not None:
                return torch.full_like(image, grey / 127.5 - 1)
            return torch.stack([torch.rand(3, 16, 16, generator=g) for g in generator])

        def fit(faces):
            assert torch.equal(faces, data.synthetic(2000, 16))
            return inpaint
        fitted = method in ("mean", "ridge", "scene_completion")
        return SimpleNamespace(fit=fit) if fitted else SimpleNamespace(inpaint=inpaint)

    monkeypatch.setattr(figures.methods, "find", find)
    ax = draw(name, course).axes[0]
    picture = data.to_float(data.synthetic(1, 16, seed=7)) if drawn else course.x
    shown, titles = panels(ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(masks.FAMILIES)
    first, *middle, last = [re.sub("[- ]", "_", title.lower()) for title in titles]
    assert first == "to_fill" and last == "original"
    assert middle[-len(greys):] == [*greys] and len(middle) == len(greys) + 2 * (name == "results")
    for i, family in enumerate(masks.FAMILIES.values()):
        hole = family(1, 16, torch.Generator().manual_seed(2))[0, 0].numpy() > 0
        for j in range(len(titles)):
            assert (shown[i, j][~hole] == bytes_of(picture[0])[~hole]).all()
        assert (shown[i, 0][hole] == 128).all()
        assert drawn or (shown[i, 1][hole] != shown[i, 2][hole]).any()
        for j, title in enumerate(middle, 1):
            assert title not in greys or (shown[i, j][hole] == greys[title]).all()


def test_every_point_of_quality_against_calls_is_a_result(course):
    """Nothing of docs/calls.json is left out, and nothing else drawn: calls, mean and interval; of
    the small run only what is paired."""
    fig, runs = draw("calls", course), json.loads(figures.CALLS.read_text())
    panels = itertools.product(("center", "irregular"),
                               ("crps_minus_first", "fd", "spread_skill", "psnr_hole"))
    for ax, (hole, score) in zip(fig.axes, panels, strict=True):
        drawn = {}
        for bars in ax.containers:
            line, _, (segments,) = bars
            for calls, mean, ends in zip(*line.get_data(), segments.get_segments()):
                drawn.setdefault((calls, mean, *ends[:, 1]), []).append(line)
        told = {(r["calls"], *np.broadcast_to(r[score], 3)): (r["method"].split("@")[0], i)
                for i, run in enumerate(runs if score == "crps_minus_first" else runs[:1])
                for r in run["results"] if r["mask"] == hole}
        assert len(drawn) == len(told)
        colour = dict(zip(figures.methods.DIFFUSION, figures.COLOURS))
        for point, (method, i) in told.items():
            (lines,) = [lines for at, lines in drawn.items() if np.allclose(at, point, atol=1e-6)]
            assert lines[-1].get_color() == colour[method]
            assert (lines[-1].get_markerfacecolor() == "white") == (i > 0)


def test_the_shipped_networks_losses_are_those_logged(course):
    """Each line of weights/celeba64.jsonl is a point of both curves, and there are no others."""
    (ax,) = draw("weights", course).axes
    rows = [json.loads(line) for line in figures.LOG.read_text().splitlines()]
    begun = {row["before"] / 1000 for row in rows}
    lines = [line for line in ax.lines if line.get_linestyle() == "-"]
    assert {line.get_xdata()[0] for line in ax.lines if line not in lines} == begun
    assert len(lines) == 2 * len(begun)
    drawn = {(line.get_color(), *point) for line in lines for point in zip(*line.get_data())}
    assert drawn == {(figures.COLOURS[i], (row["before"] + row["images"]) / 1000, row[score])
                     for row in rows for i, score in enumerate(("held_out", "loss"))}


def test_the_loss_drawn_is_that_of_algorithm_1(course, monkeypatch):
    monkeypatch.setattr(figures, "STEPS", 40)
    losses = [math.exp(-i / 7) for i in range(40)]
    images = [torch.zeros(5, 3, 16, 16)] * 3
    monkeypatch.setattr(figures, "algorithm_1", lambda stops: (losses, images))
    points, mean = draw("training", course).axes[0].lines
    assert np.allclose(points.get_ydata(), losses)
    for step, value in zip(*mean.get_data()):
        assert value == pytest.approx(np.mean(losses[step - 2:step]), rel=1e-6)
