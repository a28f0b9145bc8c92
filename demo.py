"""A page on which one paints a hole into a photograph and watches the network fill it.

    pip install -r requirements-demo.txt
    python demo.py                             # then open the address that it prints

It does what inpaint.py does with a photograph and a mask file, by the same functions: the command
line that it shows, with the hole that it lets one download, makes the same files. What a visitor
uploads and gets lies in a temporary folder, an hour at most, and goes with the server.
"""
import argparse
import base64
import contextlib
import html
import io
import os
import queue
import shlex
import signal
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image

import data
import inpaint
import masks
import methods
from safety import BadInput, device, origin, run, within, write_png

BYTES, PIXELS = 2 ** 25, 2 ** 24      # of a photograph, at most
SAMPLES = 8                           # fills at a time, at most
AT_ONCE, WAITING = 2, 16              # visitors served, and in the queue
CANVAS, THINNEST = 640, 48            # the longer side of the editor's picture; the shorter, at least
PAINT = "#e4572e"


# ---- a hole in a photograph --------------------------------------------------------------------

def read_photograph(path):
    """(name, picture) of a file that was uploaded; of None: the astronaut."""
    if path is None:
        return "astronaut", inpaint.astronaut()
    try:
        file = io.BytesIO(Path(path).read_bytes())
    except OSError:
        raise BadInput("the photograph is no longer here: open it again") from None
    file.name = Path(path).name                                      # for messages
    return file.name, data.open_image(file)


def canvas(photograph, family=None):
    """What the editor shows: the photograph, made CANVAS pixels long, and on a layer above it a hole
    drawn in the square that inpaint.py cuts, if a family is named."""
    scale = CANVAS / max(photograph.size)
    size = [max(round(scale * length), THINNEST) for length in photograph.size]
    background, layer = photograph.resize(size), Image.new("L", size)
    if family:
        left, top, right, bottom = (round(place * size[i % 2] / photograph.size[i % 2])
                                    for i, place in enumerate(data.window(photograph.size)))
        hole = masks.MASKS[family](1, CANVAS)[0, 0]
        square = Image.fromarray((255 * hole).byte().numpy())
        layer.paste(square.resize((right - left, bottom - top), Image.NEAREST), (left, top))
    paint = Image.new("RGBA", size, PAINT)
    paint.putalpha(layer)
    composite = Image.alpha_composite(background.convert("RGBA"), paint)
    return {"background": background, "layers": [paint] if family else [], "composite": composite}


def hole_of(value, size):
    """The hole that was painted in the editor, [1, height, width], at the photograph's own size."""
    hole = torch.zeros(1, *reversed(size))
    for layer in (value or {}).get("layers") or []:
        hole = torch.maximum(hole, masks.from_image(layer.getchannel("A"), size)[0])
    if not hole.any():
        raise BadInput("there is no hole: paint over what is to be filled, or have a hole drawn")
    return hole


def spread_map(image, hole, box, fills):
    """The fills' spread, dark to bright, in the hole of the dimmed photograph: uint8 [H, W, 3]."""
    spread = inpaint.spread_of(fills.numpy())
    heat = matplotlib.colormaps["magma"](spread / max(spread.max(), 1), bytes=True)[..., :3]
    dim = (image.float().mean(dim=-1, keepdim=True) / 3).byte().expand_as(image)
    return inpaint.paste(dim, hole, box, torch.from_numpy(heat.copy())), spread.max()


# ---- filling it, watched -----------------------------------------------------------------------

class Watch:
    """A callback for a method. `during(work)` runs work() in a thread and yields the arguments of
    the callback's last call whenever there was one; closed early, it ends the work at its next."""

    class Closed(Exception):
        pass

    def __init__(self):
        self.calls, self.told, self.closed = 0, queue.SimpleQueue(), False

    def __call__(self, *state):
        if self.closed:
            raise Watch.Closed
        self.calls += 1
        self.told.put(state)

    def during(self, work):
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(work)
            done.add_done_callback(lambda _: self.told.put(None))
            try:
                for state in iter(self.told.get, None):
                    if self.told.empty():                            # else the page is behind
                        yield state
            finally:
                self.closed = True
        self.result = done.result()


def page(weights, where):
    """The page, as gradio Blocks, for the weights in a file and a device."""
    import gradio as gr

    ddpm, eps_model, size = inpaint.load_weights(weights, where)
    about = {name: describe(name, methods.find(name, ddpm, eps_model, 1))
             for name in methods.METHODS
             if hasattr(methods.find(name, ddpm, eps_model, 1), "inpaint")}

    @contextlib.contextmanager
    def mistakes():
        try:
            yield
        except BadInput as error:
            raise gr.Error(html.escape(str(error)), title="Not so", print_exception=False) from None

    def show(path, family=None):
        with mistakes():
            return path, canvas(read_photograph(path)[1], family)

    def start(path, value, name, steps, samples, seed):
        with mistakes(), tempfile.TemporaryDirectory() as folder:
            begun, watch = time.time(), Watch()
            title, photograph = read_photograph(path)
            hole = hole_of(value, photograph.size)
            if seed is None:
                raise BadInput("the seed is a whole number from 0 to 1,000,000,000")
            method = methods.find(name, ddpm, eps_model, steps, callback=watch)
            samples = samples if method.DRAWS else 1
            image = torch.from_numpy(np.array(photograph))
            yield chain("…", 0, method.CALLS), [], [], ""

            def work():
                return inpaint.complete(method.inpaint, image, hole, size, samples, seed, where)
            for t, x, x0 in watch.during(work):
                told = f"x<sub>t</sub> at t = {t}"
                yield chain(told, watch.calls, method.CALLS, x, x0), gr.skip(), gr.skip(), gr.skip()
            box, seen, part, fills = watch.result
            if not part.any():
                gr.Warning("The hole is too thin for the network, and blurred over.")
            stem = Path(title).stem
            command = shlex.join(["inpaint.py", *([] if path is None else [title]), "--mask",
                                  f"{stem}_hole.png", "--method", name, "--steps", str(steps),
                                  "--samples", str(samples), "--seed", str(seed)])
            files = {f"fill {k}": paste for k, paste in enumerate(fills)}
            pictures = []
            for k, filled in enumerate(fills):
                file = Path(folder) / f"{stem}_{k}.png"
                result = inpaint.paste(image, hole, box, filled)
                write_png(Image.fromarray(result.numpy()), file, origin(weights, seed))
                pictures.append((file, f"fill {k}"))
            file = Path(folder) / f"{stem}_hole.png"
            write_png(Image.fromarray((255 * hole[0]).byte().numpy()), file)
            gallery = list(pictures)
            if samples > 1:
                heat, most = spread_map(image, hole, box, fills)
                gallery.append((heat.numpy(), f"spread, 0 … {most:.0f} of 255"))
            yield (chain(f"{samples} fills in {time.time()-begun:.1f} s", watch.calls, method.CALLS),
                   gallery, [str(f) for f, _ in pictures] + [str(file)], "python " + command)

    with gr.Blocks(title="Diffusion inpainting", analytics_enabled=False,
                   delete_cache=(600, 3600)) as blocks:
        path = gr.State()
        gr.Markdown("# Paint a hole")
        with gr.Row():
            with gr.Column(scale=3):
                editor = gr.ImageEditor(
                    canvas(inpaint.astronaut()), type="pil", format="png", sources=(),
                    transforms=(), layers=False, buttons=[], show_label=False,
                    brush=gr.Brush(default_size=40, colors=[PAINT], color_mode="fixed"),
                    elem_id="editor")
                with gr.Row():
                    upload = gr.UploadButton("Open a photograph", size="sm", file_types=list(data.SUFFIXES))
                    for family in masks.FAMILIES:
                        button = gr.Button(family, size="sm")
                        button.click(lambda path, family=family: show(path, family)[1], path, editor)
            with gr.Column(scale=2):
                method = gr.Dropdown(list(about), value="keep", label="Method")
                words = gr.Markdown(about["keep"])
                steps = gr.Slider(1, ddpm.T, 20, step=1, label="Steps")
                samples = gr.Slider(1, SAMPLES, 4, step=1, label="Samples")
                seed = gr.Number(0, minimum=0, maximum=10 ** 9, precision=0, label="Seed")
                with gr.Row():
                    button = gr.Button("Fill", variant="primary", elem_id="fill")
                    stop = gr.Button("Stop")
                live = gr.HTML()
        gallery = gr.Gallery(columns=5, format="png", label="Fills", object_fit="contain")
        files = gr.File(label="Download", file_count="multiple", interactive=False)
        command = gr.Textbox(label="The same from the command line", interactive=False)
        upload.upload(show, upload, [path, editor])
        method.change(about.get, method, words)
        running = button.click(start, [path, editor, method, steps, samples, seed],
                               [live, gallery, files, command], concurrency_limit=AT_ONCE,
                               show_progress="hidden")
        stop.click(None, cancels=[running])
    blocks.queue(max_size=WAITING)
    return blocks


def describe(name, method):
    text = methods.NETWORK[name].__doc__ if name in methods.NETWORK else method.__doc__
    return " ".join(text.split("\n\n")[0].split())


def chain(told, calls, total, x=None, x0=None):
    rows = "".join(f'<figure>{"".join(map(picture, images))}<figcaption>{words}</figcaption></figure>'
                   for images, words in ((x, "x<sub>t</sub>"), (x0, "x̂<sub>0</sub>")) if images is not None)
    return f'<div id="chain">{told}<progress max="{total}" value="{calls}"></progress>{rows}</div>'


def picture(image):
    file = io.BytesIO()
    Image.fromarray(data.to_uint8(image[None])[0].cpu().numpy()).save(file, "PNG")
    return f'<img src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int)
    add("--weights", default=inpaint.WEIGHTS)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False")
        import gradio as gr
        blocks = page(args.weights, args.device)
        _, url, _ = blocks.launch(
            server_name=args.host, server_port=args.port, share=False, quiet=True, prevent_thread_lock=True,
            max_file_size=BYTES, footer_links=[], run_history=False, ssr_mode=False, enable_monitoring=False,
            theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]))
        print(f"{url}  (Ctrl-C ends it)", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    run(main)
