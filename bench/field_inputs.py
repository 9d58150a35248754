"""Inputs for clients, made or taken from what packages ship: speech, music, pictures, text, files.

Every generator takes the part, "calibration" or "held": the two share no seed, sentence or file.
"""

from __future__ import annotations

import ctypes
import functools
import io
import os
import sys
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
RATE = 16000
PARTS = ("calibration", "held")
SENTENCES = Path(__file__).with_name("field_sentences.txt")


def seeded(part: str, *more: int) -> np.random.Generator:
    return np.random.default_rng([PARTS.index(part), *more])


@functools.cache
def sentences(language: str, part: str) -> list[str]:
    """The file's sentences of a language: of every three the last is held out."""
    lines = SENTENCES.read_text("utf-8").split(f"[{language}]\n")[1].split("\n[")[0].splitlines()
    lines = [one for one in lines if one]
    return [one for k, one in enumerate(lines) if (k % 3 == 2) == (part == "held")]


def mixed(language: str, part: str, count: int) -> list[str]:
    """The sentences, and `count` more put together from their pieces."""
    whole = sentences(language, part)
    words = [w for one in whole for w in one.split()]
    rng = seeded(part, len(words))
    return whole + [
        " ".join(rng.choice(words, int(rng.integers(2, min(9, len(words)))), replace=False))
        for _ in range(count)
    ]


# --- sound -------------------------------------------------------------------------------------


class Speaker:
    """espeak-ng, from the package espeakng-loader: text to 22050 Hz speech."""

    def __init__(self) -> None:
        import espeakng_loader

        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = str(espeakng_loader.get_data_path()).encode()
        self.rate = self.library.espeak_Initialize(2, 0, data, 0)  # 2: synchronous, to a callback
        self.heard: list[Array] = []
        kind = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )

        def hear(wave: Any, count: int, _events: Any) -> int:
            if wave and count:
                self.heard.append(np.ctypeslib.as_array(wave, (count,)).copy())
            return 0

        self.callback = kind(hear)  # kept, or it is collected while the library still calls it
        self.library.espeak_SetSynthCallback(self.callback)

    def say(self, text: str, voice: str, speed: int, pitch: int) -> Array:
        """The speech, kept beside the environment: espeak-ng's breath is never twice the same."""
        key = zlib.crc32(f"{text}|{voice}|{speed}|{pitch}".encode())
        kept = Path(sys.prefix).parent / "speech" / f"{key:08x}.npy"
        if not kept.is_file():
            kept.parent.mkdir(exist_ok=True)
            scratch = kept.with_suffix(f".{os.getpid()}.npy")
            np.save(scratch, self.spoken(text.encode(), voice.encode(), speed, pitch))
            scratch.replace(kept)
        return np.load(kept).astype(np.float32) / 32768

    def spoken(self, text: bytes, voice: bytes, speed: int, pitch: int) -> Array:
        self.heard.clear()
        self.library.espeak_SetVoiceByName(voice)
        self.library.espeak_SetParameter(1, speed, 0)
        self.library.espeak_SetParameter(3, pitch, 0)
        self.library.espeak_Synth(text, len(text) + 1, 0, 1, 0, 1, None, None)
        self.library.espeak_Synchronize()
        return np.concatenate(self.heard or [np.zeros(1, np.int16)])


@functools.cache
def speaker() -> Speaker:
    return Speaker()


def speech(part: str, count: int, seconds: float, rate: int = RATE) -> list[Array]:
    """Float32 clips in -1..1: sentences in several voices with pauses, in noise of 0 to 40 dB."""
    import soxr

    voices = ("en", "en-us", "en+f3", "en-us+m3", "de", "fr+f2", "es", "it+m1")
    clips = []
    for k in range(count):
        rng = seeded(part, 1, k)
        spoken: list[Array] = []
        while sum(map(len, spoken)) < seconds * rate:
            text = str(rng.choice(sentences("english", part)))
            pick = str(rng.choice(voices)), int(rng.integers(120, 220)), int(rng.integers(25, 80))
            wave = soxr.resample(speaker().say(text, *pick), speaker().rate, rate)
            gain = float(rng.uniform(0.15, 0.9)) / max(float(np.abs(wave).max()), 1e-3)
            spoken += [np.zeros(int(rng.uniform(0.1, 1.5) * rate), np.float32), wave * gain]
        wave = np.concatenate(spoken)[: int(seconds * rate)]
        power = float(np.sqrt(np.mean(wave**2))) * 10 ** (-rng.uniform(0, 40) / 20)
        wave = wave + power * colored(rng, len(wave))
        clips.append(np.clip(wave, -1, 1).astype(np.float32))
    return clips


def colored(rng: np.random.Generator, size: int) -> Array:
    """Noise of unit power, white to brown."""
    spectrum = np.fft.rfft(rng.standard_normal(size))
    spectrum /= np.maximum(np.arange(len(spectrum)), 1.0) ** rng.uniform(0, 1)
    wave = np.fft.irfft(spectrum, size)
    return np.asarray(wave / max(float(np.sqrt(np.mean(wave**2))), 1e-9))


def music(part: str, count: int, seconds: float, rate: int) -> list[Array]:
    """Plucked chords and melodies of decaying harmonics."""
    clips = []
    for k in range(count):
        rng = seeded(part, 2, k)
        time = np.arange(int(seconds * rate)) / rate
        wave = np.zeros(len(time))
        start = 0.1
        while start < seconds - 0.3:
            for midi in rng.choice(np.arange(40, 85), int(rng.integers(1, 4)), replace=False):
                pitch, after = 440 * 2 ** ((midi - 69) / 12), np.maximum(time - start, 0)
                envelope = np.exp(-after * rng.uniform(1.5, 5)) * (time >= start)
                for n in range(1, 7):
                    wave += envelope * np.sin(2 * np.pi * pitch * n * after) / n**1.3
            start += float(rng.choice([0.2, 0.3, 0.45, 0.6]))
        wave += rng.uniform(0, 0.02) * rng.standard_normal(len(wave))
        clips.append((0.7 * wave / np.abs(wave).max()).astype(np.float32))
    return clips


# --- pictures ----------------------------------------------------------------------------------


def shipped(package: str, *below: str) -> Path:
    return Path(sysconfig.get_paths()["purelib"], package, *below)


@functools.cache
def originals() -> list[Array]:
    """The photographs that scikit-image, scikit-learn and matplotlib ship, RGB."""
    from PIL import Image

    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
    files = [shipped("skimage", "data", n) for n in names]
    files += [shipped("sklearn", "datasets", "images", n) for n in ("china.jpg", "flower.jpg")]
    files += [shipped("matplotlib", "mpl-data", "sample_data", "grace_hopper.jpg")]
    return [np.asarray(Image.open(f).convert("RGB")) for f in files]


def photographs(part: str, count: int, people: bool = False) -> Iterator[Array]:
    """Crops, flips and changes of light of the photographs; `people`: those that show a face."""
    from PIL import Image, ImageEnhance

    pool = [originals()[0], originals()[-1]] if people else originals()
    for k in range(count):
        rng = seeded(part, 3, k)
        image = Image.fromarray(pool[k % len(pool)])
        share = rng.uniform(0.6, 1)
        width, height = (max(int(s * share), 64) for s in image.size)
        left = int(rng.integers(0, image.width - width + 1))
        top = int(rng.integers(0, (image.height - height) // (3 if people else 1) + 1))
        image = image.crop((left, top, left + width, top + height))
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.6, 1.4))
        image = image.rotate(float(rng.uniform(-8, 8)), Image.Resampling.BILINEAR)
        yield np.asarray(ImageEnhance.Contrast(image).enhance(rng.uniform(0.7, 1.3)))


def png(image: Array) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def fonts() -> list[Path]:
    """Text fonts that matplotlib ships."""
    found = sorted(shipped("matplotlib", "mpl-data", "fonts", "ttf").glob("DejaVuS*.ttf"))
    return [f for f in found if "Display" not in f.name]


def page(rng: np.random.Generator, lines: list[str], size: int = 28, width: int = 720) -> Array:
    """Lines of text on paper: any font, ink, tilt and noise."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(str(rng.choice([str(f) for f in fonts()])), size)
    paper = int(rng.integers(215, 256))
    image = Image.new("RGB", (width, int(size * 1.8 * (len(lines) + 1))), (paper,) * 3)
    draw = ImageDraw.Draw(image)
    for k, line in enumerate(lines):
        ink = tuple(int(v) for v in rng.integers(0, 90, 3))
        draw.text((int(rng.integers(10, 40)), int(size * (0.6 + 1.8 * k))), line, ink, font)
    image = image.rotate(float(rng.uniform(-1, 1)), fillcolor=(paper,) * 3)
    noisy = np.asarray(image) + rng.normal(0, rng.uniform(0, 12), np.asarray(image).shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def pages(part: str, count: int, lines: int = 5) -> Iterator[Array]:
    for k in range(count):
        rng = seeded(part, 4, k)
        texts = [str(t)[:46] for t in rng.choice(sentences("english", part), lines)]
        yield page(rng, texts, size=int(rng.integers(20, 34)))


def captchas(
    part: str, count: int, letters: str, size: tuple[int, int], length: int
) -> Iterator[Array]:
    """Turned characters of several colours behind lines and dots."""
    from PIL import Image, ImageDraw, ImageFont

    width, height = size
    for k in range(count):
        rng = seeded(part, 5, k)
        image = Image.new("RGB", size, tuple(int(v) for v in rng.integers(200, 256, 3)))
        step = width / (length + 1)
        for n in range(length):
            font = ImageFont.truetype(str(rng.choice([str(f) for f in fonts()])), int(height * 0.7))
            tile = Image.new("L", (height, height), 0)
            ImageDraw.Draw(tile).text(
                (height // 2, height // 2), str(rng.choice(list(letters))), 255, font, anchor="mm"
            )
            tile = tile.rotate(float(rng.uniform(-20, 20)), Image.Resampling.BILINEAR)
            ink = tuple(int(v) for v in rng.integers(0, 130, 3))
            at = (
                int(step * (n + 1) - height / 2),
                int(rng.integers(-height // 10, height // 10 + 1)),
            )
            image.paste(Image.new("RGB", tile.size, ink), at, tile)
        draw = ImageDraw.Draw(image)
        for _ in range(int(rng.integers(1, 4))):
            ends = [int(v) for v in rng.integers(0, [width, height, width, height])]
            draw.line(ends, tuple(int(v) for v in rng.integers(60, 200, 3)), 1)
        yield np.asarray(image)


# --- files -------------------------------------------------------------------------------------


def files(part: str, count: int) -> list[Path]:
    """Files of many kinds from the standard library and installed packages, by a hash of their
    names: at most a twelfth of them of one suffix.
    """
    roots = [Path(sysconfig.get_paths()[k]) for k in ("stdlib", "purelib")]
    roots += [Path(sys.base_prefix, "include"), Path(sys.base_prefix, "share"), Path("/usr/share")]
    by_suffix: dict[str, list[tuple[int, Path]]] = {}
    for root in roots:
        for path in root.rglob("*"):
            if not path.suffix or path.is_symlink() or not path.is_file():
                continue
            if "site-packages" in path.relative_to(root).parts:  # what others install may change
                continue
            if not 64 <= path.stat().st_size <= 2_000_000 or "__pycache__" in path.parts:
                continue
            order = zlib.crc32(path.name.encode())
            if order % 2 == PARTS.index(part):
                by_suffix.setdefault(path.suffix.lower(), []).append((order, path))
    found = [p for group in by_suffix.values() for _, p in sorted(group)[: max(1, count // 12)]]
    return sorted(found, key=lambda p: zlib.crc32(str(p).encode()))[:count]
