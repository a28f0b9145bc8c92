"""What strangers may send to the page, how much of it, and how long anything of theirs is kept.

gradio serves far more than the page uses, and bounds a file, but neither a request nor a visitor.
`Guard` stands before it, as ASGI middleware:

    from elsewhere   another Host or Origin than the page's own is refused: no other site, and no
                     name that was pointed at this machine (DNS rebinding), reaches the page
    a request        only what the page itself sends, of a length that it says beforehand; an upload
                     is of one file, and one that is cut off leaves none
    a visitor        an address sends so many bytes from one full hour to the next, holds so many
                     requests open, and has so many calls of a kind at work or waiting
    a job            ends when nobody has listened to it for a few seconds (tools/demo.py: or when
                     it takes too long)
    results          are not piled up for a visitor who does not read them
    files            lie in one folder, under names that say nothing of this machine; they go after
                     an hour, or when there are too many, the oldest first

UNBOUNDED lists what remains; a server open to other machines prints it.
"""
import asyncio
import functools
import ipaddress
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs

ENDED = threading.Event()                 # set when the server ends: nobody listens any more
FOLDER = "files"                          # beneath the working folder: gradio's replies name paths
LIFE, ROOM = 3600, 2 ** 31                # seconds that a file is kept; bytes of all, at most
REQUEST = 2 ** 20                         # bytes of a request that is no upload
HOURLY, OPEN = 2 ** 29, 64                # bytes that an address may send; its requests at a time
LEAST = 2 ** 16                           # what a small POST counts as: so 8,192 an hour at most
JOBS = 4                                  # calls of a kind, at work or waiting, of an address
UNREAD, BEHIND = 8, 2                     # messages at most of a visit: for a call, for a frame
SESSIONS = 500                            # visits that gradio remembers
SECONDS, PATIENCE = 300, 5                # for a request to arrive; without a listener, for a job
UPLOAD = "/gradio_api/upload"
GET = re.compile(r"/(config|theme\.css|favicon\.ico|manifest\.json|(assets|static|svelte)/.*|"
                 r"gradio_api/(info|startup-events|theme\.css|queue/data|upload_progress|"
                 rf"file={FOLDER}/.*|heartbeat/\w{{1,32}}))?")
POST = re.compile(r"/gradio_api/(queue/join|upload|cancel|reset)/?")
UNBOUNDED = (
    "anybody who reaches this address can use the page; there is no password and no encryption. A "
    "visitor is an address: all behind one proxy share its limits (one on this machine can pass "
    "theirs on, in X-Forwarded-For), and many addresses have as many times the limits. Nothing "
    "bounds connections that say nothing, nor the minutes that one window takes a method without a "
    "network, such as patchmatch. If strangers can come, put a server in front that bounds these.")


class Guard:
    """ASGI middleware before `app`. A file is of at most `upload` bytes; `name` is another name,
    beside IP addresses, localhost and the machine's own, under which the page is reached."""

    def __init__(self, upload, name="localhost"):
        self.app, self.queue, self.upload, self.hour = None, None, upload, time.monotonic()
        self.names = {each.lower() for each in ("localhost", name, socket.gethostname())}
        self.sent, self.open = Counter(), Counter()                  # by address
        self.streams, self.seen = Counter(), {}                      # by session

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send) if scope["type"] == "lifespan" else None
        visitor, session = (scope.get("client") or [""])[0], session_of(scope)
        refused = self.refusal(scope, visitor)
        if refused:
            return await answer(send, *refused)
        self.open[visitor] += 1
        self.streams[session] += 1
        begun = []

        async def forward(message):                                  # all but gradio's empty errors
            begun.extend([True] * (message.get("status", 500) != 500))
            if begun:
                await send(message)
        try:
            async with asyncio.timeout(SECONDS if scope["method"] == "POST" else None):
                await self.app(scope, receive, forward)
        except Exception as error:
            print(f"{scope['path']}: {type(error).__name__}: {error}", file=sys.stderr)
        else:
            begun.append(True)
        finally:
            self.open[visitor] -= 1
            self.streams[session] -= 1
            self.open, self.streams = +self.open, +self.streams      # without the zeros
            self.seen = {one: last for one, last in self.seen.items()
                         if time.monotonic() - last < 60} | {session: time.monotonic()}
            self.forget()
            if scope["path"].startswith(UPLOAD):
                sweep()
            if not begun:
                await answer(send, 400, "this is not what the page sends, or it took too long")

    def refusal(self, scope, visitor):
        """(status, sentence), or None for what the page itself sends."""
        headers = {key.decode("latin1"): value.decode("latin1") for key, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.is_ours(host) or origin is not None and origin.partition("://")[2] != host:
            return 403, "this page answers only to its own address"
        allowed = {"GET": GET, "HEAD": GET, "POST": POST}.get(scope["method"])
        if not allowed or not allowed.fullmatch(scope["path"]):
            return 404, "this page has no such part"
        if self.open[visitor] >= OPEN:
            return 429, "too many requests at once"
        if scope["method"] != "POST":
            return None
        length = headers.get("content-length", "")
        if not length.isdecimal() or "transfer-encoding" in headers:
            return 411, "a request must say its length"
        uploads = scope["path"].startswith(UPLOAD)
        if int(length) > (self.upload + 4096 if uploads else REQUEST):    # its form, too
            return 413, "the request exceeds the maximum size"
        if time.monotonic() - self.hour > 3600:
            self.sent, self.hour = Counter(), time.monotonic()
        self.sent[visitor] += max(int(length), LEAST)
        if self.sent[visitor] > HOURLY:
            return 429, "too much was sent from this address: try again in an hour"
        return None

    def is_ours(self, host):
        """An IP address needs no check: no name server can point it elsewhere."""
        name = re.sub(r":\d+$", "", host)
        with suppress(ValueError):
            return bool(ipaddress.ip_address(name.strip("[]")))
        return name.lower() in self.names

    def listens(self, session):
        """Whether somebody waits for this session's results, or did so a moment ago."""
        last = self.seen.setdefault(session, time.monotonic())       # or it has only just asked
        return not ENDED.is_set() and (
            self.streams[session] > 0 or time.monotonic() - last < PATIENCE)

    def behind(self, session):
        """Whether this session has yet to read what it was sent, so that no frame need follow."""
        return len_of(self.queue.pending_messages_per_session.get(session)) > BEHIND

    def forget(self):
        """Drop the results of sessions that nobody listens to; gradio keeps those of 2,000."""
        results = self.queue.pending_messages_per_session
        at_work = {event.session_hash for event in under_way(self.queue)}
        for session in {*results} - at_work:
            if not self.listens(session):
                results.pop(session, None)

    def serve(self, gr, blocks, host, port, **look):
        """gradio's page, until a signal ends it; then within seconds, whatever is at work."""
        import fastapi  # which come with gradio
        import uvicorn

        Path(FOLDER).mkdir(exist_ok=True)
        take_one_file()
        self.queue = blocks._queue
        self.app = gr.mount_gradio_app(
            fastapi.FastAPI(), blocks, "/", max_file_size=self.upload, ssr_mode=False,
            enable_monitoring=False, run_history=False, footer_links=[], **look)

        class Server(uvicorn.Server):
            def handle_exit(self, *given):                           # a signal: the jobs end first
                ENDED.set()
                super().handle_exit(*given)
        config = uvicorn.Config(self, log_level="critical", timeout_graceful_shutdown=2)
        threading.Thread(target=sweeping, daemon=True).start()
        with socket.create_server((host, port)) as listening:
            print(f"http://{host}:{port} (Ctrl-C ends it)", flush=True)
            Server(config).run(sockets=[listening])


def session_of(scope):
    """gradio's name of the visit that a stream of results or a heartbeat belongs to, or ""."""
    beat = re.fullmatch(r"/gradio_api/heartbeat/(\w+)", scope["path"])
    asked = parse_qs(scope["query_string"].decode("latin1")).get("session_hash", [""])[0]
    return beat[1] if beat else asked


async def answer(send, status, sentence):
    body = sentence.encode()
    await send({"type": "http.response.start", "status": status, "headers": [
        (b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


# ---- what is kept ------------------------------------------------------------------------------

def folder():
    """A new folder for the files of one run, after a look at what there is."""
    sweep()
    new = Path(FOLDER) / secrets.token_hex(16)
    new.mkdir(parents=True)
    return new


def sweep():
    """Delete what is older than LIFE, cut-off uploads too, and beyond ROOM the oldest."""
    now, total, found = time.time(), 0, []
    for path in (Path(top, name) for top, folders, files in os.walk(FOLDER)
                 for name in folders + files):
        with suppress(OSError):                                      # gone meanwhile
            found.append((path.lstat().st_mtime, path, path.is_dir(), path.lstat().st_size))
    for changed, path, is_dir, size in sorted(found, reverse=True):
        total += 0 if is_dir else size
        with suppress(OSError):                                      # a folder that is not empty
            if is_dir and now - changed > LIFE:
                path.rmdir()
            elif not is_dir and (now - changed > LIFE or total > ROOM):
                path.unlink()


def sweeping():
    """Do so until the server ends."""
    while not ENDED.wait(LIFE / 6):
        sweep()


# ---- gradio (its own parts, of the version in requirements-demo.txt) ---------------------------

def under_way(queue):
    """The calls that are waiting or at work."""
    waiting = (line.queue for line in queue.event_queue_per_concurrency_id.values())
    return [event for events in (*waiting, *filter(None, queue.active_jobs)) for event in events]


def len_of(messages):
    return messages.qsize() if messages else 0


async def push(queue, onward, body, request, username):
    """gradio's Queue.push, but no further call of an address that has JOBS of this kind already,
    nor of a session with UNREAD messages."""
    same = [event for event in under_way(queue) if event.fn._id == body.fn_index
            and event.request.client.host == request.client.host]
    if len(same) >= JOBS:
        return False, f"{JOBS} of these from one address are at work or waiting: try later", "error"
    if len_of(queue.pending_messages_per_session.get(body.session_hash)) > UNREAD:
        return False, "this page does not read its results: reload it", "error"
    return await onward(body, request, username)


def take_one_file():
    """Have gradio take an upload of one file, as the page sends; it would take 1,000, and keep what
    had come of one that is cut off."""
    from gradio import route_utils

    class Parser(route_utils.GradioMultiPartParser):
        def __init__(self, *given, **named):
            super().__init__(*given, **{**named, "max_files": 1, "max_fields": 0})

        async def parse(self):
            try:
                form = await super().parse()
                if [name for name, _ in self.items] != ["files"]:
                    raise route_utils.MultiPartException("an upload is of one file")
                return form
            except BaseException:                    # the visitor left, or took too long
                for file in self._files_to_close_on_error:
                    file.close()
                    Path(file.name).unlink(missing_ok=True)
                raise

    route_utils.GradioMultiPartParser = Parser


def blocks(gr, **settings):
    """gr.Blocks that answer what a component cannot read with a sentence, where gradio has an empty
    error and a traceback in the log; and that take no file but one that was uploaded: gradio would
    fetch a URL. What they reply names no folder of this machine."""
    from gradio_client.utils import is_file_obj, traverse

    class Strict(gr.Blocks):
        async def preprocess_data(self, block_fn, inputs, *given, **named):
            try:
                for value in inputs:
                    if isinstance(value, (dict, list)) and not is_upload(value):
                        raise ValueError
                return await super().preprocess_data(block_fn, inputs, *given, **named)
            except Exception:
                raise gr.Error("this is not what the page sends", print_exception=False) from None

        async def postprocess_data(self, *given, **named):
            return traverse(await super().postprocess_data(*given, **named), nameless, is_file_obj)

        def queue(self, **settings):
            super().queue(**settings)
            self._queue.push = functools.partial(push, self._queue, self._queue.push)
            return self

    made = Strict(**settings)
    made.state_session_capacity = SESSIONS
    return made


def nameless(file):
    """gradio's description of a file, its path beneath FOLDER alone."""
    here = f"{Path.cwd()}/"
    return {key: value.replace(here, "") if isinstance(value, str) else value
            for key, value in file.items()}


def is_upload(value):
    path = Path(str(value.get("path"))) if isinstance(value, dict) else Path()
    return path.parts[:1] == (FOLDER,) and ".." not in path.parts and path.is_file()
