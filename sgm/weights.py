"""Which files the weights of one model come from, and what a person says about them."""

from dataclasses import dataclass
from pathlib import Path

from sgm.specs import RunOptions
from sgm.words import Prediction


@dataclass(frozen=True, order=True)
class Lora:
    """A LoRA to merge.

    Attributes:
        path: a `.safetensors` file, in kohya's names or those of diffusers and peft.
        weight: what its changes are multiplied by; negative ones take it away.
    """

    path: Path
    weight: float = 1.0


@dataclass(frozen=True)
class Weights:
    """The files of one model.

    Attributes:
        checkpoint: a `.safetensors` file in the published layout, or a folder as diffusers saves
            it (`unet/`, `vae/`, `text_encoder/`, `text_encoder_2/`).
        vae: a file with another autoencoder than the checkpoint's; None for its own.
        loras: merged into the weights as they are loaded, in an order that does not matter.
        prediction: what the network predicts; None for what the files say.
    """

    checkpoint: Path
    vae: Path | None = None
    loras: tuple[Lora, ...] = ()
    prediction: Prediction | None = None

    @property
    def files(self) -> list[Path]:
        """The checkpoint, the VAE and the LoRAs, as far as they are given."""
        vae = [] if self.vae is None else [self.vae]
        return [self.checkpoint, *vae, *(lora.path for lora in self.loras)]


def weights_of(options: RunOptions, refiner: bool = False) -> Weights:
    """The files of a run's base or turbo model, or of its refiner."""
    role = "refiner" if refiner else options.spec.weight_role(options.run_type)
    given = options.refiner_checkpoint if refiner else options.checkpoint
    checkpoint = given or options.weight_path / options.spec.weights[role]
    if refiner:
        return Weights(checkpoint, options.vae)
    loras = tuple(Lora(path, weight) for path, weight in options.loras)
    return Weights(checkpoint, options.vae, loras, options.prediction)
