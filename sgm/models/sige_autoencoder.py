"""The published name of the autoencoder in sparse networks."""

from sgm.models.autoencoder import AutoencoderKL


class SIGEAutoencoderKL(AutoencoderKL):
    """`AutoencoderKL` under the name by which published YAML files ask for sparse blocks; which
    these are is said when its encoder and decoder are made sparse (`sgm.sparse.sparsify`)."""
