"""The page: what is seen of a desk, by gradio. What happens is in `sgm.app.desk`."""

import asyncio
import contextlib
import html
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from sgm.app.desk import Desk, Wish
from sgm.app.events import Preview, Recording, Shown, Variant
from sgm.app.studio import Studio
from sgm.app.worker import Emit, Ended, Waiting
from sgm.errors import UserError
from sgm.specs import SHIPPED, Task

# Component -> its new value or properties.
Update = dict[Any, Any]
VARIANTS = 4
EXAMPLES = {
    "Example: a grassland": SHIPPED / "assets/inpainting/original/0.png",
    "Example: a landscape": SHIPPED / "assets/img2img/original/0.png",
}
MASK_COLOUR = "rgba(255, 64, 160, 0.6)"
COLOURS = ["#7a3b1d", "#c0392b", "#f1c40f", "#2e7d32", "#2471a3", "#7fb3d5", "#ffffff", "#1c1c1c"]
CSS = """
.gradio-container {max-width: 1280px !important; margin: auto}
#status {min-height: 2.6em; padding: .5em .8em; border-radius: 8px;
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary)}
#status .error {color: var(--error-text-color, #b91c1c); font-weight: 600}
#title p {margin: 0}
footer {display: none !important}
"""
TITLE = """# Paint an edit
Open a photo, paint where it should change, say what should be there. Only that part is computed."""
FOOT = """Images stay on the machine that serves this page. From ComfyUI, or from your own diffusers
pipeline? See `docs/diffusers.md`; the same edits from Python and from the shell are in the
`README.md`."""


class Page:
    """The components, and what their events do.

    Args:
        studio: what the page works with.
        steps: sampler steps to begin with.
    """

    def __init__(self, studio: Studio, steps: int) -> None:
        self.studio = studio
        self._desks: dict[str, tuple[Desk, tempfile.TemporaryDirectory[str]]] = {}
        with gr.Blocks(title="SDXL-SIGE", analytics_enabled=False, delete_cache=(600, 86400)) as b:
            gr.Markdown(TITLE, elem_id="title")
            with gr.Row():
                with gr.Column(scale=3, min_width=320):
                    self._add_photo()
                    self._add_paint()
                    self._add_words(steps)
                with gr.Column(scale=2, min_width=320):
                    self._add_results()
            gr.Markdown(FOOT, elem_id="foot")
            self._connect()
            b.unload(self._leave)
        self.blocks = b

    def _add_photo(self) -> None:
        self.photo = gr.File(
            label="Photo: drop one here, or click",
            file_types=["image"],
            height=110,
            elem_id="photo",
        )
        with gr.Row():
            self.examples = {
                gr.Button(name, size="sm", min_width=120): path
                for name, path in EXAMPLES.items()
                if path.is_file()
            }

    def _add_paint(self) -> None:
        with gr.Tabs() as self.tabs:
            with gr.Tab("Inpaint", id="inpaint") as self.inpaint_tab:
                self.mask = _editor("Mark what is to be repainted", [(MASK_COLOUR)], "mask")
            with gr.Tab("Draw", id="draw") as self.draw_tab:
                self.drawing = _editor("Draw what should be there", COLOURS, "drawing")

    def _add_words(self, steps: int) -> None:
        self.prompt = gr.Textbox(
            label="What should be there?",
            placeholder="a photograph of a horse on a grassland",
            elem_id="prompt",
        )
        with gr.Row():
            self.repaint = gr.Button("Generate", variant="primary", elem_id="repaint")
            self.redraw = gr.Button(
                "Generate from the drawing", variant="primary", elem_id="redraw", visible=False
            )
            self.stop = gr.Button("Stop", min_width=80, elem_id="stop")
        self.strength = gr.Slider(
            *(0.1, 1.0, 0.8, 0.05),
            label="Strength: how freely the drawing is followed",
            elem_id="strength",
            visible=False,
        )
        with gr.Accordion("More", open=False):
            self.negative = gr.Textbox(label="What should not be there?", elem_id="negative")
            with gr.Row():
                self.steps = gr.Slider(1, 100, steps, step=1, label="Steps", elem_id="steps")
                self.count = gr.Slider(1, 4, VARIANTS, step=1, label="Variants", elem_id="count")
                self.seed = gr.Number(1, label="First seed", precision=0, minimum=0, elem_id="seed")

    def _add_results(self) -> None:
        self.status = gr.HTML(_said("Open a photo, or an example."), elem_id="status")
        self.compare = gr.ImageSlider(
            label="Before and after", format="png", interactive=False, elem_id="compare"
        )
        self.gallery = gr.Gallery(
            label="Variants: click one to compare it",
            columns=2,
            format="png",
            allow_preview=False,
            interactive=False,
            height="auto",
            object_fit="contain",
            elem_id="gallery",
            buttons=[],
        )
        self.chosen = gr.State(0)
        with gr.Row():
            self.accept = gr.Button("Accept", variant="primary", min_width=80, elem_id="accept")
            self.others = gr.Button("Other seeds", min_width=80, elem_id="others")
            self.undo = gr.Button("Undo", min_width=80, elem_id="undo")
            self.save = gr.DownloadButton("Save", min_width=80, elem_id="save")

    def _connect(self) -> None:
        """What a click does."""
        # Jobs wait in the worker's line, not in gradio's, so that none keeps a person's own next
        # click waiting.
        rules: dict[str, Any] = {
            "concurrency_limit": None,
            "show_progress": "hidden",
            "trigger_mode": "multiple",
            "api_visibility": "private",
        }
        everything = [self.mask, self.drawing, self.compare, self.gallery, self.status, self.save]
        everything.append(self.chosen)
        self.photo.upload(self._open, [self.photo, self.steps], everything, **rules)
        for button, path in self.examples.items():
            button.click(self._opener(path), [self.steps], everything, **rules)
        words = [self.prompt, self.negative, self.strength, self.steps, self.count, self.seed]
        shown = [self.compare, self.gallery, self.status, self.chosen]
        for button, editor, task in (
            (self.repaint, self.mask, Task.INPAINTING),
            (self.redraw, self.drawing, Task.SDEDIT),
        ):
            button.click(self._generator(task), [editor, *words], shown, **rules)
        self.stop.click(self._stop, None, None, **rules)
        pick = [self.gallery, self.chosen, self.compare]
        self.gallery.select(self._pick, None, pick[1:], **rules)
        self.accept.click(self._accept, self.chosen, everything, **rules)
        self.undo.click(self._undo, None, everything, **rules)
        by_task = [self.repaint, self.redraw, self.strength]
        quick = {**rules, "queue": False}
        self.inpaint_tab.select(lambda: _visible(True, False, False), None, by_task, **quick)
        self.draw_tab.select(lambda: _visible(False, True, True), None, by_task, **quick)
        next_seed = {"fn": lambda seed, count: seed + count, "inputs": [self.seed, self.count]}
        self.others.click(**next_seed, outputs=self.seed, **quick)

    def _desk(self, request: gr.Request) -> Desk:
        """The desk of a browser's page; a new one at its first click."""
        key = str(request.session_hash)
        if key not in self._desks:
            self._desks[key] = (Desk(self.studio), tempfile.TemporaryDirectory())
        return self._desks[key][0]

    def _leave(self, request: gr.Request) -> None:
        """A page was closed or loaded anew."""
        desk, folder = self._desks.pop(str(request.session_hash), (None, None))
        if desk is not None and folder is not None:
            desk.close()
            folder.cleanup()

    async def _open(self, path: str, steps: int, request: gr.Request) -> AsyncIterator[Update]:
        async for update in self._moved(
            request, lambda desk, emit: desk.open(Path(path), steps, emit)
        ):
            yield update

    def _opener(self, path: Path) -> Callable[..., AsyncIterator[Update]]:
        async def opened(steps: int, request: gr.Request) -> AsyncIterator[Update]:
            async for update in self._open(str(path), steps, request):
                yield update

        return opened

    async def _accept(self, chosen: int, request: gr.Request) -> AsyncIterator[Update]:
        def ask(desk: Desk, emit: Emit) -> object:
            seeds = list(desk.variants)
            return desk.accept(seeds[chosen] if chosen < len(seeds) else -1, emit)

        async for update in self._moved(request, ask):
            yield update

    async def _undo(self, request: gr.Request) -> AsyncIterator[Update]:
        async for update in self._moved(request, lambda desk, emit: desk.undo(emit)):
            yield update

    async def _moved(
        self, request: gr.Request, ask: Callable[[Desk, Emit], object]
    ) -> AsyncIterator[Update]:
        """What is seen of a job after which the picture is another."""
        desk = self._desk(request)
        async for event in _events(lambda emit: ask(desk, emit)):
            update = self._told(event, "The photo is recorded: paint, and generate.")
            if isinstance(event, Shown):
                folder = Path(self._desks[str(request.session_hash)][1].name)
                canvas = {"background": event.picture, "layers": [], "composite": None}
                update |= {self.mask: canvas, self.drawing: canvas, self.chosen: 0}
                update |= {self.gallery: [], self.compare: (event.picture, event.picture)}
                update[self.save] = str(await asyncio.to_thread(desk.save, folder))
            yield update

    def _generator(self, task: Task) -> Callable[..., AsyncIterator[Update]]:
        async def generated(
            canvas: dict[str, Any] | None,
            prompt: str,
            negative: str,
            strength: float,
            steps: int,
            count: int,
            seed: int | None,
            request: gr.Request,
        ) -> AsyncIterator[Update]:
            desk, first = self._desk(request), int(seed or 0)
            layers = canvas["layers"] if canvas else []
            seeds = tuple(range(first, first + int(count)))
            wish = Wish(prompt or "", negative or "", strength, int(steps), seeds)
            done: list[tuple[Image.Image, str]] = []
            async for event in _events(
                lambda emit: desk.generate(task, layers[0] if layers else None, wish, emit)
            ):
                update = self._told(event, "Choose a variant and accept it, or paint on.")
                if isinstance(event, Preview):
                    words = f"seed {event.seed}: step {event.number} of {event.count}"
                    update[self.gallery] = [*done, (event.picture, words)]
                elif isinstance(event, Variant):
                    done.append((event.picture, _caption(event)))
                    update[self.gallery] = done
                    if len(done) == 1:
                        update |= {self.compare: (desk.picture, event.picture), self.chosen: 0}
                yield update

        return generated

    def _pick(self, request: gr.Request, event: gr.SelectData) -> Update:
        """A click on a variant."""
        desk = self._desk(request)
        variants = list(desk.variants.values())
        if event.index >= len(variants):  # a preview
            return {self.compare: gr.skip()}
        pictures = (desk.picture, variants[event.index].picture)
        return {self.chosen: event.index, self.compare: pictures}

    def _stop(self, request: gr.Request) -> None:
        self._desk(request).cancel()

    def _told(self, event: object, end: str) -> Update:
        """An event in words; `end` for a good end."""
        match event:
            case Waiting(place):
                jobs = "is 1 edit" if place == 1 else f"are {place} edits"
                words = f"Waiting: there {jobs} of others before yours."
            case Recording(number, count, seconds):
                words = f"Recording the photo: step {number} of {count}, {seconds:.1f} s."
            case Preview(seed, _, number, count):
                words = f"Seed {seed}: step {number} of {count}."
            case Variant(seed):
                words = f"Seed {seed} is done."
            case Shown(picture, before):
                words = f"{picture.width} × {picture.height} pixels"
                if before is not None:
                    words += f", made smaller from {before[0]} × {before[1]}"
                words = f"Your picture: {words}."
            case Ended(error, cancelled):
                words = "Stopped." if cancelled else error or end
            case _:
                raise TypeError(event)
        bad = isinstance(event, Ended) and event.error is not None
        return {self.status: _said(words, bad)}


async def _events(ask: Callable[[Emit], object]) -> AsyncIterator[object]:
    """What a job says, from its first word to `Ended`, heard in the page's event loop."""
    loop, heard = asyncio.get_running_loop(), asyncio.Queue[object]()

    def emit(event: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the program ends
            loop.call_soon_threadsafe(heard.put_nowait, event)

    ask(emit)
    event: object = None
    while not isinstance(event, Ended):
        event = await heard.get()
        yield event


def _editor(label: str, colours: list[str], name: str) -> gr.ImageEditor:
    return gr.ImageEditor(
        label=label,
        type="pil",
        format="png",
        sources=(),
        transforms=(),
        layers=False,
        brush=gr.Brush(default_size=24, colors=list(colours), color_mode="fixed"),
        eraser=gr.Eraser(default_size=24),
        height=420,
        elem_id=name,
    )


def _visible(*shown: bool) -> list[dict[str, Any]]:
    return [gr.update(visible=one) for one in shown]


def _said(words: str, bad: bool = False) -> str:
    """The status line."""
    kind = ' class="error"' if bad else ""
    return f'<div role="status" aria-live="polite"{kind}>{html.escape(words)}</div>'


def _caption(variant: Variant) -> str:
    """A variant's seconds beside those of a dense run."""
    dense = "dense: not measured yet" if variant.dense is None else f"dense: {variant.dense:.1f} s"
    return f"seed {variant.seed}: {variant.seconds:.1f} s ({dense})"


def launch(studio: Studio, steps: int, port: int | None, share: bool, max_file: int) -> str:
    """Serve the page from a thread of its own; its address.

    Args:
        steps: sampler steps to begin with.
        port: None for the first that is free from 7860 on.
        share: also at a public address.
        max_file: bytes of an upload, at most.

    Raises:
        UserError: the port is taken.
    """
    blocks = Page(studio, steps).blocks.queue(api_open=False)
    try:
        _, local, public = blocks.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=share,
            max_file_size=max_file,
            prevent_thread_lock=True,
            quiet=True,
            inline=False,
            footer_links=[],
            enable_monitoring=False,
            ssr_mode=False,
            css=CSS,
            theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        )
    except OSError as error:
        raise UserError(
            f"The page cannot be served at port {port}; choose another --port."
        ) from error
    return public or local
