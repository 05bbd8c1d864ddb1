"""The published name of the UNet in sparse networks."""

from sgm.modules.diffusionmodules.openaimodel import UNetModel


class SIGEUNetModel(UNetModel):
    """`UNetModel` under the name by which published YAML files ask for sparse blocks
    (`sgm.sparse.rules.published`)."""
