"""Resumable training state in safetensors: weights, moving average, optimiser moments, step."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


class Ema:
    """Exponential moving average of a module's parameters, with a short warm-up."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = {k: v.detach() for k, v in module.named_parameters()}
        self.values = {k: v.clone() for k, v in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(self.values.values()), list(self.live.values()), 1 - decay)


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")  # others may be at the same file
    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, dict(metadata))
    os.replace(temporary, path)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118


def part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors under `name.`, without that prefix."""
    return {k[len(name) + 1 :]: v for k, v in tensors.items() if k.startswith(f"{name}.")}


class TrainingState:
    """Module, its average and its optimiser, saved and resumed as one file, with how many steps
    and seconds have gone into them."""

    def __init__(
        self, path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema
    ) -> None:
        self.path, self.module, self.optimizer, self.ema = path, module, optimizer, ema
        self.step, self.seconds = 0, 0.0

    def save(self) -> None:
        tensors = {f"model.{k}": v for k, v in self.module.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.values.items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{k}": v for k, v in values.items()}
        spent = {"step": str(self.step), "seconds": f"{self.seconds:.1f}"}
        write(self.path, tensors, spent)

    def resume(self) -> None:
        """Load the last state, if there is one."""
        if not self.path.exists():
            return
        tensors, metadata = read(self.path)
        self.module.load_state_dict(part(tensors, "model"))
        for name, value in part(tensors, "ema").items():
            self.ema.values[name].copy_(value)
        state: dict[int, dict[str, Tensor]] = {}
        parameters = self.optimizer.param_groups[0]["params"]
        for key, value in part(tensors, "adam").items():
            index, name = key.split(".")
            parameter = parameters[int(index)]
            if value.ndim:  # a moment, laid out as its parameter is: the fused optimiser needs it
                value = torch.empty_like(parameter).copy_(value)
            state.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.step, self.seconds = int(metadata["step"]), float(metadata["seconds"])
