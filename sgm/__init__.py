"""Local image editing with SDXL that computes only where the edit is; `sgm.load` is the start."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgm.editor import Editor


def load(model: str = "sdxl", **options: Any) -> "Editor":
    """Load a model that edits pictures.

    Args:
        model: `sdxl`, or the small one that comes along, `tiny`.
        options: `preset` (`fast`, or `published`), `run_type` (`sige`; `original` is dense, `turbo`
            and `sige-turbo` take few steps), `checkpoint` (a file or a diffusers folder), `vae`,
            `loras` (paths to their weights), `prediction`, `device`, `precision`, `backend`,
            `graphs`, `weight_path`, `config_path`, `progress`: as on the command line.

    Raises:
        UserError: a file is missing or does not fit; one sentence.
        TypeError: an option that is not known.
    """
    # Imported here, so that `import sgm` is quick and loads no other library.
    from sgm.editor import load_editor

    return load_editor(model, **options)
