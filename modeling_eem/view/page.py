"""The page itself: Gradio's components and their events; nothing is computed here.

What is unusual: the page may load nothing from other servers (a content security policy, no analytics, no fonts, no
history of runs), and it listens on loopback only.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import gradio as gr  # pyright: ignore[reportMissingImports]  # of an extra
from gradio.themes import Base  # pyright: ignore[reportMissingImports]  # of an extra
from gradio.tunneling import CURRENT_TUNNELS  # pyright: ignore[reportMissingImports]  # of an extra
from starlette.middleware import Middleware  # pyright: ignore[reportMissingImports]  # of an extra
from starlette.types import ASGIApp, Message, Receive, Scope, Send  # pyright: ignore[reportMissingImports]  # of an extra

from modeling_eem.entropy.occlusion import METRICS
from modeling_eem.files import write_atomically
from modeling_eem.view import rendering
from modeling_eem.view.codes import Encoded, encode_text, reach, read_code
from modeling_eem.view.estimates import (
    PIECES,
    Estimate,
    Pieces,
    Stopped,
    check_text,
    comparison,
    estimate_text,
    read_text,
    to_tsv,
)
from modeling_eem.view.models import ViewedModel, check_methods, default_methods, load_viewed
from modeling_eem.view.style import style_tag

MAX_SLIDERS = 64
_POLICY = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; connect-src 'self'"
)
_ABOUT = (
    '<div class="view-title"><h1>eem view</h1><p>How surprising each piece of a text is to models, and what an '
    "entropy estimation model's code holds of it.</p></div>"
)
_MAX_UPLOAD = 100_000_000  # bytes; below this limit the page itself refuses a file that is too large


class _OnlyFromHere:
    """Adds a policy to every answer that keeps the browser from asking any other server."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY)]
            await send(message)

        await self.app(scope, receive, with_policy)


def build_page(models: Sequence[ViewedModel], methods: Sequence[str], max_bytes: int, downloads: Path) -> gr.Blocks:
    """The page of some models.

    Args:
        methods: the methods chosen when the page opens.
        max_bytes: the most bytes of a text.
        downloads: a folder for files that readers download; each session has its own folder in it.
    """
    with gr.Blocks(title="eem view", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.HTML(_ABOUT, apply_default_css=False)
        text = gr.Textbox(
            label="Text",
            lines=5,
            max_lines=12,
            placeholder=f"Paste a text of at most {max_bytes:,} bytes, or load a file.",
            elem_id="text",
        )
        with gr.Row():
            load = gr.UploadButton("Load a text file", size="sm", scale=0, min_width=180, elem_id="load")
        refusal = gr.HTML(apply_default_css=False, elem_id="refusal")
        load.upload(_loader(max_bytes), load, [text, refusal], api_visibility="private")
        with gr.Tabs():
            with gr.Tab("Surprise"):
                _surprise_tab(text, models, methods, max_bytes, downloads)
            if eems := [viewed for viewed in models if viewed.kind == "eem"]:
                with gr.Tab("Code"):
                    _code_tab(text, eems, max_bytes)
    return page


def serve(
    folders: Sequence[str],
    methods: Sequence[str] | None = None,
    *,
    max_bytes: int,
    host: str | None = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    tell: Callable[[str], None] = print,
) -> None:
    """Load models and serve their page until Ctrl-C, which ends the process with the exit code 130.

    Args:
        host: None: the address in GRADIO_SERVER_NAME, as on a Space, or loopback.
        port: None: the first free port from 7860 on.
        share: serve on a public address of Gradio's too.
        tell: called with the addresses.

    Raises:
        ValueError: as in `load_viewed` and `check_methods`; OSError for a port that is in use.
    """
    models = load_viewed(folders)
    check_methods(models, methods or [])
    with TemporaryDirectory(prefix="eem-view-", ignore_cleanup_errors=True) as downloads, suppress(KeyboardInterrupt):
        page = build_page(models, methods or default_methods(models), max_bytes, Path(downloads))
        _, local, public = launch(page, host=host, port=port, share=share)
        tell(f"{local}  (Ctrl-C ends it)")
        if public:
            tell(f"{public}  (for everyone who knows the address)")
        threading.Event().wait()
    _end_process()


def _end_process() -> NoReturn:
    """End at once. Gradio waits seconds for open pages, and a thread that computes aborts Python's own end."""
    with suppress(OSError):  # a reader of the output may be gone
        print("stopped: the page is closed.", file=sys.stderr, flush=True)
        for tunnel in CURRENT_TUNNELS:
            tunnel.kill()
        sys.stdout.flush()
    os._exit(130)


def launch(page: gr.Blocks, host: str | None, port: int | None, share: bool = False) -> tuple[Any, str, str | None]:
    """Start serving in another thread, with everything off that would ask another server.

    Raises:
        OSError: for a port that is in use.
    """
    try:
        return page.launch(
            server_name=host,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            quiet=True,
            theme=Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            head=style_tag(),
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            max_file_size=_MAX_UPLOAD,
            app_kwargs={"middleware": [Middleware(_OnlyFromHere)]},
        )
    except OSError as error:
        if "empty port" not in str(error):
            raise
        taken = "no port is free from 7860 on" if port is None else f"port {port} is in use"
        raise OSError(f"{taken}: choose another with --port.") from error


def _loader(max_bytes: int) -> Callable[[str], tuple[Any, str]]:
    def load(path: str) -> tuple[Any, str]:
        try:
            return read_text(Path(path).name, Path(path).read_bytes(), max_bytes), ""
        except ValueError as error:
            return gr.skip(), rendering.message_html(str(error))

    return load


def _surprise_tab(
    text: gr.Textbox, models: Sequence[ViewedModel], methods: Sequence[str], max_bytes: int, downloads: Path
) -> None:
    known = list(dict.fromkeys(method for viewed in models for method in viewed.methods))
    names = [viewed.name for viewed in models]
    with gr.Row():
        chosen = gr.CheckboxGroup(names, value=names, label="Models", elem_id="models")
        asked = gr.CheckboxGroup(known, value=list(methods), label="Estimators", elem_id="estimators")
        metric = gr.Dropdown(
            list(METRICS), value="loss", label="Distance of occlusion", visible="occlusion" in known, elem_id="metric"
        )
    with gr.Row():
        pieces = gr.Radio(list(PIECES), value="tokens", label="Pieces", elem_id="pieces")
        unit = gr.Radio(["bits", "nats"], value="bits", label="Unit", elem_id="unit")
    with gr.Row():
        show = gr.Button("Show", variant="primary", scale=3, elem_id="show")
        stop = gr.Button("Stop", variant="stop", scale=1, elem_id="stop")
    message = gr.HTML(apply_default_css=False, elem_id="message")
    estimates = gr.State([])
    panels = gr.HTML(apply_default_css=False, elem_id="panels", elem_classes="view-results")
    with gr.Row():
        tsv = gr.DownloadButton("Download TSV", interactive=False, elem_id="tsv")
        page = gr.DownloadButton("Download HTML", interactive=False, elem_id="html")
    with gr.Accordion("Table", open=False, elem_id="table-of-pieces"):
        sorting = gr.Dropdown([rendering.IN_ORDER], value=rendering.IN_ORDER, label="Sorted by", elem_id="order")
        table = gr.HTML(apply_default_css=False, elem_id="table", elem_classes="view-results")

    stops: dict[str, threading.Event] = {}  # by session: ends the work that its page asked for last

    def drawn(found: list[Estimate], cut: Pieces, unit: str, order: str, request: gr.Request) -> dict[Any, Any]:
        bits = unit == "bits"
        orders = [rendering.IN_ORDER, *(estimate.name for estimate in found)]
        order = order if order in orders else rendering.IN_ORDER
        changes: dict[Any, Any] = {
            panels: rendering.panels_html(found, cut, bits),
            table: rendering.table_html(found, cut, bits, order),
        }
        if found:
            folder = downloads / str(request.session_hash)
            files = {
                tsv: write_atomically(folder / f"{cut}.tsv", to_tsv(comparison(found, cut, bits))),
                page: write_atomically(folder / f"{cut}.html", rendering.download_html(found, cut, bits)),
            }
            changes |= {button: gr.update(value=str(path), interactive=True) for button, path in files.items()}
            changes[sorting] = gr.update(choices=orders, value=order)
        return changes

    def estimate(
        text: str, chosen: list[str], asked: list[str], metric: str, cut: Pieces, unit: str, order: str,
        request: gr.Request,
    ) -> Iterator[dict[Any, Any]]:  # fmt: skip
        pairs = [(viewed, way) for viewed in models if viewed.name in chosen for way in viewed.methods if way in asked]
        try:
            check_text(text, max_bytes)
            if not pairs:
                raise ValueError(_no_pair(models, chosen))
        except ValueError as error:
            yield {message: rendering.message_html(str(error))}
            return
        found: list[Estimate] = []
        failures: list[str] = []
        stopped = stops[str(request.session_hash)] = threading.Event()
        for number, (viewed, way) in enumerate(pairs, start=1):
            working = f"{viewed.name} · {way}: {number} of {len(pairs)} …"
            yield {message: rendering.message_html(*failures) + rendering.working_html(working)}
            try:
                found.append(estimate_text(viewed, way, text, metric, stopped))
            except Stopped:
                return
            except ValueError as error:
                failures.append(f"{viewed.name} · {way}: {error}")
            changes = drawn(found, cut, unit, order, request)
            yield {message: rendering.message_html(*failures), estimates: found, **changes}

    def halt(request: gr.Request) -> str:
        if stopped := stops.get(str(request.session_hash)):
            stopped.set()
        return ""

    outputs = [message, estimates, panels, table, tsv, page, sorting]
    settings = [pieces, unit, sorting]
    running = show.click(
        estimate,
        [text, chosen, asked, metric, *settings],
        outputs,
        api_visibility="private",
        concurrency_id="models",
        show_progress="hidden",
    )
    stop.click(halt, None, message, cancels=[running], api_visibility="private")
    gr.on(
        [setting.input for setting in settings],
        drawn,
        [estimates, *settings],
        outputs,
        api_visibility="private",
        show_progress="hidden",
        trigger_mode="always_last",
    )


def _no_pair(models: Sequence[ViewedModel], chosen: Sequence[str]) -> str:
    takes = [f"{viewed.name} takes {', '.join(viewed.methods)}" for viewed in models if viewed.name in chosen]
    return f"choose an estimator that fits: {'; '.join(takes)}." if takes else "choose a model."


def _code_tab(text: gr.Textbox, models: Sequence[ViewedModel], max_bytes: int) -> None:
    by_name = {viewed.name: viewed for viewed in models}
    num_sliders = min(MAX_SLIDERS, max(viewed.eem.config.code_size for viewed in models))
    with gr.Row():
        name = gr.Dropdown(list(by_name), value=models[0].name, label="Model", visible=len(models) > 1)
        show = gr.Button("Encode the text", variant="primary", scale=3, elem_id="encode")
        back = gr.Button("Back to its own code", scale=1, elem_id="back")
    message = gr.HTML(apply_default_css=False, elem_id="code-message")
    encoded = gr.State(None)
    bars = gr.HTML(apply_default_css=False, elem_id="bars", elem_classes="view-results")
    with gr.Accordion("Change its numbers", open=True), gr.Row(elem_classes="view-sliders"):
        sliders = [
            gr.Slider(-1, 1, 0, label=f"z{number + 1}", visible=False, elem_id=f"z{number + 1}")
            for number in range(num_sliders)
        ]
    written = gr.HTML(apply_default_css=False, elem_id="written", elem_classes="view-results")
    panels = gr.HTML(apply_default_css=False, elem_id="code-panels", elem_classes="view-results")

    def drawn(name: str, encoded: Encoded, numbers: Sequence[float]) -> dict[Any, Any]:
        reading = read_code(by_name[name], encoded, [*numbers, *encoded.code[len(numbers) :]])
        return {
            message: "",
            bars: rendering.bars_html(reading, encoded.code),
            written: rendering.written_html(reading, encoded.tokens_left),
            panels: rendering.reading_panels_html(reading),
        }

    def encode(text: str, name: str) -> dict[Any, Any]:
        try:
            check_text(text, max_bytes)
            found = encode_text(by_name[name], text)
            changes = drawn(name, found, ())
        except ValueError as error:
            return {message: rendering.message_html(str(error))}
        return {**changes, encoded: found, **own_sliders(found)}

    def own_sliders(encoded: Encoded) -> dict[Any, Any]:
        limit = reach(encoded.code)
        shown = dict(zip(sliders, encoded.code))
        return {
            slider: gr.update(
                minimum=-limit, maximum=limit, step=limit / 1000, value=shown.get(slider, 0.0), visible=slider in shown
            )
            for slider in sliders
        }

    def change(name: str, encoded: Encoded | None, *numbers: float) -> dict[Any, Any]:
        if encoded is None:
            return {message: rendering.message_html("encode a text first.")}
        return drawn(name, encoded, numbers[: len(encoded.code)])

    def reset(name: str, encoded: Encoded | None) -> dict[Any, Any]:
        if encoded is None:
            return {message: rendering.message_html("encode a text first.")}
        return {**drawn(name, encoded, ()), **own_sliders(encoded)}

    common: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "models", "show_progress": "minimal"}
    results = [message, bars, written, panels]
    show.click(encode, [text, name], [*results, encoded, *sliders], **common)
    back.click(reset, [name, encoded], [*results, *sliders], **common)
    moved = [slider.input for slider in sliders]
    gr.on(moved, change, [name, encoded, *sliders], results, trigger_mode="always_last", **common)
    name.input(lambda: (None, *["" for _ in results]), None, [encoded, *results], api_visibility="private")
