"""The components of the page and their style."""

import html
from typing import Any

import gradio as gr

from sgm.app.canvas import Canvas
from sgm.specs import SHIPPED
from sgm.words import Task

VARIANTS = 4
EXAMPLES = {
    "Try a grassland": SHIPPED / "assets/inpainting/original/0.png",
    "Try a landscape": SHIPPED / "assets/img2img/original/0.png",
}
MASK_COLOUR = "rgba(255, 64, 160, 0.6)"
COLOURS = ["#7a3b1d", "#c0392b", "#f1c40f", "#2e7d32", "#2471a3", "#7fb3d5", "#ffffff", "#1c1c1c"]
CSS = """
.gradio-container {max-width: 1280px !important; margin: auto}
#status {min-height: 2.6em; padding: .5em .8em; border-radius: 8px;
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary)}
#status .error {color: var(--error-text-color, #b91c1c); font-weight: 600}
#title p {margin: 0}
.block.hint {margin-top: -.5rem; overflow: visible !important}
#gallery .grid-wrap {min-height: 0; height: auto; max-height: none}
#gallery .thumbnail-item {aspect-ratio: auto; height: auto; display: flex; flex-direction: column}
#gallery .thumbnail-item img {height: auto}
#gallery .caption-label {position: static; max-width: 100%; white-space: normal; border: 0;
  text-align: center; text-wrap: balance; font-size: .8rem}
footer {display: none !important}
"""
TITLE = """# Paint an edit
Open a photo, paint where it should change, say what should be there. Only that part is computed."""
FOOT = """Images stay on the machine that serves this page. From ComfyUI, or from your own diffusers
pipeline? See `docs/diffusers.md`; the same edits from Python and from the shell are in the
`README.md`."""


class Layout:
    """The components of the page; inside a `gr.Blocks`.

    Args:
        steps: sampler steps to begin with.
    """

    def __init__(self, steps: int) -> None:
        gr.Markdown(TITLE, elem_id="title")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                self._add_photo()
                self._add_paint()
                self._add_words(steps)
            with gr.Column(scale=2, min_width=320):
                self._add_results()
        gr.Markdown(FOOT, elem_id="foot")

    def _add_photo(self) -> None:
        with gr.Row(equal_height=True):
            self.photo = gr.File(
                show_label=False,
                file_types=["image"],
                height=124,
                scale=3,
                min_width=200,
                elem_id="photo",
            )
            with gr.Column(scale=1, min_width=160):
                self.examples = {
                    gr.Button(name, size="sm"): path
                    for name, path in EXAMPLES.items()
                    if path.is_file()
                }

    def _add_paint(self) -> None:
        with gr.Tabs():
            with gr.Tab("Inpaint", id="inpaint") as inpaint:
                gr.Markdown("Brush over what is to be repainted.", elem_classes="hint")
                mask = Canvas([MASK_COLOUR], "mask")
            with gr.Tab("Draw", id="draw") as draw:
                gr.Markdown(
                    "Draw what should be there, roughly, in its colours.", elem_classes="hint"
                )
                drawing = Canvas(COLOURS, "drawing")
        self.tabs = {Task.INPAINTING: inpaint, Task.SDEDIT: draw}
        self.canvases = {Task.INPAINTING: mask, Task.SDEDIT: drawing}
        self.paint = gr.Image(type="pil", image_mode="RGBA", visible=False)

    def _add_words(self, steps: int) -> None:
        self.prompt = gr.Textbox(
            label="What should be there?",
            placeholder="a photograph of a horse on a grassland",
            elem_id="prompt",
        )
        with gr.Row():
            repaint = gr.Button("Generate", variant="primary", elem_id="repaint")
            redraw = gr.Button("Generate", variant="primary", elem_id="redraw", visible=False)
            self.stop = gr.Button("Stop", min_width=80, elem_id="stop")
        self.generate = {Task.INPAINTING: repaint, Task.SDEDIT: redraw}
        self.strength = gr.Slider(
            *(0.1, 1.0, 0.8, 0.05),
            label="Strength: how freely the drawing is followed",
            elem_id="strength",
            visible=False,
        )
        # Open from the start: gradio sets back what is filled in while an accordion opens first.
        with gr.Accordion("More"):
            self.negative = gr.Textbox(label="What should not be there?", elem_id="negative")
            with gr.Row():
                self.steps = gr.Slider(1, 100, steps, step=1, label="Steps", elem_id="steps")
                self.count = gr.Slider(1, 4, VARIANTS, step=1, label="Variants", elem_id="count")
                self.seed = gr.Number(1, label="First seed", precision=0, minimum=0, elem_id="seed")
                self.others = gr.Checkbox(True, label="Other seeds next time", elem_id="others")

    def _add_results(self) -> None:
        self.status = gr.HTML(said("Open a photo, or try an example."), elem_id="status")
        self.compare = gr.ImageSlider(
            show_label=False,
            format="png",
            interactive=False,
            elem_id="compare",
            buttons=["fullscreen"],
        )
        self.gallery = gr.Gallery(
            show_label=False,
            columns=2,
            format="jpeg",  # small pictures, a new one with every preview
            allow_preview=False,
            interactive=False,
            height="auto",
            object_fit="contain",
            elem_id="gallery",
            buttons=[],
        )
        look: dict[str, Any] = {"size": "md", "min_width": 80}
        with gr.Row():
            self.accept = gr.Button("Accept", variant="primary", elem_id="accept", **look)
            self.undo = gr.Button("Undo", elem_id="undo", **look)
            self.save = gr.DownloadButton("Save", interactive=False, elem_id="save", **look)


def said(words: str, bad: bool = False) -> str:
    """The status line."""
    kind = ' class="error"' if bad else ""
    return f'<div role="status" aria-live="polite"{kind}>{html.escape(words)}</div>'
