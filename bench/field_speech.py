"""Clients for sound: voice activity, turns, wake words, speech quality, pitch, music.

Each is the package's own class or the few lines of its own loop where importing it would pull in
what the model does not need.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from field_agreement import labels, notes, scores
from field_client import client, stub
from field_inputs import RATE, music, seeded, sentences, shipped, speaker, speech

Array = np.ndarray[Any, Any]
SILERO = "silero_vad/data/silero_vad"
MOS = "speechmos"


# --- voice activity ----------------------------------------------------------------------------


def silero_wrapper(path: str, part: str) -> list[Any]:
    """silero_vad.OnnxWrapper, frame by frame: is it speech (above one half)?"""
    import torch
    from silero_vad.utils_vad import OnnxWrapper

    model = OnnxWrapper(str(shipped(path)))
    found: list[Any] = []
    for clip in speech(part, 6, 10):
        found += (model.audio_forward(torch.from_numpy(clip), RATE)[0] > 0.5).tolist()
    return found


for _form in ("", "_16k_op15"):
    client(
        f"silero-vad{_form or '_16k_8k'}",
        "silero-vad torch",
        f"{SILERO}{_form}.onnx",
        "voice activity",
        labels,
    )(partial(silero_wrapper, f"{SILERO}{_form}.onnx"))


def silero_stream(path: str, part: str) -> list[Any]:
    """OnnxWrapper's loop for the forms that have no wrapper: 64 samples of context, a state."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(shipped(path)))
    takes = {i.name for i in session.get_inputs()}
    found: list[Any] = []
    for clip in speech(part, 6, 10):
        state, before = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32)
        for at in range(0, len(clip) - 511, 512):
            frame = np.concatenate([before, clip[at : at + 512]])[None]
            before = frame[0, -64:]
            feed = {"input": frame, "state": state, "sr": np.array(RATE, np.int64)}
            out, state = session.run(None, {k: v for k, v in feed.items() if k in takes})
            found.append(bool(out[0, 0] > 0.5))
    return found


for _form in ("_half", "_op18_ifless", "_openvino_16k"):
    client(
        f"silero-vad{_form}", "silero-vad torch", f"{SILERO}{_form}.onnx", "voice activity", labels
    )(partial(silero_stream, f"{SILERO}{_form}.onnx"))


@client(
    "silero-vad_16k_sequence",
    "silero-vad torch",
    f"{SILERO}_16k_sequence.onnx",
    "voice activity, whole clips",
    labels,
)
def silero_sequence(part: str) -> list[Any]:
    from silero_vad.sequence_vad import SileroVADSequence

    model = SileroVADSequence(str(shipped(f"{SILERO}_16k_sequence.onnx")))
    clips = speech(part, 24, 10)
    return [bool(p > 0.5) for clip in clips for p in model.audio_forward(clip, RATE)]


@client(
    "faster-whisper-vad",
    "faster-whisper",
    "faster_whisper/assets/silero_vad_v6.onnx",
    "voice activity, whole clips",
    labels,
)
def faster_whisper_vad(part: str) -> list[Any]:
    stub("ctranslate2", "av", "tokenizers", "huggingface_hub")
    from faster_whisper.vad import get_vad_model

    model = get_vad_model()
    found = []
    for clip in speech(part, 24, 8):
        found += [bool(p > 0.5) for p in np.ravel(model(clip[: len(clip) // 512 * 512]))]
    return found


@client(
    "openwakeword-vad",
    "openwakeword==0.4.0",
    "openwakeword/resources/models/silero_vad.onnx",
    "voice activity",
    labels,
)
def openwakeword_vad(part: str) -> list[Any]:
    from openwakeword.vad import VAD

    model, found = VAD(), []
    for clip in speech(part, 6, 10):
        model.reset_states()
        wave = (clip * 32767).astype(np.int16)
        steps = range(0, len(wave) - 479, 480)
        found += [bool(model.predict(wave[at : at + 480]) > 0.5) for at in steps]
    return found


@client(
    "pipecat-smart-turn",
    "pipecat-ai loguru pydantic soxr wait_for2",
    "pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx",
    "end of a speaker's turn",
    labels,
)
def smart_turn(part: str) -> list[Any]:
    from pipecat.audio.turn.smart_turn.local_smart_turn_v3 import LocalSmartTurnAnalyzerV3

    model = LocalSmartTurnAnalyzerV3()
    model.set_sample_rate(RATE)
    clips = []
    for k, clip in enumerate(speech(part, 60, 6)):
        clips.append(clip[: int(seeded(part, 6, k).uniform(0.4, 1) * len(clip))])
    return [model._predict_endpoint(c)["prediction"] for c in clips]


# --- wake words --------------------------------------------------------------------------------


def spoken_words(part: str, words: list[str], count: int) -> list[Array]:
    """16-bit clips of a wake word in a voice, a sentence after it."""
    import soxr

    clips = []
    for k in range(count):
        rng = seeded(part, 7, k)
        text = f"{rng.choice(words)}. {rng.choice(sentences('english', part))}"
        voice = str(rng.choice(["en", "en-us", "en-us+f3", "en+m3", "en-gb+f2"]))
        wave = speaker().say(text, voice, int(rng.integers(130, 200)), int(rng.integers(30, 75)))
        wave = soxr.resample(wave, speaker().rate, RATE) * rng.uniform(0.4, 1)
        noisy = wave + rng.uniform(0, 0.01) * rng.standard_normal(len(wave))
        clips.append((np.clip(noisy, -1, 1) * 32767).astype(np.int16))
    return clips


def wake_word(name: str, words: list[str], part: str) -> list[Any]:
    """openwakeword.Model over clips: the score of every 80 ms."""
    from openwakeword.model import Model

    model = Model([str(shipped(f"openwakeword/resources/models/{name}.onnx"))])
    found: list[Any] = []
    for clip in spoken_words(part, words, 16):
        found += [list(p.values()) for p in model.predict_clip(clip)]
    return found


WAKE_WORDS = {
    "alexa_v0.1": ["Alexa", "Alexa"],
    "hey_mycroft_v0.1": ["Hey Mycroft"],
    "hey_jarvis_v0.1": ["Hey Jarvis"],
    "timer_v0.1": ["Set a timer for ten minutes", "Set a five minute timer"],
    "weather_v0.1": ["What's the weather", "What is the weather in London"],
}
for _name, _words in WAKE_WORDS.items():
    client(
        f"openwakeword-{_name.split('_v')[0]}",
        "openwakeword==0.4.0",
        f"openwakeword/resources/models/{_name}.onnx",
        "wake word, scores within 0.1",
        scores(0.1),
    )(partial(wake_word, _name, _words))
for _name in ("melspectrogram", "embedding_model"):
    client(
        f"openwakeword-{_name}",
        "openwakeword==0.4.0",
        f"openwakeword/resources/models/{_name}.onnx",
        "features for wake words, scores within 0.1",
        scores(0.1),
    )(partial(wake_word, "hey_jarvis_v0.1", WAKE_WORDS["hey_jarvis_v0.1"]))


# --- speech quality: mean opinion scores from 1 to 5, within 0.1 ----------------------------------


def dnsmos(kind: str, part: str) -> list[Any]:
    from speechmos import dnsmos

    keys = ("ovrl_mos", "sig_mos", "bak_mos", "p808_mos")
    heard = (dnsmos.run(clip, RATE, kind) for clip in speech(part, 24, 9.2))
    return [[one[k] for k in keys] for one in heard]


for _name, _path, _kind in (
    ("dnsmos", "dnsmos_models/sig_bak_ovr", "dnsmos"),
    ("dnsmos-p808", "dnsmos_models/model_v8", "dnsmos"),
    ("dnsmos-personal", "pdnsmos_models/sig_bak_ovr", "dnsmos_personalized"),
):
    client(
        f"speechmos-{_name}", MOS, f"{MOS}/{_path}.onnx", "speech quality, within 0.1", scores(0.1)
    )(partial(dnsmos, _kind))


@client(
    "speechmos-plcmos",
    MOS,
    f"{MOS}/plcmos_models/plcmos_v2.onnx",
    "speech quality, within 0.1",
    scores(0.1),
)
def plcmos(part: str) -> list[Any]:
    """PLCMOS.get_mos as it stands, but for NumPy 2, which makes no float of a one-element list."""
    from speechmos.plcmos import PLCMOS

    model, rng, found = PLCMOS(), seeded(part, 8), []
    for clip in speech(part, 12, 6):
        features = np.float32(model.stft_transform(clip))[None, None]
        embeds = rng.standard_normal((model.embed_rounds, 1, 64)).astype(np.float32)
        feeds = [{"degraded_audio": features, "rater_embed": e} for e in embeds]
        found.append(float(np.mean([model.session.run(None, f)[0] for f in feeds])))
    return found


def aecmos(rate: int, talk: str | None, part: str) -> list[Any]:
    """A far speaker, the microphone with an echo of it, and that echo partly removed."""
    from speechmos import aecmos

    found = []
    far, near = speech(part, 24, 8, rate), speech(part, 48, 8, rate)[24:]
    for k, (there, here) in enumerate(zip(far, near, strict=True)):
        echo = np.roll(there, rate // 20) * seeded(part, 9, k).uniform(0.1, 0.6)
        left = echo * seeded(part, 10, k).uniform(0, 1)
        clips = {"lpb": there, "mic": here * 0.5 + echo, "enh": here * 0.5 + left}
        clips = {n: np.clip(c, -1, 1).astype(np.float32) for n, c in clips.items()}
        one = aecmos.run(clips, rate, talk)
        found.append([one["echo_mos"], one["deg_mos"]])
    return found


for _name, _path, _rate, _talk in (
    ("aecmos", "Run_1663829550_Stage_0", RATE, None),
    ("aecmos-16k", "Run_1663915512_Stage_0", RATE, "dt"),
    ("aecmos-48k", "Run_1668423760_Stage_0", 3 * RATE, "dt"),
):
    client(
        f"speechmos-{_name}",
        MOS,
        f"{MOS}/aecmos_models/{_path}.onnx",
        "echo cancelling quality, within 0.1",
        scores(0.1),
    )(partial(aecmos, _rate, _talk))


# --- pitch and music ---------------------------------------------------------------------------


@client("swift-f0", "swift-f0", "swift_f0/model.onnx", "pitch, voiced and its semitone", labels)
def swift_f0(part: str) -> list[Any]:
    from swift_f0 import SwiftF0

    found: list[Any] = []
    for clip in [*speech(part, 8, 8), *music(part, 4, 8, RATE)]:
        one = SwiftF0(threads=1).detect(clip, RATE)
        for hertz, sure in zip(one.pitch_hz, one.confidence, strict=True):
            found.append(round(12 * float(np.log2(hertz / 440))) if sure >= 0.5 else None)
    return found


@client(
    "basic-pitch",
    "basic-pitch importlib_resources mir_eval pretty_midi mido resampy",
    "basic_pitch/saved_models/icassp_2022/nmp.onnx",
    "music to notes",
    notes,
)
def basic_pitch(part: str) -> list[Any]:
    import soundfile
    from basic_pitch.inference import Model, predict

    model, found = Model(shipped("basic_pitch/saved_models/icassp_2022/nmp.onnx")), []
    with tempfile.TemporaryDirectory() as folder:
        for clip in music(part, 8, 8, 22050):
            path = Path(folder, "clip.wav")
            soundfile.write(path, clip, 22050)
            _, _, events = predict(path, model)
            found.append(sorted([float(s), float(e), int(p)] for s, e, p, *_ in events))
    return found
