"""A canvas to paint on, which is read while nobody waits for it.

Gradio's editor draws by WebGL, and what is painted is had from it in three pictures: encoded in the
browser and sent. So it is asked for them soon after a stroke, and a click sends only where the
server keeps the paint. A click that comes sooner waits; paint that was touched since is read anew.
"""

from typing import Any

import gradio as gr

# In the browser. `editor` is touched by what may change its paint, and `newest` is how it was last
# read. An answer says which reading it is of: one may fail, and be sent after the next.
READER = """
const here = element.closest(`#${props.editor}-paint`);
const pause = 200, limit = 60000;  // milliseconds
const waiting = new Map();
let touches = 0, pressed = false, timer = null, newest = null;

const read = () => {
  clearTimeout(timer);
  const number = (props.value ?? 0) + 1;
  newest = {touches, answer: new Promise((done) => waiting.set(number, done))};
  setTimeout(() => here.answer(number, null), limit);
  props.value = number;
  trigger("submit");
};
const touch = (rest) => {
  touches += 1;
  clearTimeout(timer);
  if (rest) timer = setTimeout(read, pause);
};
const within = (event) => event.target.closest?.(`#${props.editor}`);
const press = (event) => { if (within(event)) { pressed = true; touch(false); } };
const release = () => { if (pressed) { pressed = false; touch(true); } };
const change = (event) => { if (within(event)) touch(true); };
addEventListener("pointerdown", press, true);
addEventListener("pointerup", release, true);
addEventListener("pointercancel", release, true);
for (const name of ["click", "keydown", "keyup", "drop"]) addEventListener(name, change, true);

here.answer = (number, paint) => { waiting.get(number)?.(paint); waiting.delete(number); };
here.painted = async (shown) => {
  const fits = newest?.touches === touches && (await newest.answer)?.shown === shown;
  if (!fits) read();
  const paint = await newest.answer;
  if (paint === null) throw new Error("The canvas could not be read.");
  return paint;
};
"""


class Canvas:
    """A canvas, and what reads it; inside a `gr.Blocks`.

    Args:
        colours: of the brush.
        name: of the element in the page.

    Attributes:
        editor: what is painted on.
        shown: not seen; names the picture that is below the paint.
    """

    def __init__(self, colours: list[str], name: str) -> None:
        self.editor = gr.ImageEditor(
            show_label=False,
            type="pil",
            format="png",
            sources=(),
            transforms=(),
            layers=False,
            brush=gr.Brush(default_size=24, colors=list(colours), color_mode="fixed"),
            eraser=gr.Eraser(default_size=24),
            height=370,
            elem_id=name,
        )
        self.shown = gr.Textbox(visible=False)
        self._here = f"document.querySelector('#{name}-paint')"
        self._reader = gr.HTML(
            None,
            html_template="",
            js_on_load=READER,
            visible="hidden",
            elem_id=f"{name}-paint",
            editor=name,
        )

    def connect(self, rules: dict[str, Any]) -> None:
        """What its events do.

        Args:
            rules: of gradio's events.
        """
        answer = (
            "(number, canvas, shown) => "
            f"{self._here}.answer(number, {{layer: canvas?.layers[0] ?? null, shown}})"
        )
        self._reader.submit(None, [self._reader, self.editor, self.shown], js=answer, **rules)

    @property
    def painted(self) -> str:
        """Javascript for an event with the inputs (an RGBA image, `shown`, ...): gives the event
        the paint, and what was below it when it was read."""
        return (
            "async (_, shown, ...rest) => { "
            f"const paint = await {self._here}.painted(shown); "
            "return [paint.layer, paint.shown, ...rest]; }"
        )


def canvas_of(picture: str) -> dict[str, Any]:
    """A canvas with the picture of a file and no paint."""
    return {"background": picture, "layers": [], "composite": None}
