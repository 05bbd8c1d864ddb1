"""The one exception a user meets, and the suggestion that goes with a mistyped name."""

from collections.abc import Iterable


class UserError(ValueError):
    """A bad input, option or file; the message is one sentence that ends in a full stop.

    The sentence says what came, what was expected and what to do. `run.py` prints it without a
    traceback and exits with code 2.
    """


def suggestion(name: str, known: Iterable[str]) -> str:
    """The ending of a message about an unknown name: `" (did you mean <nearest>?)"`, or an empty
    string where none of the names that would have been accepted is near."""
    import difflib  # here, as every program begins by importing this module

    near = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""
