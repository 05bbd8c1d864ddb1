"""The table of names between published files and diffusers folders, on the full published lists."""

import gzip
import json
from collections import Counter

import pytest
import torch

from sgm.io.names import COMPONENTS, diffusers_places, older_vae_name
from tests.conftest import SHARED
from tests.diffusers_here import diffusers_or_skip

UNUSED = ("position_ids", "logit_scale")
FULL = {
    "base": {"blocks": (320, 640, 1280), "depths": (1, 2, 10), "text": 2048, "pooled": 2816},
    "refiner": {"blocks": (384, 768, 1536, 1536), "depths": 4, "text": 1280, "pooled": 2560},
}


def published(family: str) -> dict[str, list[int]]:
    path = SHARED / "golden" / f"checkpoint_sd_xl_{family}_1.0.json.gz"
    if not path.is_file():
        pytest.skip(f"golden reference data not found at {path} (set SDXL_SIGE_SHARED)")
    entries = json.loads(gzip.decompress(path.read_bytes()))
    return {name: entry["shape"] for name, entry in entries.items()}


@pytest.mark.parametrize(("family", "count"), [("base", 2515), ("refiner", 1858)])
def test_every_published_name_has_one_place(family: str, count: int) -> None:
    names = published(family)
    places = diffusers_places(names)
    assert len(names) == count
    assert set(names) - set(places) == {name for name in names if name.endswith(UNUSED)}
    # And back: no two names share a place.
    taken = Counter((place.component, name) for place in places.values() for name in place.names)
    assert max(taken.values()) == 1
    assert {place.component for place in places.values()} <= set(COMPONENTS)


@pytest.mark.parametrize("family", ["base", "refiner"])
def test_the_places_are_those_of_diffusers(family: str) -> None:
    """Its networks, built without memory, have these names and shapes and no others."""
    diffusers, transformers = diffusers_or_skip("transformers")
    full, shapes = FULL[family], published(family)
    blocks = full["blocks"]
    attends = [family == "base" or 0 < n < 3 for n in range(len(blocks))]
    attends[0] = False
    kinds = [("CrossAttn" if a else "") + "DownBlock2D" for a in attends]
    towers = {"text_encoder": (768, 3072, 12, 12), "text_encoder_2": (1280, 5120, 32, 20)}
    with torch.device("meta"):
        networks = {
            "unet": diffusers.UNet2DConditionModel(
                block_out_channels=blocks,
                down_block_types=kinds,
                up_block_types=[kind.replace("Down", "Up") for kind in kinds[::-1]],
                transformer_layers_per_block=full["depths"],
                cross_attention_dim=full["text"],
                attention_head_dim=[width // 64 for width in blocks],
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=full["pooled"],
            ),
            "vae": diffusers.AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                latent_channels=4,
            ),
        }
        for name, (width, inner, layers, heads) in towers.items():
            kind = "CLIPTextModel" + "WithProjection" * (name == "text_encoder_2")
            config = transformers.CLIPTextConfig(
                hidden_size=width,
                intermediate_size=inner,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                projection_dim=width,
            )
            networks[name] = getattr(transformers, kind)(config)
    if family == "refiner":
        del networks["text_encoder"]
    places = diffusers_places(shapes)
    for component, network in networks.items():
        theirs = {name: list(t.shape) for name, t in network.state_dict().items()}
        ours = {n: p for n, p in places.items() if p.component == component}
        stored = {name for place in ours.values() for name in place.names}
        # transformers 5 names CLIP's tower without the first word, in memory.
        assert stored == set(theirs) or {n.removeprefix("text_model.") for n in stored} == set(
            theirs
        )
        for name, place in ours.items():
            shape = shapes[name][::-1] if place.transposed else shapes[name]
            found = [theirs.get(n) or theirs[n.removeprefix("text_model.")] for n in place.names]
            rows = sum(x[0] for x in found)
            # The attention of the autoencoder is linear there, in 1x1 convolutions here.
            assert [rows, *found[0][1:]] == shape[: len(found[0])], name
            assert set(shape[len(found[0]) :]) <= {1}, name


def test_the_names_of_2022() -> None:
    new = "decoder.mid_block.attentions.0.to_out.0.weight"
    assert older_vae_name(new) == "decoder.mid_block.attentions.0.proj_attn.weight"
    assert older_vae_name("decoder.conv_in.bias") == "decoder.conv_in.bias"
