"""Weighted and long prompts: how they are read, and what the towers make of them."""

import pytest
import torch

from sgm.inference.prompts import unread, words_beyond
from sgm.modules import GeneralConditioner
from sgm.modules.encoders.prompts import prompt_pair, weighted_parts, weighted_prompt
from sgm.modules.encoders.tokenizer import load_tokenizer
from tests.modules.test_encoders import tiny_batch, tiny_entries

LONG = ", ".join(f"thing {number}" for number in range(60))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a horse", [("a horse", 1)]),
        ("a (horse:1.3) runs", [("a ", 1), ("horse", 1.3), (" runs", 1)]),
        (
            "a (big (horse:2)) [runs]",
            [("a ", 1), ("big ", 1.1), ("horse", 2.2), (" ", 1), ("runs", 1 / 1.1)],
        ),
        (r"a \(horse\)", [("a (horse)", 1)]),
        ("at 10:30 (", [("at 10:30 ", 1)]),
        ("an open (horse", [("an open ", 1), ("horse", 1.1)]),
        ("a ) closed ]", [("a ) closed ]", 1)]),
        ("sky BREAK sea", [("sky ", 1), None, (" sea", 1)]),
        ("", []),
    ],
)
def test_parts(text: str, parts: list) -> None:
    found = list(weighted_parts(text))
    assert [part and part[0] for part in found] == [part and part[0] for part in parts]
    for one, other in zip(found, parts, strict=True):
        assert one is other or one[1] == pytest.approx(other[1])


def test_chunks_hold_every_token_and_are_equally_many() -> None:
    prompt, negative = prompt_pair(LONG, "fog")
    tokens = [token for chunk in prompt.chunks for token, _ in chunk]
    assert tokens == load_tokenizer().encode(LONG) and len(prompt.chunks) > 1
    assert all(len(chunk) <= 75 for chunk in prompt.chunks)
    assert len(negative.chunks) == len(prompt.chunks) and negative.chunks[-1] == ()


@pytest.fixture
def conditioner() -> GeneralConditioner:
    return GeneralConditioner(tiny_entries()).eval()


def told(conditioner: GeneralConditioner, prompt: object) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        return conditioner(tiny_batch([prompt]))


def test_a_plain_prompt_is_read_as_ever(conditioner: GeneralConditioner) -> None:
    plain = told(conditioner, "a photograph of a horse")
    same = told(conditioner, weighted_prompt("a photograph of a horse"))
    assert all(torch.equal(plain[key], same[key]) for key in plain)


def test_weights_move_the_states_of_their_words_only(conditioner: GeneralConditioner) -> None:
    plain = told(conditioner, "a photograph of a horse")["crossattn"]
    strong = told(conditioner, weighted_prompt("a photograph of a (horse:1.5)"))["crossattn"]
    empty = told(conditioner, "")["crossattn"]
    at = 5  # after the start mark and four words
    expected = empty[:, at] + 1.5 * (plain - empty)[:, at]
    assert torch.allclose(strong[:, at], expected, atol=1e-6)
    rest = [n for n in range(77) if n != at]
    assert torch.allclose(strong[:, rest], plain[:, rest], atol=1e-6)


def test_long_prompts_are_joined_chunk_by_chunk(conditioner: GeneralConditioner) -> None:
    long = told(conditioner, weighted_prompt(LONG))
    count = len(weighted_prompt(LONG).chunks)
    assert long["crossattn"].shape[1] == 77 * count
    first = told(conditioner, LONG)  # cut after one chunk
    assert torch.allclose(long["crossattn"][:, :77], first["crossattn"], atol=1e-6)
    assert torch.allclose(long["vector"], first["vector"], atol=1e-6)


def test_what_is_not_read_is_named() -> None:
    assert unread("a photograph of a horse", False) == unread("", True) == []
    [emphasis] = unread("a (horse:1.5)", False)
    assert "'(horse:1.5)' is read as text" in emphasis and unread("a (horse:1.5)", True) == []
    for weighted in (False, True):
        [lora] = unread("a horse <lora:style:0.8>", weighted)
        assert "'<lora:style:0.8>' is read as text" in lora
    [lost] = unread(LONG, False)
    rest = words_beyond(LONG)
    assert rest[:20] in lost and LONG.endswith(rest) and unread(LONG, True) == []
    kept = LONG[: -len(rest)].strip()
    assert len(load_tokenizer().encode(kept)) <= 75
    assert len(load_tokenizer().encode(f"{kept} {rest.split()[0]}")) > 75
