"""The README's table of inputs that the tests try, held against the tests."""

import re
from collections.abc import Callable

from hypothesis import settings

from tests import test_fuzz, test_hard_inputs, test_masks_io, test_options, test_wrong_weights
from tests.test_readme import section


def examples(test: Callable[..., object]) -> int:
    """How many files a fuzzing test makes at the suite's own profile."""
    chosen: settings = test._hypothesis_internal_use_settings
    return chosen.max_examples // test_fuzz.SCALE


def test_the_table_counts_what_is_tried() -> None:
    sizes = {
        "pictures": len(test_hard_inputs.PICTURES),
        "masks": len(test_hard_inputs.MASKED)
        + len(test_masks_io.ARRAYS)
        + len(test_masks_io.PICTURES),
        "no pictures": len(test_hard_inputs.BAD),
        "no masks": len(test_masks_io.BAD_ARRAYS),
        "options": len(test_options.REFUSED),
        "wrong weights": len(test_wrong_weights.WRONG) + len(test_wrong_weights.NO_CHECKPOINT),
        "damaged weights": examples(test_fuzz.test_weights),
        "damaged masks": examples(test_fuzz.test_arrays) + examples(test_fuzz.test_archives),
        "damaged configurations": examples(test_fuzz.test_configurations),
        "damaged pictures": examples(test_fuzz.test_pictures),
    }
    rows = re.findall(r"^\| (\w[\w ]*?) \| (\d+) \|", section("Limits"), flags=re.MULTILINE)
    assert {name: int(count) for name, count in rows} == sizes
