"""Whether `diffusers` can be imported here; the tests that compare with it skip where it cannot."""

import importlib
from types import ModuleType

import pytest


def diffusers_or_skip(*others: str) -> tuple[ModuleType, ...]:
    """`diffusers` and other packages, or a skip that says why.

    It imports much, of which some may be there and broken (a torchvision of another torch).
    """
    found = []
    for name in ("diffusers", *others):
        try:
            found.append(importlib.import_module(name))
            if name == "diffusers":
                found[0].UNet2DConditionModel, found[0].AutoencoderKL
        except Exception as error:  # whatever a broken package raises
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            pytest.skip(f"{name} cannot be imported: {reason}")
    return tuple(found)
