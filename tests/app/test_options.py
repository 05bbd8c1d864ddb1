"""The command of the page: its flags, and what it says when it cannot serve one."""

import sys
from pathlib import Path

import pytest

from sgm.app.__main__ import load_studio, main
from sgm.app.options import read_options
from sgm.errors import UserError
from sgm.words import Precision


def test_the_tiny_model_unless_a_checkpoint_is_named() -> None:
    assert read_options([]).model == "tiny"
    assert read_options(["--checkpoint", "a.safetensors"]).model == "sdxl"
    values = read_options(["--model", "sdxl", "--precision", "bf16", "--lora", "a:0.5"])
    assert values.model == "sdxl" and values.precision is Precision.BF16
    assert values.lora == [("a", 0.5)] and not values.share


def test_the_guidance_suits_the_model() -> None:
    assert read_options([]).scale == 3.0 and read_options(["--scale", "5"]).scale == 5.0
    assert read_options(["--model", "sdxl"]).scale == 6.0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--prot", "1"], "Unknown option '--prot' (did you mean --port?)"),
        (["--port", "0"], "whole number from 1 to 65535"),
        (["--memory", "0"], "above 0"),
        (["--model", "small"], "choose one of sdxl, tiny"),
    ],
)
def test_a_wrong_flag_is_a_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as found:
        read_options(words)
    assert sentence in str(found.value)


def test_without_gradio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"pip install -r requirements-app\.txt"):
        main([])


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.safetensors"):
        load_studio(read_options(["--checkpoint", str(tmp_path / "missing.safetensors")]))


def test_words_of_a_prompt_can_be_weighted_in_the_page() -> None:
    studio = load_studio(read_options(["--device", "cpu", "--scale", "2"]))
    assert studio.params.weighted and studio.params.scale == 2
