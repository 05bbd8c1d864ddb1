"""The table of docs/limits.md of inputs that the tests try, held against the tests."""

import re
from collections.abc import Callable

from hypothesis import settings

from tests import test_fuzz
from tests.cli import test_hard_inputs, test_options
from tests.io import test_bombs, test_masks_io, test_wrong_weights
from tests.test_readme import section


def examples(test: Callable[..., object]) -> int:
    """How many files a fuzzing test makes at the suite's own profile."""
    chosen: settings = test._hypothesis_internal_use_settings
    return chosen.max_examples // test_fuzz.SCALE


def test_no_more_is_said_to_be_tried_than_is() -> None:
    tried = {
        "pictures": len(test_hard_inputs.PICTURES),
        "masks": len(test_hard_inputs.MASKED)
        + len(test_masks_io.ARRAYS)
        + len(test_masks_io.PICTURES),
        "no pictures": len(test_hard_inputs.BAD),
        "no masks": len(test_masks_io.BAD_ARRAYS),
        "options": len(test_options.REFUSED),
        "wrong weights": len(test_wrong_weights.WRONG) + len(test_wrong_weights.NO_CHECKPOINT),
        "bombs": len(test_bombs.BOMBS),
        "damaged weights": examples(test_fuzz.test_weights),
        "damaged masks": examples(test_fuzz.test_arrays) + examples(test_fuzz.test_archives),
        "damaged configurations": examples(test_fuzz.test_configurations),
        "damaged pictures": examples(test_fuzz.test_pictures),
    }
    rows = re.findall(
        r"^\| (\w[\w ]*?) \| (\d+) \|", section("Limits", "docs/limits.md"), flags=re.MULTILINE
    )
    said = {name: int(count) for name, count in rows}
    assert list(said) == list(tried)
    # A new case need not change the page.
    assert not {name: count for name, count in said.items() if not 0 < count <= tried[name]}
