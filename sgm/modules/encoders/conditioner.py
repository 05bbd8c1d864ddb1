"""The conditioner of SDXL: everything the network is told besides the noisy latent."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sgm.config import ConfigError, instantiate_from_config

Batch = Mapping[str, Tensor | Sequence[str]]

_ENTRY_KEYS = ("target", "params", "input_key", "is_trainable")
# An embedding's number of axes says where it goes; both are joined along their last axis.
_DESTINATION = {2: "vector", 3: "crossattn"}


class GeneralConditioner(nn.Module):
    """Runs a list of embedders and joins what they return, in their order.

    Args:
        emb_models: one mapping per embedder: `target` and `params` (which class, built how),
            `input_key` (which entry of the batch it reads), `is_trainable` (default False; decides
            whether its parameters need gradients and overrides an embedder's own `freeze`).

    Raises:
        ConfigError: an entry lacks `target` or `input_key`, or has a key that is not listed here.
    """

    def __init__(self, emb_models: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self.input_keys: list[str] = []
        self.embedders = nn.ModuleList()
        for number, entry in enumerate(emb_models):
            unknown = [key for key in entry if key not in _ENTRY_KEYS]
            missing = [key for key in ("target", "input_key") if key not in entry]
            if unknown or missing:
                raise ConfigError(
                    f"emb_models[{number}]: unknown keys {unknown}, missing keys {missing}; "
                    f"known are {list(_ENTRY_KEYS)}"
                )
            recipe = {"target": entry["target"], "params": entry.get("params") or {}}
            embedder: nn.Module = instantiate_from_config(recipe)
            trainable = bool(entry.get("is_trainable", False))
            self.embedders.append(embedder.requires_grad_(trainable).train(trainable))
            self.input_keys.append(entry["input_key"])

    def forward(self, batch: Batch, force_zero_embeddings: Sequence[str] = ()) -> dict[str, Tensor]:
        """The conditioning of a batch of B pictures.

        Args:
            batch: by input key, B prompts or numbers [B] or [B, n] (sizes as height, width), the
                latter on the device of the text towers. Entries no embedder reads are ignored.
            force_zero_embeddings: input keys whose embeddings are replaced by zeros, as SDXL's base
                model does with "txt" in the unconditional branch of guidance.

        Returns:
            `crossattn` [B, 77 n, C], text states of n chunks joined along channels;
            `vector` [B, V], pooled text and embedded numbers, float32 as these are.

        Raises:
            ValueError: the batch lacks an input key, its entries differ in B, or a key to be zeroed
                is read by no embedder.
        """
        unknown = [key for key in force_zero_embeddings if key not in self.input_keys]
        if unknown:
            raise ValueError(f"no embedder reads {unknown}; known keys are {self.input_keys}")
        self._check_batch(batch)
        parts: dict[str, list[Tensor]] = {}
        for key, embedder in zip(self.input_keys, self.embedders, strict=True):
            result = embedder(batch[key])
            for embedding in [result] if isinstance(result, Tensor) else result:
                if key in force_zero_embeddings:
                    embedding = torch.zeros_like(embedding)
                parts.setdefault(_DESTINATION[embedding.ndim], []).append(embedding)
        return {name: torch.cat(group, dim=-1) for name, group in parts.items()}

    def _check_batch(self, batch: Batch) -> None:
        missing = sorted({key for key in self.input_keys if key not in batch})
        if missing:
            raise ValueError(f"the batch lacks {missing}; it has {sorted(batch)}")
        sizes = {key: len(batch[key]) for key in self.input_keys}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"the batch's entries differ in batch size: {sizes}")
