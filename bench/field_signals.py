"""Clients for brain signals: components of EEG and MEG, seizures, sleep spindles."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from field_agreement import labels
from field_client import client
from field_inputs import colored, seeded

Array = np.ndarray[Any, Any]
BRAINMAZE = "brainmaze_eeg_models"


def brain(rng: np.random.Generator, seconds: float, rate: int) -> Array:
    """One channel: coloured noise, alpha waves, spindles, blinks, spikes in bursts."""
    time = np.arange(int(seconds * rate)) / rate
    wave = 8 * colored(rng, len(time)) + rng.uniform(0, 12) * np.sin(
        2 * np.pi * (rng.uniform(8, 12) * time + np.cumsum(rng.standard_normal(len(time))) / rate)
    )
    for start in np.arange(rng.uniform(2, 6), seconds - 3, rng.uniform(4, 9)):
        near = np.exp(-(((time - start) / rng.uniform(0.25, 0.6)) ** 2))
        wave += near * rng.uniform(15, 60) * np.sin(2 * np.pi * rng.uniform(11, 15) * time)
    if rng.random() < 0.5:
        start = rng.uniform(0.2, 0.6) * seconds
        burst = (time > start) & (time < start + rng.uniform(20, 60))
        wave += burst * 80 * np.sign(np.sin(2 * np.pi * rng.uniform(2.5, 5) * time)) ** 3
    return np.asarray(wave)


@client(
    "iclabel",
    "mne-icalabel mne psutil",
    "mne_icalabel/iclabel/network/assets/ICLabelNet.onnx",
    "kind of an EEG component",
    labels,
)
def iclabel(part: str) -> list[Any]:
    """Recordings of mixed sources through ICA and ICLabel's own features."""
    import mne
    from mne_icalabel.iclabel import get_iclabel_features
    from mne_icalabel.iclabel.network import run_iclabel

    mne.set_log_level("ERROR")
    names = mne.channels.make_standard_montage("biosemi32").ch_names
    found: list[Any] = []
    for k in range(4):
        rng = seeded(part, 12, k)
        sources = np.stack([brain(rng, 40, 250) for _ in names])
        mixing = rng.standard_normal((len(names), len(names))) + 2 * np.eye(len(names))
        info = mne.create_info(names, 250, "eeg")
        raw = mne.io.RawArray(1e-6 * mixing @ sources, info)
        raw.set_montage("biosemi32").filter(1, 100).set_eeg_reference("average")
        ica = mne.preprocessing.ICA(
            20, method="infomax", fit_params={"extended": True}, max_iter=30, random_state=0
        ).fit(raw)
        for one in zip(
            *(np.moveaxis(f, -1, 0) for f in get_iclabel_features(raw, ica)), strict=True
        ):
            chance = run_iclabel(*(f[..., None] for f in one), backend="onnx")
            found.append(int(np.argmax(chance)))
    return found


@client(
    "megnet",
    "mne-icalabel mne psutil",
    "mne_icalabel/megnet/assets/megnet.onnx",
    "kind of a MEG component",
    labels,
)
def megnet(part: str) -> list[Any]:
    """megnet_label_components from its features on: maps of dipoles, time courses."""
    import onnxruntime
    from field_inputs import shipped
    from matplotlib import colormaps

    session = onnxruntime.InferenceSession(str(shipped("mne_icalabel/megnet/assets/megnet.onnx")))
    one, two = (i.name for i in session.get_inputs())
    rows, columns = np.mgrid[-1:1:120j, -1:1:120j]
    found = []
    for k in range(60):
        rng = seeded(part, 13, k)
        field = np.zeros((120, 120))
        for _ in range(int(rng.integers(1, 4))):
            y, x, width = *rng.uniform(-0.8, 0.8, 2), rng.uniform(0.1, 0.5)
            field += rng.choice([-1, 1]) * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / width)
        scaled = (field - field.min()) / np.ptp(field)
        picture = 255 * colormaps["RdBu_r"](scaled)[..., :3]
        picture[rows**2 + columns**2 > 1] = 255
        course = brain(rng, 60, 250)
        if k % 3 == 0:  # a heart, a beat a second
            course = 60 * np.exp(-((((np.arange(15000) / 250) % 0.9) - 0.3) ** 2) * 2000)
        course = (course - course.mean()) / course.std()
        feed = {one: picture[None], two: course[None, :, None]}
        feed = {k: v.astype(np.float32) for k, v in feed.items()}
        found.append(int(np.argmax(session.run(None, feed)[0])))
    return found


def seizure(model: str, part: str) -> list[Any]:
    from brainmaze_eeg_models.seizure import infer_seizure_probability, preprocess_input

    found: list[Any] = []
    for k in range(24):
        window = brain(seeded(part, 14, k), 120, 250)
        chance = infer_seizure_probability(preprocess_input(window[None], 250), model=model)
        found += (np.asarray(chance).ravel()[::4] > 0.5).tolist()
    return found


for _name, _file in (("modelA", "modelA_paper"), ("modelB", "modelB_full")):
    client(
        f"seizures-{_name}",
        "brainmaze-eeg-models brainmaze-utils",
        f"{BRAINMAZE}/seizure/_models/{_file}.onnx",
        "seizures, every two seconds",
        labels,
    )(partial(seizure, _name))


def spindles(model: str, part: str) -> list[Any]:
    """Is there a spindle in each tenth of a second?"""
    from brainmaze_eeg_models.spindles import SpindleDetector

    detector = SpindleDetector(model, threads=1)
    found: list[Any] = []
    for k in range(10):
        wave = brain(seeded(part, 15, k), 90, 250)
        marks = np.zeros(900, bool)
        for start, end, *_ in detector.detect(wave, 250).channel_intervals(0):
            marks[int(start * 10) : int(end * 10) + 1] = True
        found += marks.tolist()
    return found


for _name in ("eeg", "ieeg"):
    client(
        f"spindles-{_name}",
        "brainmaze-eeg-models brainmaze-utils",
        f"{BRAINMAZE}/spindles/_models/spindle-detector-{_name}.onnx",
        "sleep spindles",
        labels,
    )(partial(spindles, _name))
