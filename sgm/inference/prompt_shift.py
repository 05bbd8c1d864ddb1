"""What another prompt changes in the recordings of a picture.

Most of what is recorded depends a little on the prompt, the moments of the group norms most. So for
a new prompt a few full passes are made, and what they leave differently from the base prompt's is
added to the recordings of all steps, interpolated as they are.
"""

import torch
from torch import Tensor

from sgm.inference.interpolate import combine
from sgm.inference.nan_check import NanCheck
from sgm.inference.networks import recording
from sgm.inference.progress import Progress, each
from sgm.inference.region import Region
from sgm.inference.stores import Store
from sgm.inference.track import Track
from sgm.inference.unedited import Unedited
from sgm.modules.diffusionmodules.sampling import Denoise
from sgm.sparse.recording import narrow, room_for


def record_shift(
    track: Track,
    names: dict[int, str],
    store: Store,
    unet: torch.nn.Module,
    unedited: Unedited,
    denoise: Denoise,
    watch: NanCheck,
    region: Region | None,
    progress: Progress = False,
) -> None:
    """Keep what a prompt changes in some recordings of a track.

    Args:
        names: by step, under which the differences are kept.
        store: holds the recordings of these steps, and gets the differences.
        unet: sparse.
        unedited: the latents that were recorded.
        denoise: under the new prompt.
        watch: sees every estimate.
        region: what the store has recorded; None for the whole picture.
        progress: show a bar on stderr, or what to call after every pass.
    """
    for step in each(list(names), "recording", progress):
        x = unedited.latents(step)
        assert isinstance(x, Tensor)  # it was recorded there
        with recording(unet) as found:
            watch(step, denoise(x, track.sigmas[step].to(x.device).expand(len(x))))
        if region is not None:  # elsewhere the store has zeros, so nothing has changed
            found = region.only_read(names[step], found)
        both = [found, store.get(track.name_of(step))]
        difference = combine(both, [1.0, -1.0], room_for(found))
        store.put(names[step], narrow(difference, track.recorded.dtype))
