"""Backends: one file each, all with the operators of `torch_ref.TorchOps`."""
