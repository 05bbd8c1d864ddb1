"""The autoencoder of preset `fast`."""

from sgm.models.autoencoder import AutoencoderKL
from sgm.modules.diffusionmodules.fast_model import FastDecoder, FastEncoder


class FastAutoencoderKL(AutoencoderKL):
    """`AutoencoderKL` whose encoder and decoder run on active pixels."""

    encoder_cls = FastEncoder
    decoder_cls = FastDecoder
