"""Networks of the diffusion model and their conditioning."""

from sgm.modules.encoders.conditioner import GeneralConditioner

__all__ = ["GeneralConditioner"]
