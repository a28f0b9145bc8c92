"""A page on which one paints a hole into a photograph and watches the network fill it.

    pip install -r requirements-demo.txt
    python -m tools.demo                             # and open the address that it prints

It does what inpaint.py does with a photograph and a mask file, by the same functions; the page
gives out the hole and the command with which inpaint.py makes the same files. A visitor's pictures
lie in a temporary folder, for an hour or so, and it goes with the server.
"""
import argparse
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
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import support.threads

import matplotlib
import numpy as np
import torch
from PIL import Image

import data
import inpaint
import masks
import methods
from support.cli import BadInput, check_range, device, run
from support.files import provenance, write_png

BYTES, PIXELS = 2 ** 25, 2 ** 24      # of a photograph, at most
SAMPLES = 8                           # fills at a time, at most
AT_ONCE, WAITING = 2, 16              # visitors served, and in the queue
CANVAS, THINNEST = 640, 48            # the editor's side; a photograph's in it, at least
PAINT = "#e4572e"
STYLE = """
.gradio-container {max-width: 1180px !important; margin: auto}
#chain figure {margin: 10px 0 0} #chain progress {width: 100%}
#chain div {display: grid; grid-template-columns: repeat(auto-fill, minmax(70px, 1fr)); gap: 4px}
#chain img {width: 100%; image-rendering: pixelated; border-radius: 3px}
#fills .grid-wrap {min-height: 0 !important}
#fills .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(min(44%, 160px), 1fr)) !important}
#files tr, #files td {padding-block: 2px}
#files .label-clear-button, #editor button[aria-label="Clear canvas"] {display: none}
"""
# A picture dropped on the editor would be seen there, and the one before it be filled.
NO_DROPS = """<script>
document.addEventListener("drop", event => event.stopPropagation(), true)
</script>"""


# ---- a hole in a photograph --------------------------------------------------------------------

def read_photograph(path):
    """(name, picture) of a file that was uploaded; the astronaut for None. Raises BadInput."""
    if path is None:
        return "astronaut", inpaint.astronaut()
    try:
        file = io.BytesIO(Path(path).read_bytes())
    except OSError:
        raise BadInput("the photograph is no longer here: open it again") from None
    file.name = Path(path).name                                      # for messages
    return file.name, data.open_image(file)


def place(size):
    """Where a photograph of this size lies on the canvas: (left, top, right, bottom)."""
    width, height = (max(round(CANVAS * side / max(size)), THINNEST) for side in size)
    left, top = (CANVAS - width) // 2, (CANVAS - height) // 2
    return left, top, left + width, top + height


def canvas(photograph, family=None):
    """What the editor shows: the photograph, in the middle of a square, and as a layer above it a
    hole of the family, in the photograph's largest square. (Of a picture that is no square, gradio
    6.31 shows such a layer twice, once in the wrong place.)"""
    left, top, right, bottom = place(photograph.size)
    background, hole = Image.new("RGBA", (CANVAS, CANVAS)), Image.new("L", (CANVAS, CANVAS))
    background.paste(photograph.resize((right - left, bottom - top)), (left, top))
    if family:
        x, y, end, _ = data.window((right - left, bottom - top))
        drawn = masks.MASKS[family](1, end - x)[0, 0]
        hole.paste(Image.fromarray((255 * drawn).byte().numpy()), (left + x, top + y))
    layer = Image.new("RGBA", hole.size, PAINT)
    layer.putalpha(hole)
    return {"background": background, "layers": [layer],
            "composite": Image.alpha_composite(background, layer)}


def painted(canvas, size):
    """The hole that the editor's layers cover, [1, H, W], at the photograph's own (width, height).
    Raises BadInput if it is empty."""
    hole = torch.zeros(1, *reversed(size))
    for layer in canvas["layers"] if canvas else []:
        layer = layer.getchannel("A").crop(place(size))
        hole = torch.maximum(hole, masks.from_image(layer, size)[0])
    if not hole.any():
        raise BadInput("there is no hole yet: paint over what is to be filled, or have one drawn")
    return hole


# ---- filling it, watched -----------------------------------------------------------------------

class Watch:
    """A method's callback. `during(work, *given)` runs work(*given) in a thread and yields what the
    callback was last called with, whenever it was; closed early, it ends the work at the next call.
    Then `result` is what work returned; what it raised is raised."""

    def __init__(self):
        self.calls, self.states, self.closed, self.result = 0, queue.SimpleQueue(), False, None

    def __call__(self, *state):
        if self.closed:
            raise InterruptedError("nobody is watching")
        self.calls += 1
        self.states.put(state)

    def during(self, work, *given):
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(work, *given)
            done.add_done_callback(lambda _: self.states.put(None))
            try:
                for state in iter(self.states.get, None):
                    if self.states.empty():                            # else the page is behind
                        yield state
            finally:
                self.closed = True
        self.result = done.result()


def fill(network, weights, where, folder, path, canvas, name, steps, samples, seed):
    """Fill the hole on the canvas, as inpaint.py would with these flags; raises BadInput.

    Yields (state, pictures, command). The state is a line, network calls so far, calls in all, and
    the last call's x and x0, [samples, 3, size, size] in [-1, 1], or nothing yet. At the end come
    what `write` has written into the folder and the command that makes the same; until then, none.
    """
    begun, watch = time.time(), Watch()
    ddpm, eps_model, size = network
    title, photograph = read_photograph(path)
    hole, image = painted(canvas, photograph.size), torch.from_numpy(np.array(photograph))
    if seed is None or not 0 <= seed <= 10 ** 9 or not 1 <= samples <= SAMPLES:
        raise BadInput(f"samples are 1 … {SAMPLES}, and the seed is a whole number up to 10⁹")
    method = methods.find(name, ddpm, eps_model, steps, callback=watch)
    samples = samples if method.DRAWS else 1
    x = x0 = ()
    yield ("at work …", 0, method.CALLS, x, x0), [], ""
    for t, x, x0 in watch.during(inpaint.complete, method.inpaint, image, hole, size, samples, seed,
                                 where):
        yield (f"t = {t} of {ddpm.T}", watch.calls, method.CALLS, x, x0), [], ""
    box, _, part, fills = watch.result
    status = (f"{samples} fill{'s' * (samples > 1)} × {method.CALLS} network calls: "
            f"{time.time() - begun:.1f} s")
    if not part.any():
        status += "; the hole is too thin for the network, and blurred over"
    stem, here = Path(title).stem, "./" * title.startswith("-")   # else it would be read as a flag
    command = shlex.join(map(str, [
        "python", "inpaint.py", *[here + title] * bool(path), "--mask", f"{here}{stem}_hole.png",
        "--method", name, "--steps", steps, "--samples", samples, "--seed", seed,
        *["--weights", weights] * (weights != inpaint.WEIGHTS)]))
    made = {**provenance(weights, seed), "command": command}
    pictures = write(Path(folder), stem, image, hole, box, fills, made)
    yield (status, watch.calls, method.CALLS, x, x0), pictures, command


def write(folder, stem, image, hole, box, fills, made):
    """The fills, their spread, bright in the hole of the dimmed photograph, and the hole, as PNGs
    that say how they were made: [(file, caption)]."""
    pictures = {f"{k}": (inpaint.paste(image, hole, box, filled), f"fill {k}")
                for k, filled in enumerate(fills)}
    if len(fills) > 1:
        spread = inpaint.spread_of(fills.numpy())
        heat = matplotlib.colormaps["magma"](spread / max(spread.max(), 1), bytes=True)[..., :3]
        dim = (image.float().mean(dim=-1, keepdim=True) / 3).byte().expand_as(image)
        heat = inpaint.paste(dim, hole, box, torch.from_numpy(heat.copy()))
        pictures["spread"] = heat, f"spread 0 … {spread.max():.0f}"
    pictures["hole"] = (255 * hole[0]).byte(), "hole"
    for end, (pixels, _) in pictures.items():
        write_png(Image.fromarray(pixels.numpy()), folder / f"{stem}_{end}.png", made)
    return [(str(folder / f"{stem}_{end}.png"), caption) for end, (_, caption) in pictures.items()]


# ---- the page ----------------------------------------------------------------------------------

def chain(status, calls, total, x, x0):
    """The reverse process as HTML: how far it is, and every sample as it is and as it may end."""
    def row(images, caption):
        pictures = "".join(f'<img alt="" src="data:image/png;base64,{png(one)}">' for one in images)
        return f"<figure><figcaption>{caption}</figcaption><div>{pictures}</div></figure>"
    rows = (row(x, "<b>x<sub>t</sub></b>, the image at noise level t") +
            row(x0, "<b>x̂<sub>0</sub></b>, what the network takes it for")
            if len(x) else "")
    value = f'value="{calls}"' if calls else ""
    bar = f'<progress max="{max(total, 1)}" {value}></progress>'
    return f'<div id="chain">{status}{bar}{rows}</div>'


def png(image):
    file = io.BytesIO()
    Image.fromarray(data.to_uint8(image[None])[0].cpu().numpy()).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def ways(network):
    """{method: what it says of itself}, of those that need no training images."""
    ddpm, eps_model, _ = network
    found = {name: methods.find(name, ddpm, eps_model, 1) for name in methods.METHODS}
    texts = {name: (methods.NETWORK.get(name) or method).__doc__ for name, method in found.items()
             if hasattr(method, "inpaint")}
    return {name: " ".join(text.split("\n\n")[0].split()) for name, text in texts.items()}


def page(gr, network, weights, where):
    """The page, as gradio's Blocks."""
    about = ways(network)

    @contextlib.contextmanager
    def mistakes():
        try:
            yield
        except (BadInput, OSError) as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from None

    def show(path, family=None):
        with mistakes(), tempfile.TemporaryDirectory() as folder:
            def file(picture, name):      # gradio's own would be written while others read it
                picture.save(Path(folder) / name)
                return str(Path(folder) / name)
            value = canvas(read_photograph(path)[1], family)
            yield path, {"background": file(value["background"], "photograph.png"),
                         "layers": [file(layer, "hole.png") for layer in value["layers"]],
                         "composite": file(value["composite"], "both.png")}

    def start(*asked):
        with mistakes(), tempfile.TemporaryDirectory() as folder:
            for state, pictures, command in fill(network, weights, where, folder, *asked):
                if state[1] and not pictures:                        # in the midst of it
                    yield chain(*state), *[gr.skip()] * 4
                else:
                    yield (chain(*state), gr.update(visible=bool(pictures)), pictures[:-1],
                           [file for file, _ in pictures], command)

    with gr.Blocks(title="Paint a hole", analytics_enabled=False,
                   delete_cache=(600, 3600)) as blocks:                              # seconds
        path = gr.State()
        gr.Markdown("# Paint a hole\nNoise goes into it, and a network that has only seen faces "
                    "removes the noise step by step; the pixels around it stay what they are.")
        with gr.Row():
            with gr.Column(scale=3):
                editor = gr.ImageEditor(
                    canvas(inpaint.astronaut()), type="pil", format="png", sources=(), layers=False,
                    transforms=(), buttons=[], show_label=False, height="min(540px, 92vw)",
                    elem_id="editor", canvas_size=(CANVAS, CANVAS),
                    brush=gr.Brush(default_size=48, colors=[PAINT], color_mode="fixed"))
                gr.Markdown("Paint over what is to be filled, or have a hole drawn:")
                with gr.Row():
                    drawn = {family: gr.Button(family or "none", size="sm", min_width=60)
                             for family in (*masks.FAMILIES, None)}
                upload = gr.UploadButton("Open a photograph of your own", size="sm",
                                         file_types=list(data.SUFFIXES))
            with gr.Column(scale=2):
                method = gr.Dropdown(list(about), value="keep", label="Method")
                text = gr.Markdown(about["keep"])
                steps = gr.Slider(1, network[0].T, 20, step=1, label="Steps",
                                  info="network calls a fill")
                samples = gr.Slider(1, SAMPLES, 4, step=1, label="Samples",
                                    info="fills, each from its own noise")
                seed = gr.Number(0, minimum=0, maximum=10 ** 9, precision=0, label="Seed",
                                 info="the same seed, the same fills")
                with gr.Row():
                    button = gr.Button("Fill the hole", variant="primary", elem_id="fill", scale=3)
                    stop = gr.Button("Stop", scale=1, min_width=60)
                live = gr.HTML()
        with gr.Column(visible=False) as outcome:
            gallery = gr.Gallery(show_label=False, format="png", elem_id="fills", height="auto",
                                 object_fit="contain", interactive=False)
            files = gr.File(label="Download, without loss", file_count="multiple", elem_id="files",
                            interactive=False)
            command = gr.Textbox(label="The same from the command line", buttons=["copy"],
                                 interactive=False)
        upload.upload(show, upload, [path, editor], show_progress="hidden")
        for family, each in drawn.items():
            each.click(functools.partial(show, family=family), path, [path, editor],
                       show_progress="hidden")
        method.change(about.get, method, text)
        running = button.click(start, [path, editor, method, steps, samples, seed],
                               [live, outcome, gallery, files, command],
                               concurrency_limit=AT_ONCE, show_progress_on=live)
        stop.click(None, cancels=[running])
    return blocks.queue(max_size=WAITING)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    add("--port", type=int, default=7860)
    add("--weights", default=inpaint.WEIGHTS, help="a weights.pt or checkpoint.pt of train.py's")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    check_range(args, 1, 65_535, "port")
    socket.create_server((args.host, args.port)).close()             # or an OSError that says why
    network = inpaint.load_weights(args.weights, device(args.device))
    Image.MAX_IMAGE_PIXELS = PIXELS // 2                             # Pillow refuses twice as many
    signal.signal(signal.SIGTERM, signal.default_int_handler)        # the folder goes then, too
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False")
        try:
            import gradio as gr
        except ImportError:
            raise BadInput("gradio is missing: pip install -r requirements-demo.txt") from None
        page(gr, network, args.weights, args.device).launch(
            server_name=args.host, server_port=args.port, share=False, max_file_size=BYTES,
            prevent_thread_lock=True, quiet=True, ssr_mode=False, enable_monitoring=False,
            run_history=False, footer_links=[], css=STYLE, head=NO_DROPS,
            theme=gr.themes.Soft(font="system-ui", font_mono="monospace"))
        print(f"http://{args.host}:{args.port} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    run(main, memory="--device")
