"""A page on which one paints a hole into a photograph and watches the network fill it.

    pip install -r requirements-demo.txt
    python -m tools.demo                             # and open the address that it prints

It does what inpaint.py does with a photograph and a mask file, by the same functions; the page
gives out the hole and the command with which inpaint.py makes the same files. What a visitor may
send, and how long it is kept, is in tools/guard.py; the painting itself is in tools/page/paint.js.
"""
import argparse
import atexit
import base64
import contextlib
import functools
import html
import io
import os
import queue
import shlex
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import support.threads

import matplotlib
import numpy as np
import torch
from PIL import Image

import data
import faces
import inpaint
import masks
import methods
import sharpen
import windows
from support.cli import BadInput, check_empty, check_range, device, lacks_memory, run
from support.files import provenance, write_png
from support.foreign import local
from support.photographs import Photograph
from support.results import spread_of
from support.runs import WEIGHTS_HELP
from tools import guard

BYTES, PIXELS, SIDE = 2 ** 25, 2 ** 24, 2 ** 13   # of a photograph, at most
SAMPLES = 8                           # fills at a time, at most
FRAMES, THUMBNAIL = 25, 128           # of the chain that are kept; their side, at most, in pixels
AT_ONCE, WAITING = 2, 32              # fills at work, and calls in the queue
LONGEST = 20 * 60                     # seconds that a fill may take
CANVAS, SHORTEST = 640, 48            # the longer side of what is painted on; the shorter, at least
PAINT = "#e4572e"
FILES = Path(__file__).parent / "page"
# Best first: CRPS with the network (docs/calls.md), then of one fill (docs/benchmark.md).
WAYS = {"keep": "the network knows the hole",
        "pigdm": "guided towards the known pixels",
        "repaint": "noised and denoised again and again",
        "ddnm": "known pixels in every estimate",
        "replace": "known pixels noised and pasted",
        "encoder_decoder": "one call, a blur",
        "glcic": "one call, with an adversary",
        "gated_convolution": "the same, with gates",
        "biharmonic": "a smooth surface, nothing learnt",
        "patchmatch": "patches of the picture itself",
        "masked": "the hole, left grey"}

# What is served: the network as `load_weights` gives it, where it runs, its --weights and --sharpen
# as named, its provenance, and the methods that it can be used with: {name: what it says of
# itself}; and the sharpener, as `sharpen.find` gives it, and the readout of faces.py.
Model = namedtuple("Model", "ddpm eps_model size device weights sharpen made ways "
                            "sharpener readout")


def load(weights=inpaint.WEIGHTS, where="cpu", sharpened_by=None):
    """The Model of --weights, --device and --sharpen."""
    path = local(weights)
    ddpm, eps_model, size = inpaint.load_weights(path, where)
    sharpener = sharpen.find(sharpened_by, path, size, where)
    made = provenance(path, 0, sharpener and sharpener.path)
    return Model(ddpm, eps_model, size, where, weights, sharpened_by, made, ways(ddpm, eps_model),
                 sharpener, faces.load(path, ddpm, eps_model, size))


def ways(ddpm, eps_model):
    """{name: what it says of itself} of the methods that need no training images, best first."""
    names = sorted(methods.METHODS, key=lambda name: [*WAYS, name].index(name))
    if not methods.knows_hole(eps_model):
        names.remove("keep")
    found = {name: methods.find(name, ddpm, eps_model, 1) for name in names}
    texts = {name: (methods.DIFFUSION.get(name) or method).__doc__ or name
             for name, method in found.items() if hasattr(method, "inpaint")}
    return {name: " ".join(text.split("\n\n")[0].split()) for name, text in texts.items()}


def method_called(name, model, steps, callback=None):
    """Of those offered: `methods.find` would run any file that a visitor names."""
    if name not in model.ways:
        raise BadInput(f"the method is one of {', '.join(model.ways)}")
    return methods.find(name, model.ddpm, model.eps_model, steps, callback=callback,
                        sharpener=model.sharpener)


# ---- a hole in a photograph --------------------------------------------------------------------

def read_photograph(path):
    """(name, Photograph) of a file that was uploaded; the astronaut for None. Raises BadInput."""
    if path is None:
        return "astronaut", Photograph(inpaint.astronaut())
    try:
        file = io.BytesIO(Path(path).read_bytes())
    except OSError:
        raise BadInput("the photograph is no longer here: open it again") from None
    file.name = Path(path).name                                      # for messages
    picture = data.decode(file)
    if max(picture.size) > SIDE:
        raise BadInput(f"{file.name}: no side may be longer than {SIDE:,} pixels")
    return file.name, Photograph(picture)


def canvas_size(size):
    """(width, height) of what is painted on, for a photograph of this size."""
    return tuple(max(round(CANVAS * side / max(size)), SHORTEST) for side in size)


def data_url(picture, kind="PNG"):
    file = io.BytesIO()
    picture.save(file, kind, quality=90)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(file.getvalue()).decode()


def canvas(photograph):
    """The Photograph that the hole is painted on, as a data URL."""
    picture = Image.fromarray(photograph.rgb.numpy())
    return data_url(picture.resize(canvas_size(picture.size)), "JPEG")


def draw(family, size):
    """A hole of the family in the largest square of a photograph of this size, as it is painted."""
    hole = Image.new("L", canvas_size(size))
    x, y, end, _ = data.window(hole.size)
    drawn = masks.MASKS[family](1, end - x)[0, 0]
    hole.paste(Image.fromarray((255 * drawn).byte().numpy()), (x, y))
    layer = Image.new("RGBA", hole.size, PAINT)
    layer.putalpha(hole)
    return data_url(layer)


def painted(url, size):
    """The hole in a data URL, opaque where it was painted: [1, H, W], at the photograph's own
    (width, height). Raises BadInput if it is empty, or not what paint.js sends."""
    try:
        hole = torch.zeros(1)
        if url:
            content = base64.b64decode(url.removeprefix("data:image/png;base64,"), validate=True)
            layer = Image.open(io.BytesIO(content), formats=["PNG"])
            if (layer.size, layer.mode) != (canvas_size(size), "RGBA"):
                raise ValueError("of another photograph")
            hole = masks.from_image(layer.getchannel("A"), size)[0]
    except (AttributeError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise BadInput("the hole is not what this page paints: draw it again") from None
    if not hole.any():
        raise BadInput("there is no hole yet: paint over what is to be filled, or have one drawn")
    return hole


# ---- filling it, watched -----------------------------------------------------------------------

class Watch:
    """Of a method's calls: watch(at, x, x0) keeps the `frame`s of FRAMES of the `total` calls,
    evenly spaced. `during(work, *given)` runs work(*given) in a thread and yields the latest frame
    whenever there is a new one; then `result` is what work returned, and what it raised is raised.
    Closed early, or once `listens()` is false or LONGEST has passed, it ends the work at its next
    call, or next window (`ending`), and waits for that, unless the server ends.
    """

    def __init__(self, total=1, listens=lambda: True):
        self.every, self.listens, self.film, self.calls = -(-total // FRAMES), listens, [], 0
        self.total, self.frames, self.closed, self.result = total, queue.SimpleQueue(), False, None

    def ending(self, inpaint):
        """A method's inpaint that does not begin once this is closed."""
        def call(*given):
            if self.closed:
                raise InterruptedError("nobody is watching")
            return inpaint(*given)
        return call

    def __call__(self, at, x, x0):
        if self.closed:
            raise InterruptedError("nobody is watching")
        self.calls += 1
        latest = frame(at, x, x0)
        if self.calls % self.every == 0 or self.calls == self.total:
            self.film.append(latest)
        self.frames.put(latest)

    def during(self, work, *given):
        thread = threading.Thread(target=self.run, args=(work, *given), daemon=True)
        end = time.monotonic() + LONGEST
        thread.start()
        try:
            while thread.is_alive() or not self.frames.empty():
                with contextlib.suppress(queue.Empty):
                    latest = self.frames.get(timeout=0.2)
                    if self.frames.empty() and latest:                 # else the page is behind
                        yield latest
                if not self.listens():
                    raise BadInput("nobody was listening any more")
                if time.monotonic() > end:
                    raise BadInput(f"this takes over {LONGEST / 60:.0f} minutes here: lower steps "
                                   "or samples, paint less, or use inpaint.py, without a limit")
        finally:
            self.closed = True
            while thread.is_alive() and not guard.ENDED.is_set():
                thread.join(0.2)
            if thread.is_alive():                                      # torch would abort at exit
                atexit.register(os._exit, 130)
        if isinstance(self.result, Exception):
            raise self.result

    def run(self, work, *given):
        try:
            self.result = work(*given)
        except Exception as error:
            self.result = error
        self.frames.put(None)


def fill(model, new_folder, path, drawn, name, steps, samples, seed, listens=lambda: True):
    """Fill what was painted, as inpaint.py would with these flags; raises BadInput.

    Yields (state, pictures, command). The state is what `chain` shows: a line, network calls so
    far, calls in all, and the chain's frames: the latest, and at the end all that are kept. Then
    come what `write` has written into new_folder() and the command that makes the same, too.
    """
    begun, (title, photograph) = time.time(), read_photograph(path)
    for what, value, least, most in (("steps", steps, 1, model.ddpm.T),
                                     ("samples", samples, 1, SAMPLES), ("seed", seed, 0, 10 ** 9)):
        if type(value) is not int or not least <= value <= most:
            raise BadInput(f"{what}: a whole number from {least} to {most:,}")
    hole = painted(drawn, photograph.size)

    def watching(t, x, x0):
        first = x.shape[-1] == model.size
        chain = f"t = {t} of {(model if first else model.sharpener).ddpm.T}"
        watch(chain + ", sharpening" * (not first), x, x0)             # watch is made below

    method = method_called(name, model, steps, watching)
    size = None if method.ANY_SIZE else model.size
    found, note = (), ""
    if path and size and methods.knows_hole(model.eps_model):          # as inpaint.py, by default
        yield ("looking for faces …", 0, 1, []), [], ""
        found, none = faces.find(photograph.rgb, hole, size, model.readout)
        note = f"; {faces.NONE}" if none else ""
    planned = inpaint.plan(hole, size, found=found)
    sharpened = model.sharpener and methods.by_diffusion(name)
    shown = model.sharpener.size if sharpened else size
    total = method.CALLS * len(planned)
    watch = Watch(max(total, 1), listens)
    samples = samples if method.DRAWS else 1
    yield ("at work …", 0, watch.total, []), [], ""
    for latest in watch.during(inpaint.complete, watch.ending(method.inpaint), photograph.rgb, hole,
                               shown, samples, seed, model.device, inpaint.BATCH, planned):
        yield (latest[0], watch.calls, watch.total, [latest]), [], ""
    fills, views, order = watch.result
    calls = f"{total} network call{'s' * (total > 1)}" if total else "no network"
    status = f"{samples} fill{'s' * (samples > 1)}, {calls} each: {time.time() - begun:.1f} s{note}"
    if not any(part.any() for _, _, part, _ in views):
        status += "; the hole is too thin for the network, and blurred over"
    stem, here = Path(title).stem, "./" * title.startswith("-")   # else it would be read as a flag
    command = shlex.join(map(str, [
        "python", "inpaint.py", *[here + title] * bool(path), "--mask", f"{here}{stem}_hole.png",
        "--method", name, "--steps", steps, "--samples", samples, "--seed", seed,
        *["--weights", model.weights] * (model.weights != inpaint.WEIGHTS),
        *["--sharpen", model.sharpen] * bool(model.sharpen and methods.by_diffusion(name))]))
    made = {**model.made, "seed": seed, "command": command}
    if not sharpened:
        made.pop("sharpener", None)
    pictures = write(new_folder(), stem, photograph, hole, fills, made)
    film = [(at, *([row[k] for k in order] for row in rows)) for at, *rows in watch.film]
    yield (status, watch.total, watch.total, film), pictures, command


def left_of(file):
    """Where the hole in a file begins, in hundredths of its width."""
    hole = np.asarray(Image.open(file)) > 0
    return 100 * windows.bounds(hole)[1] / hole.shape[1]


def write(folder, stem, photograph, hole, fills, made):
    """The photograph, its fills, their spread, bright in the hole of the dimmed photograph, and the
    hole, as PNGs that say how they were made: [(file, caption)], in this order."""
    pictures = {"input": (photograph.filled(), "original")}
    pictures |= {f"{k}": (photograph.filled(hole, filled), f"fill {k}")
                 for k, filled in enumerate(fills)}
    if len(fills) > 1:
        spread = spread_of(fills.numpy())
        heat = matplotlib.colormaps["magma"](spread / max(spread.max(), 1), bytes=True)[..., :3]
        dim = (photograph.rgb.float().mean(dim=-1, keepdim=True) / 3).byte()
        heat = np.where(hole[0, :, :, None].numpy() > 0, heat, dim.numpy())
        pictures["spread"] = Image.fromarray(heat), f"spread 0 … {spread.max():.0f}"
    pictures["hole"] = Image.fromarray((255 * hole[0]).byte().numpy()), "hole"
    for end, (picture, _) in pictures.items():
        write_png(picture, folder / f"{stem}_{end}.png", made)
    return [(str(folder / f"{stem}_{end}.png"), caption) for end, (_, caption) in pictures.items()]


# ---- the chain ---------------------------------------------------------------------------------

def frame(at, x, x0):
    """(at, row, row): thumbnails of every sample as it is, and as it may end; `at` is text."""
    return at, [thumbnail(one) for one in x], [thumbnail(one) for one in x0]


def as_html(at, *rows):
    """A `frame` as a page shows it."""
    captions = (f"<b>x</b> after the step at {at}",
                "<b>x̂<sub>0</sub></b>, the network's estimate of the clean image")
    images = ("".join(f'<img alt="" src="{url}">' for url in row) for row in rows)
    return "".join(f"<figure><figcaption>{caption}</figcaption><div>{row}</div></figure>"
                   for caption, row in zip(captions, images))


def thumbnail(image):
    """An image [3, size, size] in [-1, 1] as a data URL; nearest neighbours keep noise noisy."""
    picture = Image.fromarray(data.to_uint8(image[None])[0].cpu().numpy())
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.NEAREST)
    return data_url(picture)


def chain(status, calls, total, film):
    """The reverse process as HTML: how far it is, its last frame, and a slider to the others."""
    bar = f'<progress max="{total}" value="{calls}"></progress>'
    if not calls:
        bar = "<progress></progress>"                                  # it moves, with no end
    last = len(film) - 1
    frames = "".join(f'<div class="frame" {"hidden" * (k < last)}>{as_html(*one)}</div>'
                     for k, one in enumerate(film))
    slider = (f'<input type="range" max="{last}" value="{last}" aria-label="the chain, from noise '
              'to the fill"><div class="ends"><span>noise</span><span>the fill</span></div>')
    return f'<div id="chain"><p>{status}</p>{bar}{frames}{slider * (last > 0)}</div>'


# Scripts: the slider below the chain, the chain and the result into view, and what Stop says.
SCRUB = """element.addEventListener("input", event =>
    element.querySelectorAll(".frame").forEach((one, k) => one.hidden = k != event.target.value))"""
INTO_VIEW = """() => {setTimeout(() => document.querySelector("%s")?.scrollIntoView(
    {behavior: "smooth", block: "%s"}), 300)}"""
STOPPED = """shown => shown
    .replace(/<p>(looking for faces|at work) …/, "<p>stopped before the first call")
    .replace("<p>t =", "<p>stopped at t =").replace("<progress></progress>", "")"""


# ---- the page ----------------------------------------------------------------------------------

def knowledge(model):
    """What the network can do, in a line."""
    known = "faces, cropped as in CelebA" if model.weights == inpaint.WEIGHTS else \
        f"what {Path(model.weights).name} was trained on"
    size = model.sharpener.size if model.sharpener else model.size
    return (f"The network knows **{known}**, at **{size}×{size} pixels**: it paints "
            "nothing else, and a larger hole is filled at that size and enlarged, so it is soft.")


def asking(gr, model):
    """The controls: what is asked for."""
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            editor = gr.HTML(
                "", html_template=(FILES / "paint.html").read_text(), apply_default_css=False,
                js_on_load=(FILES / "paint.js").read_text(), elem_id="editor", paint=PAINT,
                photograph=canvas(Photograph(inpaint.astronaut())))
            gr.Markdown("Paint over what is to be filled, or have a hole drawn:")
            with gr.Row(elem_id="families"):
                drawn = {family: gr.Button(family, size="sm", min_width=60)
                         for family in masks.FAMILIES}
            upload = gr.UploadButton("Open a photograph of your own", size="sm",
                                     file_types=list(data.SUFFIXES))
            gr.Markdown(knowledge(model))
        with gr.Column(scale=2, min_width=320):
            first = next(iter(model.ways))
            method = gr.Dropdown([(f"{name}: {WAYS[name]}" if name in WAYS else name, name)
                                  for name in model.ways], value=first, label="Method")
            text = gr.Markdown(model.ways[first])
            more = f"; {sharpen.calls(model.sharpener)} to sharpen" if model.sharpener else ""
            proposed = gr.State(methods.usual_steps(first, model.ddpm))
            steps = gr.Slider(1, model.ddpm.T, proposed.value, step=1, label="Steps",
                              info=f"levels of noise; a network call each, more for repaint{more}")
            samples = gr.Slider(1, SAMPLES, 4, step=1, label="Samples",
                                info="fills, each from its own noise, the most typical first")
            seed = gr.Number(0, minimum=0, maximum=10 ** 9, precision=0, label="Seed",
                             info="the same seed, the same fills")
            with gr.Row():
                button = gr.Button("Fill the hole", variant="primary", elem_id="fill", scale=3)
                stop = gr.Button("Stop", elem_id="stop", scale=1, min_width=60, interactive=False)
            live = gr.HTML(js_on_load=SCRUB, apply_default_css=False)
    return SimpleNamespace(**locals())


def answering(gr):
    """What comes back: a fill beside the original, all of them, and the files."""
    with gr.Column(visible=False, elem_id="outcome") as outcome:
        gr.Markdown("Left of the line the original, right of it a fill: click one below.")
        compared = gr.ImageSlider(show_label=False, interactive=False, max_height=540,
                                  buttons=["fullscreen"], elem_id="compared")
        fills = gr.Gallery(show_label=False, elem_id="fills", height="auto", buttons=[],
                           object_fit="contain", interactive=False, allow_preview=False)
        with gr.Accordion("Downloads, and the same from the command line", open=False):
            files = gr.File(label="Without loss", file_count="multiple", elem_id="files",
                            interactive=False)
            command = gr.Textbox(label="Command", buttons=["copy"], interactive=False)
    return SimpleNamespace(**locals())


@contextlib.contextmanager
def mistakes(gr):
    """What is wrong becomes a message on the page, without a path of this machine."""
    try:
        yield
    except BadInput as error:
        raise gr.Error(html.escape(str(error)), print_exception=False) from None
    except OSError as error:
        raise gr.Error(f"the server: {error.strerror}", print_exception=False) from None
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        raise gr.Error("the server is out of memory: lower the samples, or reduce the photograph",
                       print_exception=False) from None


def page(gr, model, front):
    """The page, as gradio's Blocks, behind a guard.Guard."""
    def show(path, family=None):
        with mistakes(gr):
            photograph = read_photograph(path)[1]
            return path, gr.HTML(draw(family, photograph.size) if family else "",
                                 photograph=canvas(photograph))

    def open_another(path):
        return *show(path), "", gr.update(visible=False)             # not the last one's fills

    def suit(name, steps, proposed):
        with mistakes(gr):
            method = method_called(name, model, 1)
        has = methods.by_diffusion(name)
        if has and steps == proposed:                                # and not chosen
            steps = proposed = methods.usual_steps(name, model.ddpm)
        return (model.ways[name], gr.update(value=steps, interactive=has), proposed,
                *[gr.update(interactive=method.DRAWS)] * 2)

    def start(path, hole, name, steps, samples, seed, request: gr.Request):
        with mistakes(gr):
            session = request.session_hash
            for state, pictures, command in fill(model, guard.folder, path, hole, name, steps,
                                                 samples, seed, lambda: front.listens(session)):
                files = [file for file, _ in pictures]
                if not pictures and front.behind(session):
                    continue
                if pictures:
                    compared = gr.update(value=files[:2], slider_position=left_of(files[-1]))
                    yield (chain(*state), gr.update(interactive=False), gr.update(visible=True),
                           compared, pictures[1:-1], files[1:], command, files)
                else:
                    hide = gr.skip() if state[1] else gr.update(visible=False)
                    yield chain(*state), gr.update(interactive=True), hide, *[gr.skip()] * 5

    def compare(files, event: gr.EventData):
        with mistakes(gr):
            index = (event._data or {}).get("index")
            if index not in range(len(files) - 2):                   # the first is the original
                raise BadInput("there is no such fill")
            return files[0], files[1 + index]

    with guard.blocks(gr, title="Paint a hole", analytics_enabled=False) as blocks:
        path, written = gr.State(), gr.State([])
        gr.Markdown("# Paint a hole\nNoise goes into it, and a network removes the noise step by "
                    "step; the pixels around it stay what they are.")
        ask, answer = asking(gr, model), answering(gr)
        ask.upload.upload(open_another, ask.upload, [path, ask.editor, ask.live, answer.outcome],
                          show_progress="hidden")
        for family, button in ask.drawn.items():
            button.click(functools.partial(show, family=family), path, [path, ask.editor],
                         show_progress="hidden")
        ask.method.change(suit, [ask.method, ask.steps, ask.proposed],
                          [ask.text, ask.steps, ask.proposed, ask.samples, ask.seed],
                          show_progress="hidden")
        ask.button.click(None, js=INTO_VIEW % ("#chain", "nearest"))
        running = ask.button.click(
            start, [path, ask.editor, ask.method, ask.steps, ask.samples, ask.seed],
            [ask.live, ask.stop, answer.outcome, answer.compared, answer.fills, answer.files,
             answer.command, written], concurrency_limit=AT_ONCE, show_progress="hidden")
        idle = gr.update(interactive=False)
        running.then(lambda: idle, None, ask.stop, js=INTO_VIEW % ("#outcome", "start"),
                     show_progress="hidden")
        cancelled = ask.stop.click(None, cancels=[running])           # a frame may still arrive
        cancelled.then(lambda: idle, None, ask.stop).then(None, ask.live, ask.live, js=STOPPED)
        answer.fills.select(compare, written, answer.compared, show_progress="hidden")
    return blocks.queue(max_size=WAITING)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    add("--port", type=int, default=7860)
    add("--weights", default=inpaint.WEIGHTS, help=WEIGHTS_HELP)
    add("--sharpen", metavar="FILE", help=f"{sharpen.HELP}; default: ours for our weights")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    check_empty(args)
    check_range(args, 1, 65_535, "port")
    socket.create_server((args.host, args.port)).close()             # or an OSError that says why
    model = load(args.weights, device(args.device), args.sharpen)
    if args.host not in ("127.0.0.1", "localhost"):
        print(guard.UNBOUNDED, file=sys.stderr)
    Image.MAX_IMAGE_PIXELS = PIXELS // 2                             # Pillow refuses twice as many
    signal.signal(signal.SIGTERM, signal.default_int_handler)        # the folder goes then, too
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ.update(GRADIO_TEMP_DIR=guard.FOLDER, GRADIO_ANALYTICS_ENABLED="False")
        try:
            import gradio as gr
        except ImportError:
            raise BadInput("gradio is missing: pip install -r requirements-demo.txt") from None
        front = guard.Guard(BYTES, args.host)
        front.serve(gr, page(gr, model, front), args.host, args.port,
                    head_paths=FILES / "head.html", css_paths=FILES / "page.css",
                    theme=gr.themes.Soft(font="system-ui", font_mono="monospace"))


if __name__ == "__main__":
    run(main, memory="the network's size: name other --weights")
