"""Published architectures for bench/prune_units.py, from transformers, narrow and shallow.

    python bench/prune_published.py --out DIR [NAME ...]

Two layers or so of each, width 32, random weights; exported by torch's tracer, or by
`torch.export` where the tracer cannot. Needs torch, transformers, onnx and onnxscript.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import transformers
from prune_structures import asked, lively
from torch import Tensor, nn

Made = tuple[nn.Module, tuple[Tensor, ...]]

LAYERS = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
TEXT = {**LAYERS, "vocab_size": 100, "max_position_embeddings": 32}
GROUPS = {**TEXT, "num_key_value_heads": 2}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 32}
SOUND = {
    **LAYERS, "conv_dim": (32,) * 3, "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3),
    "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 24, 32, 48]}
SERIES = {"num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8}


class Pick(nn.Module):
    """A model with one tensor in and one out."""

    def __init__(self, model: nn.Module, given: str, taken: str, fixed: dict[str, Any]):
        super().__init__()
        self.model, self.given, self.taken, self.fixed = model, given, taken, fixed

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self.model(**{self.given: x}, **self.fixed), self.taken)


def made(
    name: str, given: str, x: Tensor, fixed: dict[str, Any] | None = None, **sizes: Any
) -> Made:
    """`NAMEModel` (or another class of its family) from `NAMEConfig`, attention written out."""
    family, _, kind = name.partition(":")
    config = getattr(transformers, f"{family}Config")(**sizes)
    config._attn_implementation = "eager"
    taken = {"ForCausalLM": "logits", "ForObjectDetection": "logits"}.get(kind, "last_hidden_state")
    taken = "predicted_depth" if kind == "ForDepthEstimation" else taken
    model = getattr(transformers, f"{family}{kind or 'Model'}")(config)
    return Pick(model, given, taken, fixed or {}), (x,)


def words(name: str, steps: int = 16, fixed: dict[str, Any] | None = None, **sizes: Any) -> Made:
    return made(name, "input_ids", torch.randint(0, 100, (2, steps)), fixed, **sizes)


def writes(name: str, steps: int = 16, **sizes: Any) -> Made:
    return words(name, steps, {"use_cache": False}, **sizes)


def image(name: str, size: int = 64, **sizes: Any) -> Made:
    return made(name, "pixel_values", torch.randn(2, 3, size, size), **sizes)


def sound(name: str, **sizes: Any) -> Made:
    return made(name, "input_values", torch.randn(2, 2000), **{**SOUND, **sizes})


def series(name: str, **sizes: Any) -> Made:
    return made(name, "past_values", torch.randn(2, 32, 3), **SERIES, **sizes)


def encodec() -> Made:
    config = transformers.EncodecConfig(
        num_filters=8, upsampling_ratios=[4, 2], hidden_size=32, num_lstm_layers=1
    )
    return transformers.EncodecModel(config).encoder, (torch.randn(2, 1, 800),)


TABLE: dict[str, Callable[[], Made]] = {
    # words
    "roberta": lambda: words("Roberta", **TEXT),
    "squeezebert": lambda: words("SqueezeBert", embedding_size=32, **TEXT),
    "roformer": lambda: words("RoFormer", **TEXT),
    "xlnet": lambda: words(
        "XLNet", fixed={"use_mems": False}, d_model=32, n_layer=2, n_head=4, d_inner=64,
        vocab_size=100,
    ),
    "funnel": lambda: words(
        "Funnel:BaseModel", vocab_size=100, block_sizes=[1, 1], d_model=32, n_head=4, d_head=8,
        d_inner=64,
    ),
    "perceiver": lambda: made(
        "Perceiver", "inputs", torch.randn(2, 16, 24), d_model=24, d_latents=32, num_latents=6,
        num_self_attends_per_block=1, num_self_attention_heads=4, num_cross_attention_heads=1,
    ),
    "gpt_neo": lambda: writes(
        "GPTNeo", hidden_size=32, num_layers=2, num_heads=4, vocab_size=100, intermediate_size=64,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=32,
    ),
    "gpt_bigcode": lambda: writes("GPTBigCode", **GPT),
    "codegen": lambda: writes("CodeGen", rotary_dim=4, **GPT),
    "gptneox": lambda: writes("GPTNeoX:ForCausalLM", **TEXT),
    "opt": lambda: writes(
        "OPT:ForCausalLM", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64,
        vocab_size=100, max_position_embeddings=32, word_embed_proj_dim=32,
    ),
    "phi": lambda: writes("Phi:ForCausalLM", **TEXT),
    "starcoder2": lambda: writes("Starcoder2:ForCausalLM", **GROUPS),
    "qwen2": lambda: writes("Qwen2:ForCausalLM", **GROUPS),
    "glm": lambda: writes("Glm:ForCausalLM", head_dim=8, pad_token_id=0, **GROUPS),
    "olmo2": lambda: writes("Olmo2:ForCausalLM", **GROUPS),
    "lfm2": lambda: writes("Lfm2:ForCausalLM", layer_types=["conv", "full_attention"], **GROUPS),
    "mamba": lambda: writes(
        "Mamba", hidden_size=32, num_hidden_layers=2, vocab_size=100, state_size=8,
        time_step_rank=4,
    ),
    "rwkv": lambda: writes("Rwkv", 4, vocab_size=100, hidden_size=32, num_hidden_layers=2),
    "recurrent_gemma": lambda: writes(
        "RecurrentGemma", 6, vocab_size=100, hidden_size=32, num_hidden_layers=3,
        num_attention_heads=4, intermediate_size=64, lru_width=32, attention_window_size=8,
    ),
    "xlstm": lambda: writes(
        "xLSTM", 4, vocab_size=100, hidden_size=32, num_hidden_layers=1, num_heads=4
    ),
    # images
    "poolformer": lambda: image("PoolFormer", **STAGES),
    "convnextv2": lambda: image("ConvNextV2", **STAGES),
    "swiftformer": lambda: image("SwiftFormer", depths=[1] * 4, embed_dims=[16, 24, 32, 48]),
    "focalnet": lambda: image("FocalNet", image_size=64, embed_dim=16, depths=[1] * 4),
    "mobilevitv2": lambda: image(
        "MobileViTV2", width_multiplier=0.25, n_attn_blocks=[1, 1, 1]
    ),
    "mobilenet_v1": lambda: image("MobileNetV1", depth_multiplier=0.25),
    "bit": lambda: image(
        "Bit", embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], num_groups=4
    ),
    "pvt_v2": lambda: image("PvtV2", image_size=64, num_attention_heads=[1, 2, 4, 4], **STAGES),
    "glpn": lambda: image("GLPN", num_attention_heads=[1, 2, 4, 4], **STAGES),
    "videomae": lambda: made(
        "VideoMAE", "pixel_values", torch.randn(2, 4, 3, 32, 32), image_size=32, num_frames=4,
        patch_size=16, **LAYERS,
    ),
    "yolos": lambda: image(
        "Yolos:ForObjectDetection", 32, image_size=[32, 32], patch_size=8, num_detection_tokens=5,
        **LAYERS,
    ),
    "levit": lambda: image(
        "Levit", image_size=64, hidden_sizes=[32, 48, 64], depths=[1, 1, 1],
        num_attention_heads=[2, 3, 4], key_dim=[8, 8, 8],
    ),
    "vitdet": lambda: image(
        "VitDet", image_size=64, pretrain_image_size=64, patch_size=8, window_block_indices=[0],
        window_size=4, use_relative_position_embeddings=True, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4,
    ),
    "dpt": lambda: image(
        "DPT:ForDepthEstimation", image_size=64, patch_size=16, backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 24, 32, 32], fusion_hidden_size=16, is_hybrid=False,
        **{**LAYERS, "num_hidden_layers": 4},
    ),
    # sounds and series
    "wavlm": lambda: sound("WavLM"),
    "data2vec": lambda: sound("Data2VecAudio", num_conv_pos_embeddings=3, conv_pos_kernel_size=9),
    "wav2vec2_conformer": lambda: sound(
        "Wav2Vec2Conformer", position_embeddings_type="relative", conv_depthwise_kernel_size=7
    ),
    "wav2vec2_bert": lambda: made(
        "Wav2Vec2Bert", "input_features", torch.randn(2, 16, 20), feature_projection_input_dim=20,
        left_max_position_embeddings=8, right_max_position_embeddings=4,
        conv_depthwise_kernel_size=7, **LAYERS,
    ),
    "sew_d": lambda: sound(
        "SEWD", squeeze_factor=2, position_buckets=16, max_position_embeddings=32
    ),
    "encodec": encodec,
    "patchtst": lambda: series(
        "PatchTST", d_model=32, num_attention_heads=4, ffn_dim=64, num_hidden_layers=2
    ),
    "patchtsmixer": lambda: series("PatchTSMixer", d_model=16, num_layers=2),
}  # fmt: skip


def main() -> None:
    for name, path in asked(__doc__, TABLE):
        model, given = TABLE[name]()
        failed = ""
        with torch.no_grad():
            lively(model)
            for way in ({"dynamo": False, "opset_version": 17}, {"dynamo": True}):
                with contextlib.suppress(Exception):
                    torch.onnx.export(model, given, str(path), external_data=False, **way)
                    break
                failed = f"{failed} {'torch.export' if way['dynamo'] else 'the tracer'} failed;"
        print(f"{name}:{failed or ' traced'}", flush=True)


if __name__ == "__main__":
    main()
