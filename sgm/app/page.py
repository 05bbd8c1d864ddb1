"""The page in gradio: shows the state of a desk, and calls it. The work is in `sgm.app.desk`."""

import asyncio
import contextlib
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from sgm.app.canvas import canvas_of
from sgm.app.desk import Desk, Wish
from sgm.app.events import Preview, Recording, Shown, Variant
from sgm.app.layout import CSS, Layout, said
from sgm.app.studio import Studio
from sgm.app.worker import Emit, Ended, Waiting
from sgm.errors import UserError
from sgm.words import Task

# Component -> its new value or properties.
Update = dict[Any, Any]
KEPT = 3600.0  # seconds that a page that was left is kept


@dataclass
class Seat:
    """What belongs to one page of a browser.

    Attributes:
        desk: the photo and its edits.
        folder: for what is saved.
        chosen: seed of the variant that is compared with the picture; None for none.
        task: which tab is open.
        shown: name of the file of the picture that is edited; another for every picture.
        stale: the tasks whose canvas does not show the picture as it is now. A canvas that is not
            seen cannot be painted by gradio, so it is brought up to date when its tab is opened.
        left: when the browser went away; None while it is there. A telephone that slept comes back.
    """

    desk: Desk
    folder: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)
    chosen: int | None = None
    task: Task = Task.INPAINTING
    shown: str = ""
    stale: set[Task] = field(default_factory=set)
    left: float | None = None

    async def show(self, picture: Image.Image) -> None:
        """Write another picture that is edited, as a file: gradio would encode it again wherever
        it is seen."""
        name = f"{uuid.uuid4().hex}.png"
        await asyncio.to_thread(picture.save, Path(self.folder.name) / name, compress_level=1)
        self.shown = name

    @property
    def path(self) -> str:
        """Of the picture that is edited."""
        return str(Path(self.folder.name) / self.shown)


class Page:
    """The components, and what their events do.

    Args:
        studio: what the page works with.
        steps: sampler steps to begin with.
    """

    def __init__(self, studio: Studio, steps: int) -> None:
        self.studio = studio
        self.seats: dict[str, Seat] = {}
        with gr.Blocks(title="SDXL-SIGE", analytics_enabled=False, delete_cache=(600, 86400)) as b:
            self.on = Layout(steps)
            self._connect(self.on)
            b.unload(self._leave)
        self.blocks = b

    def _connect(self, on: Layout) -> None:
        """What a click does."""
        # Jobs wait in the worker's line, not in gradio's, so that none keeps a person's own next
        # click waiting.
        rules: dict[str, Any] = {
            "concurrency_limit": None,
            "show_progress": "hidden",
            # Of what shows progress, gradio asks the value at every event: canvases would be sent.
            "show_progress_on": on.status,
            "trigger_mode": "multiple",
            "api_visibility": "private",
        }
        results = [on.compare, on.gallery, on.status]
        canvases = [part for of in on.canvases.values() for part in (of.editor, of.shown)]
        everything = [*results, *canvases, on.save]
        on.photo.upload(self._open, [on.photo, on.steps], everything, **rules)
        for button, path in on.examples.items():
            button.click(self._opener(path), on.steps, everything, **rules)
        words = [on.prompt, on.negative, on.strength, on.steps, on.count, on.seed, on.others]
        for task, button in on.generate.items():
            canvas = on.canvases[task]
            canvas.connect(rules)
            asked = [on.paint, canvas.shown, *words]
            after = [*results, on.seed]
            button.click(self._generator(task), asked, after, js=canvas.painted, **rules)
            by_task = [canvas.editor, canvas.shown, *on.generate.values(), on.strength]
            on.tabs[task].select(self._opened_tab(task), None, by_task, **rules)
        on.stop.click(self._stop, None, on.status, **rules)
        on.gallery.select(self._pick, None, [on.compare, on.status], **rules)
        on.accept.click(self._accept, None, everything, **rules)
        on.undo.click(self._undo, None, everything, **rules)

    def _seat(self, request: gr.Request) -> Seat:
        """The seat of a browser's page; made at its first click."""
        key = str(request.session_hash)
        if key not in self.seats:
            self.seats[key] = Seat(Desk(self.studio))
        self.seats[key].left = None
        return self.seats[key]

    def _leave(self, request: gr.Request) -> None:
        """A page was closed, or loaded anew, or sleeps: its edit ends, its recordings are freed,
        and in time all of it is forgotten."""
        now, gone = time.monotonic(), self.seats.get(str(request.session_hash))
        if gone is not None:
            gone.desk.close()
            gone.left = now
        for key, seat in list(self.seats.items()):
            if seat.left is not None and now - seat.left > KEPT:
                del self.seats[key]
                seat.folder.cleanup()

    def _opened_tab(self, task: Task) -> Callable[[gr.Request], AsyncIterator[Update]]:
        async def opened(request: gr.Request) -> AsyncIterator[Update]:
            seat = self._seat(request)
            seat.task = task
            buttons = self.on.generate.items()
            update: Update = {button: gr.update(visible=of is task) for of, button in buttons}
            update[self.on.strength] = gr.update(visible=task is Task.SDEDIT)
            if task in seat.stale and seat.desk.picture is not None:
                seat.stale.discard(task)
                async for shown in self._on_canvas(seat):
                    yield shown
            yield update

        return opened

    async def _on_canvas(self, seat: Seat) -> AsyncIterator[Update]:
        """Show the picture on the canvas of the open tab, without paint."""
        canvas = self.on.canvases[seat.task]
        yield {canvas.editor: canvas_of(seat.path)}
        # When it is there: what is read before is not taken for paint on this picture.
        yield {canvas.shown: seat.shown}

    async def _open(self, path: str, steps: int, request: gr.Request) -> AsyncIterator[Update]:
        seat = self._seat(request)
        asked = _events(lambda emit: seat.desk.open(Path(path), steps, emit))
        async for update in self._moved(seat, asked, "The photo is recorded"):
            yield update

    def _opener(self, path: Path) -> Callable[..., AsyncIterator[Update]]:
        async def opened(steps: int, request: gr.Request) -> AsyncIterator[Update]:
            async for update in self._open(str(path), steps, request):
                yield update

        return opened

    async def _accept(self, request: gr.Request) -> AsyncIterator[Update]:
        seat = self._seat(request)
        asked = _events(lambda emit: seat.desk.accept(seat.chosen, emit))
        async for update in self._moved(seat, asked, "Accepted"):
            yield update

    async def _undo(self, request: gr.Request) -> AsyncIterator[Update]:
        seat = self._seat(request)
        async for update in self._moved(seat, _events(seat.desk.undo), "Taken back"):
            yield update

    async def _moved(
        self, seat: Seat, events: AsyncIterator[object], end: str
    ) -> AsyncIterator[Update]:
        """What is seen of a job after which the picture is another. Save rests meanwhile: it never
        gives the former one."""
        async for event in events:
            update = self._told(event, f"{end}: paint, and generate.")
            if isinstance(event, Shown):
                await seat.show(event.picture)
                seat.stale, seat.chosen = set(Task) - {seat.task}, None
                async for shown in self._on_canvas(seat):
                    yield shown
                update |= {self.on.gallery: [], self.on.save: gr.update(interactive=False)}
                update[self.on.compare] = (seat.path, seat.path)
            elif isinstance(event, Ended) and seat.desk.picture is not None:
                saved = await asyncio.to_thread(seat.desk.save, Path(seat.folder.name))
                update[self.on.save] = gr.update(value=str(saved), interactive=True)
            yield update

    def _generator(self, task: Task) -> Callable[..., AsyncIterator[Update]]:
        async def generated(
            paint: Image.Image | None,
            shown: str,
            prompt: str,
            negative: str | None,
            strength: float,
            steps: int,
            count: int,
            seed: int | None,
            others: bool,
            request: gr.Request,
        ) -> AsyncIterator[Update]:
            seat, first = self._seat(request), int(seed or 0)
            seeds = tuple(range(first, first + int(count)))
            if shown != seat.shown:
                paint = None  # it was on another picture, and is not on the canvas any more
            wish = Wish(prompt or "", negative or "", strength, int(steps), seeds)
            asked = _events(lambda emit: seat.desk.generate(task, paint, wish, emit))
            done: list[tuple[Image.Image, str]] = []
            async for event in asked:
                update = self._told(event, f"{_named(seeds)} done: click one, and accept it.")
                if isinstance(event, Preview):
                    words = f"seed {event.seed}: step {event.number} of {event.count}"
                    update[self.on.gallery] = [*done, (event.picture, words)]
                elif isinstance(event, Variant):
                    done.append((event.picture, _caption(event)))
                    update[self.on.gallery] = done
                    if len(done) == 1:
                        seat.chosen = event.seed
                        if others:
                            update[self.on.seed] = first + len(seeds)
                yield update
                if isinstance(event, Variant) and len(done) == 1:
                    # In an update of its own: the result is seen before large files are written.
                    yield {self.on.compare: (seat.path, event.picture)}

        return generated

    async def _pick(self, request: gr.Request, event: gr.SelectData) -> Update:
        """A click on a variant."""
        seat = self._seat(request)
        variants = list(seat.desk.variants.values())
        if event.index >= len(variants):  # a preview
            return {self.on.status: gr.skip()}
        variant = variants[event.index]
        seat.chosen = variant.seed
        words = f"Seed {variant.seed} is compared with your picture: accept it, or click another."
        return {self.on.compare: (seat.path, variant.picture), self.on.status: said(words)}

    async def _stop(self, request: gr.Request) -> Update:
        self._seat(request).desk.cancel()
        return {self.on.status: said("Stopped.")}

    def _told(self, event: object, end: str) -> Update:
        """An event in words; `end` for a good end."""
        if isinstance(event, Ended) and event.cancelled:
            return {self.on.status: gr.skip()}  # somebody asked for something else, and sees that
        match event:
            case Waiting(place):
                words = f"Waiting in line: {place} before you."
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
            case Ended(error):
                words = error or end
            case _:
                raise TypeError(event)
        bad = isinstance(event, Ended) and event.error is not None
        return {self.on.status: said(words, bad)}


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


def _named(seeds: Sequence[int]) -> str:
    """Seeds as the subject of a sentence, with its verb."""
    return f"Seed {seeds[0]} is" if len(seeds) == 1 else f"Seeds {seeds[0]} to {seeds[-1]} are"


def _caption(variant: Variant) -> str:
    """A variant's seconds beside those of a dense run."""
    dense = "dense: not measured yet" if variant.dense is None else f"dense: {variant.dense:.1f} s"
    return f"seed {variant.seed}: {variant.seconds:.1f} s ({dense})"


def launch(page: Page, port: int | None, share: bool, max_file: int) -> str:
    """Serve a page from a thread of its own; returns its address.

    Args:
        port: None for the first that is free from 7860 on.
        share: also at a public address.
        max_file: bytes of an upload, at most.

    Raises:
        UserError: the port is taken.
    """
    blocks = page.blocks.queue(api_open=False)
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
