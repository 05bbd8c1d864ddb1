"""Memory for recordings: counted, and taken from whoever has waited longest."""

from types import SimpleNamespace
from typing import cast

import pytest
import torch

from sgm.app.budget import Budget, Metered
from sgm.errors import UserError
from sgm.inference.session import EditSession
from sgm.inference.stores import DeviceStore
from sgm.sparse.recording import Recording


def recording(size: int) -> Recording:
    made = Recording()
    made.values["site", "key"] = torch.zeros(size, dtype=torch.uint8)
    return made


def session(**sizes: int) -> EditSession:
    """Something with a store, which is all that a budget looks at."""
    store = Metered(DeviceStore())
    for name, size in sizes.items():
        store.put(name.replace("_", "-"), recording(size))
    return cast(EditSession, SimpleNamespace(recordings=SimpleNamespace(store=store)))


def test_a_store_counts_its_bytes() -> None:
    store = Metered(DeviceStore())
    store.put("a", recording(100))
    store.put("b", recording(10))
    store.put("a", recording(7))
    assert store.size == 17 and store.names() == {"a", "b"}
    store.forget("b")
    assert store.size == 7 and store.get("a").size_in_bytes() == 7


def test_the_longest_unused_makes_room() -> None:
    budget = Budget(100)
    for name in "abc":
        budget.put(name, session(x=30))
    assert budget.get("a") is not None and budget.get("gone") is None
    budget.make_room(35)
    assert budget.owners() == ["c", "a"] and budget.size == 60
    budget.make_room(100)
    assert budget.owners() == []
    with pytest.raises(UserError, match="more --memory"):
        budget.make_room(101)


def test_a_session_that_has_grown_takes_from_others_and_then_from_itself() -> None:
    budget, own = Budget(100), session(x=60, prompt_1=20, prompt_2=20)
    budget.put("other", session(x=50))
    budget.put("own", own)
    assert budget.owners() == ["own"] and budget.size == 100
    own.recordings.store.put("y", recording(30))
    budget.settle("own")
    assert own.recordings.store.names() == {"x", "y"} and budget.owners() == ["own"]
    own.recordings.store.put("z", recording(30))
    budget.settle("own")
    assert budget.owners() == [] and budget.size == 0
