"""Conversion of checkpoints: precision, layout, the way back, and what is refused."""

import shutil
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file, save_file

import convert_weights
from sgm.errors import UserError

PROJECTION = "model.diffusion_model.input_blocks.4.1.proj_in.weight"
OUTSIDE = "first_stage_model.decoder.mid.attn_1.proj_out.weight"
IDS = "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"


@pytest.fixture
def published(tmp_path):
    """A small file in published form: half precision, linear projections, integer ids."""
    tensors = {
        PROJECTION: torch.randn(6, 6).half(),
        "model.diffusion_model.out.2.bias": torch.randn(3).half(),
        OUTSIDE: torch.randn(4, 4, 1, 1).half(),
        "conditioner.embedders.1.model.logit_scale": torch.tensor(4.6).half(),
        IDS: torch.arange(77)[None],
        "empty": torch.zeros(0, 3).half(),
    }
    path = tmp_path / "published.safetensors"
    save_file(tensors, path, {"license": "text"})
    return path, tensors


def run(*words):
    return convert_weights.main([str(word) for word in words])


def test_to_fp32_convolutions(published, tmp_path, capsys):
    source, tensors = published
    target = tmp_path / "new" / "converted.safetensors"
    before = source.read_bytes()
    assert run(source, target) == 0
    converted = load_file(target)
    assert set(converted) == set(tensors)
    assert converted[PROJECTION].shape == (6, 6, 1, 1)
    assert converted[OUTSIDE].shape == (4, 4, 1, 1)
    for name, tensor in tensors.items():
        expected = tensor.float() if tensor.is_floating_point() else tensor
        assert converted[name].dtype == expected.dtype
        assert torch.equal(converted[name].reshape(expected.shape), expected)
    assert source.read_bytes() == before
    assert capsys.readouterr().out.startswith(str(target))
    assert [p.name for p in target.parent.iterdir()] == [target.name]


def test_the_way_back_is_bit_exact(published, tmp_path):
    source, tensors = published
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    run(source, there)
    run(there, back, "--dtype", "fp16", "--no-conv")
    restored = load_file(back)
    assert all(torch.equal(restored[name], tensor) for name, tensor in tensors.items())
    assert all(restored[name].shape == tensor.shape for name, tensor in tensors.items())


def test_every_tensor_starts_where_its_type_may(tmp_path):
    tensors = {"a": torch.randn(3).half(), "b": torch.arange(5), "c": torch.ones(1).half()}
    source, target = tmp_path / "source.safetensors", tmp_path / "target.safetensors"
    save_file(tensors, source)
    run(source, target, "--dtype", "fp16")
    assert all(torch.equal(load_file(target)[name], tensor) for name, tensor in tensors.items())


def test_an_existing_target_needs_force(published, tmp_path):
    source, _ = published
    target = tmp_path / "there.safetensors"
    target.write_bytes(b"mine")
    with pytest.raises(UserError, match="--force"):
        run(source, target)
    assert target.read_bytes() == b"mine"
    assert run(source, target, "--force", "--dtype", "bf16") == 0
    assert load_file(target)[PROJECTION].dtype == torch.bfloat16


def test_the_source_is_never_the_target(published, tmp_path):
    source, _ = published
    link = tmp_path / "link.safetensors"
    link.symlink_to(source)
    for target in (source, link):
        with pytest.raises(UserError, match="source itself"):
            run(source, target, "--force")


def test_no_room_is_said_before_anything_is_written(published, tmp_path, monkeypatch):
    source, _ = published
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(100, 90, 10))
    with pytest.raises(UserError, match="free"):
        run(source, tmp_path / "there.safetensors")
    assert not (tmp_path / "there.safetensors").exists()


@pytest.mark.parametrize("keep", [4, 100, -5], ids=["length", "header", "tensors"])
def test_a_truncated_source_leaves_nothing(published, tmp_path, keep):
    source, _ = published
    source.write_bytes(source.read_bytes()[:keep])
    with pytest.raises(UserError, match="download it again"):
        run(source, tmp_path / "there.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == [source.name]


def test_check_says_what_a_file_holds(published, tmp_path, capsys):
    source, _ = published
    run("--check", source)
    assert "6 tensors (5 F16, 1 I64)" in (out := capsys.readouterr().out)
    assert "projections: linear" in out and "license: text" in out
    run(source, tmp_path / "there.safetensors")
    capsys.readouterr()
    run("--check", tmp_path / "there.safetensors")
    assert "projections: 1x1 convolutions" in capsys.readouterr().out


def test_two_files_are_needed(published):
    with pytest.raises(UserError, match="SRC and DST"):
        run(published[0])
