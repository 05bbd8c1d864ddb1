"""The recordings of a session brought up to date: with an accepted edit, and for another prompt."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sgm.inference.interpolate import combine
from sgm.inference.networks import recording, use_kept
from sgm.inference.progress import NanCheck, each
from sgm.inference.region import REGION
from sgm.inference.track import DECODER, ENCODER, LATENTS, Track
from sgm.sparse.masks import cover
from sgm.sparse.recording import narrow, room_for
from sgm.sparse.sparsify import handle_of
from sgm.specs import SamplingParams

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
        """Bring the recording in use up to date by a sparse pass that writes into it, and keep it;
        what the pass returns."""
        handle = handle_of(network)
        with handle.sparse(masks, update=True):
            out = run()
        store.put(name, narrow(handle.record, recipe.recorded.dtype))
        return out

    if ENCODER in names:
        unedited = partial(networks.posterior, session.picture)
        use_kept(networks.encoder, store.get(ENCODER), masks, unedited)
        z = update(ENCODER, networks.encoder, encode)
    else:
        z = encode()
    use_kept(networks.decoder, store.get(DECODER), masks, partial(networks.decode, session.z))
    latent_mask = masks[z.shape[2], z.shape[3]].to(z.device)
    session.z = torch.where(latent_mask, z, session.z)
    update(DECODER, networks.decoder, partial(networks.decode, session.z))
    denoise = session.denoiser(session.params)
    updated = {ENCODER, DECODER, LATENTS, REGION}
    for track in session.tracks.values():
        if region is not None and not region.holds(changed, track.name):
            continue
        updated |= {track.name_of_latents, *map(track.name_of, track.made)}
        along = track.unedited(session.z, session.noise, denoise, session.solver)
        for step in each(track.made, "updating", session.progress):
            handle_of(networks.unet).use(store.get(track.name_of(step)))
            update(track.name_of(step), networks.unet, partial(along.full_pass, step))
        store.put(track.name_of_latents, track.kept_latents(along))
    session.put_latents()
    for name in names - updated:
        store.forget(name)


def names_of_prompt(session: "EditSession", track: Track, params: SamplingParams) -> dict[int, str]:
    """Store keys of what the prompt of an edit changes, by step; they are there afterwards. Inside
    the session's scope."""
    words = (params.prompt, params.negative_prompt)
    if words == (session.params.prompt, session.params.negative_prompt):
        return {}
    names = {step: track.name_of_prompt(*words, step) for step in track.steps_of_prompt()}
    if not session.store.names().issuperset(names.values()):
        _record_prompt(session, track, params, names)
    return names


def _record_prompt(
    session: "EditSession", track: Track, params: SamplingParams, names: dict[int, str]
) -> None:
    """Keep what a prompt changes in some recordings of a track, under names by step.

    Most of what is recorded depends a little on the prompt, the moments of the group norms most. So
    a few full passes are made under the new prompt, and what they leave differently is added to the
    recordings of all steps, interpolated as they are.
    """
    networks, store, region = session.networks, session.store, session.region
    denoise, watch = session.denoiser(params), NanCheck(networks.device)
    latents = track.latents_of(store.get(track.name_of_latents))
    unedited = latents or track.unedited(session.z, session.noise, denoise, session.solver)
    for step in each(list(names), "recording", session.progress):
        x = unedited.latents(step)
        assert x is not None  # it was recorded there
        with recording(networks.unet) as found:
            watch(step, denoise(x, track.sigmas[step].to(x.device).expand(len(x))))
        if region is not None:  # elsewhere the store has zeros, so nothing has changed
            found = region.only_read(names[step], found)
        both = [found, store.get(track.name_of(step))]
        difference = combine(both, [1.0, -1.0], room_for(found))
        store.put(names[step], narrow(difference, track.recorded.dtype))
    watch.check(session.pipeline.precision)
