"""An edit made the picture that further edits start from: recordings brought up to date."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sgm.inference.networks import sparse
from sgm.inference.progress import each
from sgm.inference.region import REGION
from sgm.inference.track import DECODER, ENCODER, LATENTS
from sgm.sparse.masks import MaskPyramid, cover
from sgm.sparse.recording import narrow
from sgm.sparse.sparsify import handle_of

if TYPE_CHECKING:
    from sgm.inference.session import EditSession


def bring_up_to_date(session: "EditSession", picture: Tensor, changed: Tensor) -> None:
    """Bring the recordings that a session has used up to date by sparse passes, and forget the
    others; inside its scope.

    Args:
        picture: what it shows from now on, [3, H, W] in [-1, 1].
        changed: where that differs from what it was, bool [H, W].
    """
    networks, store, region = session.networks, session.store, session.region
    names, recipe = store.names(), session.pipeline.recipe
    masks = cover(recipe.inpainting(changed), changed)

    def encode() -> Tensor:
        return networks.encode(picture, session.noise, "init")

    def update(name: str, network: nn.Module, run: Callable[[], Tensor]) -> Tensor:
        return _updated(session, name, network, masks, run)

    z = update(ENCODER, networks.encoder, encode) if ENCODER in names else encode()
    latent_mask = masks[z.shape[2], z.shape[3]].to(z.device)
    session.z = torch.where(latent_mask, z, session.z)
    update(DECODER, networks.decoder, lambda: networks.decode(session.z))
    denoise = session.denoiser(session.params)
    updated = {ENCODER, DECODER, LATENTS, REGION}
    for track in session.tracks.values():
        if region is not None and not region.holds(changed, track.name):
            continue
        updated |= {track.name_of_latents, *map(track.name_of, track.made)}
        unedited = track.unedited(session.z, session.noise, denoise, session.solver)
        for step in each(track.made, "updating", session.progress):
            update(track.name_of(step), networks.unet, partial(unedited.full_pass, step))
        store.put(track.name_of_latents, track.kept_latents(unedited))
    session.put_latents()
    for name in names - updated:
        store.forget(name)


def _updated(
    session: "EditSession",
    name: str,
    network: nn.Module,
    masks: MaskPyramid,
    run: Callable[[], Tensor],
) -> Tensor:
    """Bring one kept recording up to date by a sparse pass that writes into it; what the pass
    returns."""
    handle_of(network).use(session.store.get(name))
    with sparse(network, masks, update=True):
        out = run()
    dtype = session.pipeline.recipe.recorded.dtype
    session.store.put(name, narrow(handle_of(network).record, dtype))
    return out
