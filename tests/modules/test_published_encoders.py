"""Token ids and text towers against the libraries that published them, where these import.

Small towers with random weights; nothing is downloaded. transformers has the names of CLIP for
both towers, so OpenCLIP's weights are renamed for it. open_clip itself needs a torchvision of the
same build as torch.
"""

import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sgm.modules.encoders import tokenizer
from sgm.modules.encoders.modules import FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder2
from tests.conftest import max_error, oracle, tiny_weights

TOLERANCE = 1e-5
PROMPTS = [
    "a photograph of a horse on a grassland",
    "",
    "THE  quick\nbrown fox: don't stop!!! 1234 & $3.99 <ok>",
    "caf\u00e9 na\u00efve, \u6771\u4eac \U0001f98a",
    "a lighthouse on a rocky island, " * 12,
]
CLIP_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
OPEN_CLIP_SIZES = {"width": 32, "heads": 4, "layers": 3, "embed_dim": 24}
# OpenCLIP's names of a block in transformers' words.
BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def filled(module: nn.Module) -> dict[str, Tensor]:
    """Gives a module random weights of ordinary size; returns them."""
    weights = tiny_weights({name: list(t.shape) for name, t in module.state_dict().items()})
    module.load_state_dict(weights)
    return weights


def transformers_tower(sizes: Mapping[str, int], act: str, weights: dict[str, Tensor]) -> nn.Module:
    """transformers' text model with a projection, which it needs and CLIP's side leaves unused."""
    transformers = oracle("transformers")
    config = transformers.CLIPTextConfig(
        vocab_size=tokenizer.VOCABULARY_SIZE,
        bos_token_id=tokenizer.START_TOKEN,
        eos_token_id=tokenizer.END_TOKEN,
        hidden_act=act,
        **sizes,
    )
    model = transformers.CLIPTextModelWithProjection(config).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert {name for name in missing if not name.endswith("position_ids")} <= {
        "text_projection.weight"
    }
    return model


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's weights under the names of CLIP: queries, keys and values apart."""
    result = {
        "text_model.embeddings.token_embedding.weight": weights["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": weights["positional_embedding"],
        "text_projection.weight": weights["text_projection"].T,
    }
    for name, tensor in weights.items():
        *start, kind = name.split(".")
        if start[:1] == ["ln_final"]:
            result[f"text_model.final_layer_norm.{kind}"] = tensor
        if start[:1] != ["transformer"]:
            continue
        block = f"text_model.encoder.layers.{start[2]}"
        if kind.startswith("in_proj_"):
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                result[f"{block}.self_attn.{letter}_proj.{kind.removeprefix('in_proj_')}"] = third
        else:
            result[f"{block}.{BLOCK['.'.join(start[3:])]}.{kind}"] = tensor
    return result


def test_tokens_equal_those_of_transformers(tmp_path):
    transformers = oracle("transformers")
    ours = tokenizer.load_tokenizer()
    words = {"<|startoftext|>": tokenizer.START_TOKEN, "<|endoftext|>": tokenizer.END_TOKEN}
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in ours._rank)])
    (tmp_path / "vocab.json").write_text(json.dumps(ours._ids | words))
    (tmp_path / "merges.txt").write_text(merges)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    ids = theirs(PROMPTS, padding="max_length", max_length=77, truncation=True)["input_ids"]
    assert tokenizer.tokenize(PROMPTS, tokenizer.END_TOKEN).tolist() == ids


@torch.inference_mode()
def test_clip_equals_transformers():
    ours = FrozenCLIPEmbedder(layer="hidden", layer_idx=2, tower=CLIP_SIZES)
    weights = filled(ours)
    names = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    theirs = transformers_tower(CLIP_SIZES, "quick_gelu", names)
    tokens = tokenizer.tokenize(PROMPTS, tokenizer.END_TOKEN)
    hidden = theirs(tokens, output_hidden_states=True).hidden_states
    assert max_error(ours(PROMPTS), hidden[2]) < TOLERANCE


@torch.inference_mode()
def test_open_clip_equals_transformers():
    ours = FrozenOpenCLIPEmbedder2(tower=OPEN_CLIP_SIZES)
    filled(ours)
    sizes = {
        "hidden_size": OPEN_CLIP_SIZES["width"],
        "intermediate_size": 4 * OPEN_CLIP_SIZES["width"],
        "num_hidden_layers": OPEN_CLIP_SIZES["layers"],
        "num_attention_heads": OPEN_CLIP_SIZES["heads"],
        "projection_dim": OPEN_CLIP_SIZES["embed_dim"],
    }
    theirs = transformers_tower(sizes, "gelu", renamed(ours.model.state_dict()))
    wanted = theirs(tokenizer.tokenize(PROMPTS, 0), output_hidden_states=True)
    hidden, pooled = ours(PROMPTS)
    assert max_error(hidden, wanted.hidden_states[-2]) < TOLERANCE
    assert max_error(pooled, wanted.text_embeds) < TOLERANCE


@torch.inference_mode()
def test_open_clip_equals_open_clip():
    open_clip = oracle("open_clip")
    tokens = open_clip.tokenizer.SimpleTokenizer()(PROMPTS)
    assert torch.equal(tokenizer.tokenize(PROMPTS, 0), tokens)
    ours = FrozenOpenCLIPEmbedder2(tower=OPEN_CLIP_SIZES)
    filled(ours)
    sizes = dict(OPEN_CLIP_SIZES)
    theirs = open_clip.transformer.TextTransformer(output_dim=sizes.pop("embed_dim"), **sizes)
    weights = ours.model.state_dict()
    weights.pop("logit_scale")  # lies beside the tower there
    theirs.eval().load_state_dict(weights)
    assert max_error(ours(PROMPTS)[1], theirs(tokens)) < TOLERANCE
