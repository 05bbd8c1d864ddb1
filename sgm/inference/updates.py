"""The recordings of a picture brought up to date: with an accepted edit, and for another prompt."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from sgm.inference.interpolate import combine
from sgm.inference.networks import recording, use_kept
from sgm.inference.progress import NanCheck, Progress, each
from sgm.inference.recordings import Recordings
from sgm.inference.region import REGION
from sgm.inference.track import DECODER, ENCODER, LATENTS, Track
from sgm.sparse.masks import cover
from sgm.sparse.recording import narrow, room_for
from sgm.sparse.sparsify import handle_of
from sgm.specs import SamplingParams


def bring_up_to_date(
    recordings: Recordings, picture: Tensor, changed: Tensor, progress: Progress
) -> None:
    """Bring the recordings that were used up to date by sparse passes, and forget the others;
    inside their scope.

    Args:
        picture: the picture from now on, [3, H, W] in [-1, 1].
        changed: where it differs from the one before, bool [H, W].
    """
    networks, store, region = recordings.networks, recordings.store, recordings.region
    names, recipe = store.names(), recordings.pipeline.recipe
    masks = cover(recipe.inpainting(changed), changed)

    def encode() -> Tensor:
        return networks.encode(picture, recordings.noise, "init")

    def update(name: str, network: nn.Module, run: Callable[[], Tensor]) -> Tensor:
        """Bring the recording in use up to date by a sparse pass that writes into it, and keep it;
        what the pass returns."""
        handle = handle_of(network)
        with handle.sparse(masks, update=True):
            out = run()
        store.put(name, narrow(handle.record, recipe.recorded.dtype))
        return out

    if ENCODER in names:
        unedited = partial(networks.posterior, recordings.picture)
        use_kept(networks.encoder, store.get(ENCODER), masks, unedited)
        z = update(ENCODER, networks.encoder, encode)
    else:
        z = encode()
    use_kept(networks.decoder, store.get(DECODER), masks, partial(networks.decode, recordings.z))
    latent_mask = masks[z.shape[2], z.shape[3]].to(z.device)
    recordings.z = torch.where(latent_mask, z, recordings.z)
    update(DECODER, networks.decoder, partial(networks.decode, recordings.z))
    updated = {ENCODER, DECODER, LATENTS, REGION}
    for track in recordings.tracks.values():
        if region is not None and not region.holds(changed, track.name):
            continue
        updated |= {track.name_of_latents, *map(track.name_of, track.made)}
        denoise = recordings.denoiser(recordings.params, track)
        along = track.unedited(recordings.z, recordings.noise, denoise, recordings.solver)
        for step in each(track.made, "updating", progress):
            handle_of(networks.unet).use(store.get(track.name_of(step)))
            update(track.name_of(step), networks.unet, partial(along.full_pass, step))
        store.put(track.name_of_latents, track.kept_latents(along))
    recordings.put_latents()
    recordings.picture = picture
    for name in names - updated:
        store.forget(name)


def names_of_prompt(
    recordings: Recordings, track: Track, params: SamplingParams, progress: Progress
) -> dict[int, str]:
    """Store keys of what the prompt of an edit changes in some recordings of a track, by step; none
    for the base prompt. What is not there yet is recorded; inside the scope of the recordings.

    Most of what is recorded depends a little on the prompt, the moments of the group norms most. So
    a few full passes are made under the new prompt. The differences between their recordings and
    those of the base prompt are kept, interpolated to all steps, and added to the recordings there.
    """
    networks, store, base = recordings.networks, recordings.store, recordings.params
    words = (params.prompt, params.negative_prompt)
    if words == (base.prompt, base.negative_prompt):
        return {}
    names = {step: track.name_of_prompt(*words, step) for step in track.steps_of_prompt()}
    if store.names().issuperset(names.values()):
        return names
    denoise, watch = recordings.denoiser(params, track), NanCheck(networks.device)
    latents = track.latents_of(store.get(track.name_of_latents))
    unedited = latents or track.unedited(recordings.z, recordings.noise, denoise, recordings.solver)
    for step in each(list(names), "recording", progress):
        x = unedited.latents(step)
        assert x is not None  # it was recorded there
        with recording(networks.unet) as found:
            watch(step, denoise(x, track.sigmas[step].to(x.device).expand(len(x))))
        if recordings.region is not None:  # elsewhere the store has zeros, so nothing has changed
            found = recordings.region.only_read(names[step], found)
        both = [found, store.get(track.name_of(step))]
        difference = combine(both, [1.0, -1.0], room_for(found))
        store.put(names[step], narrow(difference, track.recorded.dtype))
    watch.check(recordings.pipeline.precision)
    return names
