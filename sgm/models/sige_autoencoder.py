"""The autoencoder with sparse encoder and decoder."""

from sgm.models.autoencoder import AutoencoderKL
from sgm.modules.diffusionmodules.sige_model import SIGEDecoder, SIGEEncoder


class SIGEAutoencoderKL(AutoencoderKL):
    """`AutoencoderKL` whose encoder and decoder each own a `SparseState`."""

    encoder_cls = SIGEEncoder
    decoder_cls = SIGEDecoder
