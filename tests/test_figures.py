"""The course's pictures: every one is drawn, and shows what its title says."""
import argparse
import re

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

import figures
import masks
import train
from unet import UNet, timestep_embedding

SHIPPED = figures.Path(figures.__file__).parent / "docs" / "figures"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a small network with random layers, so that its pictures depend on everything."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("weights")
    net = UNet(16, 2, [8, 16], 1)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    args = argparse.Namespace(out=str(out), size=16, patch=2, widths=[8, 16], blocks=1,
                              schedule="cosine", T=20, prediction="v")
    train.save(args, {"ema": net}, torch.Generator(), 1, [])
    return out / "weights.pt"


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


def test_all_of_them_are_drawn_and_none_is_blank(command, tmp_path):
    assert command()[0] == 0
    files = {file.stem: file for file in (tmp_path / "docs/figures").iterdir()}
    assert set(files) == set(figures.FIGURES)
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


def test_those_named_are_drawn_and_do_not_depend_on_the_others(command, tmp_path):
    assert command("jump", "step", "--out", "a")[0] == 0
    assert command("step", "--out", "b")[0] == 0
    assert {file.name for file in (tmp_path / "a").iterdir()} == {"jump.png", "step.png"}
    assert (tmp_path / "a/step.png").read_bytes() == (tmp_path / "b/step.png").read_bytes()


@pytest.mark.parametrize("argv, said", [
    (["schedule"], "no figure 'schedule': masks, "),
    (["masks", "--weights", "none.pt"], "none.pt: no such file"),
    (["linear", "--out", "file"], "file"),
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
    assert max(sizes.values()) <= 150_000 and sum(sizes.values()) <= 1_200_000


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
    right = figures.data.to_uint8(image)[0].numpy().astype(int)
    assert np.abs(picture(bottoms[-1]) - right).max() < 8


def test_schedules_lines_are_one_schedule_seen_three_ways(course):
    fig = draw("schedules", course)
    for k, name in enumerate(("linear", "cosine")):
        betas, bars, snr = (ax.lines[k].get_ydata() for ax in fig.axes[:3])
        assert [ax.lines[k].get_label() for ax in fig.axes[:3]] == 3 * [name]
        assert np.allclose(np.cumprod(1 - betas), bars, rtol=1e-9)
        assert np.allclose(snr, np.log(bars / (1 - bars)), rtol=1e-9)
    assert fig.axes[1].lines[0].get_ydata()[-1] == pytest.approx(0.048, abs=5e-4)
    ghost = picture(fig.axes[3])[:, -16:].astype(float)   # √0.048 of the photograph, or nothing
    face = figures.data.to_uint8(course.x)[0].numpy()
    like = [np.corrcoef(part.ravel(), face.ravel())[0, 1] for part in (ghost[:16], ghost[-16:])]
    assert like[0] > 0.5 and abs(like[1]) < 0.2


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
