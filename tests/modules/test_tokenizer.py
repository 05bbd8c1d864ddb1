"""Token ids against the golden data; what loading the vocabulary may and may not do."""

import gzip
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sgm.modules.encoders import tokenizer

# SHA-256 of the file in openai/CLIP and in every release of open_clip.
PUBLISHED = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"


@pytest.mark.parametrize(("name", "pad"), [("open_clip", 0), ("clip", tokenizer.END_TOKEN)])
def test_tokens_equal_golden(golden, name, pad):
    case = golden("text")
    tokens = tokenizer.tokenize(case.info["prompts"], pad)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, case[f"tokens_{name}"].long())


def test_tokens_clean_the_text():
    messy = ["caf&amp;eacute;   \u201cNAÏVE\u201d\n", "cafÃ© naïve"]
    tidy = ['café "naïve"', "café naïve"]
    assert torch.equal(tokenizer.tokenize(messy, 0), tokenizer.tokenize(tidy, 0))


def test_tokens_keep_room_for_both_marks():
    row = tokenizer.tokenize(["horse " * 200], pad_token=0)[0].tolist()
    assert row[0] == tokenizer.START_TOKEN and row[-1] == tokenizer.END_TOKEN
    assert len(set(row[1:-1])) == 1 and len(row) == 77
    assert tokenizer.tokenize([], 0).shape == (0, 77)


@pytest.mark.parametrize("texts", ["one string", [b"bytes"], [None]])
def test_tokens_refuse_what_is_not_a_list_of_strings(texts):
    with pytest.raises(TypeError, match="list of prompts"):
        tokenizer.tokenize(texts, 0)


def test_damaged_vocabulary_is_named(tmp_path):
    path = tmp_path / "short.gz"
    path.write_bytes(gzip.compress(b"#version\na b\n"))
    with pytest.raises(ValueError, match=r"short\.gz is damaged"):
        tokenizer.BytePairTokenizer(path)


def test_vocabulary_is_the_published_one():
    assert hashlib.sha256(tokenizer.VOCABULARY.read_bytes()).hexdigest() == PUBLISHED
    notice = tokenizer.VOCABULARY.with_name("bpe_simple_vocab_16e6.LICENSE").read_text()
    assert "OpenAI" in notice and "Ilharco" in notice and "Permission is hereby granted" in notice


def test_imports_no_library_of_models():
    # A fresh process, since other tests may import them.
    program = (
        "import sys; from sgm.modules.encoders import modules, tokenizer\n"
        "assert tokenizer.load_tokenizer.cache_info().misses == 0, 'vocabulary read on import'\n"
        "tokenizer.tokenize(['a horse'], 0)\n"
        "bad = {'open_clip', 'torchvision', 'transformers', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
