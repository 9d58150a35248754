"""Operators as small models in text: what the tests of outputs and of gradients go through."""

import numpy as np

from graphopt.testing import parse_model

RNG = np.random.default_rng(7)


def f(*shape):
    """Normal float32 numbers."""
    return RNG.standard_normal(shape).astype(np.float32)


def i(high, *shape, dtype=np.int64):
    """Integers below `high`."""
    return RNG.integers(0, high, shape).astype(dtype)


def ints(*values, dtype=np.int64):
    """A vector."""
    return np.array(values, dtype)


X = f(2, 3, 8, 9)

#: name: (text, arrays by name). Inputs are x, y, u, v; every other name is a constant.
SMOOTH = {
    name: (f"z = {name}(x)", {"x": f(3, 4)})
    for name in [
        *("Sigmoid", "Tanh", "Erf", "Softplus", "Softsign", "Mish", "Gelu", "Sin", "Cos", "Atan"),
        *("Exp", "Neg", "Elu", "Selu", "HardSwish", "Celu", "LogSoftmax", "Softmax"),
    ]
}
SMOOTH |= {
    name: (f"z = {name}(x)", {"x": np.abs(f(3, 4)) + 0.5}) for name in ["Sqrt", "Log", "Reciprocal"]
}
SMOOTH |= {
    "Add": ("z = Add(x, b)", {"x": f(2, 3, 4), "b": f(3, 1)}),
    "Mul": ("z = Mul(x, b)", {"x": f(2, 3, 4), "b": f(4)}),
    "Div": ("z = Div(x, b)", {"x": f(2, 3), "b": np.abs(f(2, 1)) + 1}),
    "Pow": ("z = Pow(x, two)", {"x": f(2, 3), "two": np.float32(2).reshape(())}),
    "MatMul": ("z = MatMul(x, w)", {"x": f(2, 3, 4), "w": f(4, 5)}),
    "Gemm": (
        "z = Gemm <transB=1, alpha=0.5, beta=2.0> (x, w, b)",
        {"x": f(3, 4), "w": f(5, 4), "b": f(5)},
    ),
    "Conv": (
        "z = Conv <pads=[1, 0, 2, 1], strides=[2, 1], dilations=[1, 2], group=3> (x, w, b)",
        {"x": X, "w": f(6, 1, 3, 3), "b": f(6)},
    ),
    "Conv_same": (
        'z = Conv <auto_pad="SAME_LOWER", strides=[2, 2]> (x, w)',
        {"x": X, "w": f(4, 3, 3, 3)},
    ),
    "Conv1d": ("z = Conv(x, w)", {"x": f(2, 3, 9), "w": f(4, 3, 3)}),
    "ConvTranspose": (
        "z = ConvTranspose <strides=[2, 2], pads=[1, 0, 0, 1], output_padding=[1, 0]> (x, w, b)",
        {"x": f(1, 3, 4, 4), "w": f(3, 2, 3, 3), "b": f(2)},
    ),
    "ConvTranspose_shape": (
        "z = ConvTranspose <strides=[2, 2], output_shape=[9, 10]> (x, w)",
        {"x": f(1, 3, 4, 5), "w": f(3, 2, 3, 3)},
    ),
    "AveragePool": (
        "z = AveragePool <kernel_shape=[3, 3], pads=[1, 0, 0, 1], strides=[2, 2]> (x)",
        {"x": X},
    ),
    "AveragePool_padded": (
        "z = AveragePool <kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1> (x)",
        {"x": X},
    ),
    "GlobalAveragePool": ("z = GlobalAveragePool(x)", {"x": X}),
    "BatchNormalization": (
        "z = BatchNormalization(x, s, b, m, v2)",
        {"x": X, "s": f(3), "b": f(3), "m": f(3), "v2": np.abs(f(3)) + 0.5},
    ),
    "LayerNormalization": (
        "z = LayerNormalization(x, s, b)",
        {"x": f(2, 3, 8), "s": f(8), "b": f(8)},
    ),
    "LayerNormalization_axis": (
        "z = LayerNormalization <axis=1> (x, s)",
        {"x": f(2, 3, 8), "s": f(3, 8)},
    ),
    "InstanceNormalization": (
        "z = InstanceNormalization(x, s, b)",
        {"x": X, "s": f(3), "b": f(3)},
    ),
    "ReduceMean": ("z = ReduceMean <keepdims=0> (x, a)", {"x": f(2, 3, 4), "a": ints(-1, 0)}),
    "ReduceSum": ("z = ReduceSum(x, a)", {"x": f(2, 3, 4), "a": ints(1)}),
    "ReduceL2": ("z = ReduceL2(x, a)", {"x": f(2, 3, 4), "a": ints(1)}),
    "ReduceLogSumExp": ("z = ReduceLogSumExp(x)", {"x": f(2, 3, 4)}),
    "Einsum": (
        'z = Einsum <equation="b i j, b j k -> b i k"> (x, w)',
        {"x": f(2, 3, 4), "w": f(2, 4, 5)},
    ),
    "LSTM": (
        "z, h, c = LSTM <hidden_size=5> (x, w, r, b)",
        {"x": f(4, 2, 3), "w": f(1, 20, 3), "r": f(1, 20, 5), "b": f(1, 40)},
    ),
    "LSTM_both": (
        'z, h, c = LSTM <hidden_size=5, direction="bidirectional"> (x, w, r, b, , h0, c0)',
        {
            "x": f(4, 2, 3),
            "w": f(2, 20, 3),
            "r": f(2, 20, 5),
            "b": f(2, 40),
            "h0": f(2, 2, 5),
            "c0": f(2, 2, 5),
        },
    ),
    "LSTM_peepholes": (
        'z, h, c = LSTM <hidden_size=5, clip=0.5, direction="reverse"> (x, w, r, b, n, , , p)',
        {
            "x": f(4, 2, 3),
            "w": f(1, 20, 3),
            "r": f(1, 20, 5),
            "b": f(1, 40),
            "n": ints(4, 2, dtype=np.int32),
            "p": f(1, 15),
        },
    ),
    "GRU": (
        "z, h = GRU <hidden_size=5, linear_before_reset=1> (x, w, r, b)",
        {"x": f(4, 2, 3), "w": f(1, 15, 3), "r": f(1, 15, 5), "b": f(1, 30)},
    ),
    "GRU_reset": (
        "z, h = GRU <hidden_size=5> (x, w, r, b)",
        {"x": f(4, 2, 3), "w": f(1, 15, 3), "r": f(1, 15, 5), "b": f(1, 30)},
    ),
    "RNN": (
        "z, h = RNN <hidden_size=5> (x, w, r)",
        {"x": f(4, 2, 3), "w": f(1, 5, 3), "r": f(1, 5, 5)},
    ),
    "Resize_linear": (
        'z = Resize <mode="linear"> (x, , , s)',
        {"x": X, "s": ints(2, 3, 13, 5)},
    ),
    "Resize_cubic": (
        'z = Resize <mode="cubic", coordinate_transformation_mode="align_corners"> (x, , , s)',
        {"x": X, "s": ints(2, 3, 13, 5)},
    ),
    "Resize_antialias": (
        'z = Resize <mode="linear", antialias=1> (x, , , s)',
        {"x": X, "s": ints(2, 3, 5, 4)},
    ),
    "GridSample": (
        'z = GridSample <mode="linear", align_corners=1> (x, g)',
        {"x": X, "g": np.tanh(f(2, 4, 5, 2))},
    ),
    "DepthToSpace": ("z = DepthToSpace <blocksize=2> (x)", {"x": f(1, 8, 2, 3)}),
    "SpaceToDepth": ("z = SpaceToDepth <blocksize=2> (x)", {"x": f(1, 2, 4, 6)}),
    "CumSum": (
        "z = CumSum <exclusive=1, reverse=1> (x, a)",
        {"x": f(2, 5), "a": np.int64(1).reshape(())},
    ),
    "Gather": ("z = Gather <axis=1> (x, k)", {"x": f(3, 4, 2), "k": ints(0, -1, 2)}),
    "GatherElements": (
        "z = GatherElements <axis=1> (x, k)",
        {"x": f(2, 4), "k": np.array([[0, -1], [2, 1]])},
    ),
    "GatherND": ("z = GatherND(x, k)", {"x": f(3, 4, 2), "k": np.array([[0, 1], [2, -1]])}),
    "ScatterND": (
        'z = ScatterND <reduction="add"> (x, k, w)',
        {"x": f(4, 3), "k": np.array([[1], [1]]), "w": f(2, 3)},
    ),
    "Slice": (
        "z = Slice(x, a, b, c, d)",
        {"x": X, "a": ints(1, -1), "b": ints(8, -9), "c": ints(2, 3), "d": ints(2, -2)},
    ),
    "Pad": ("z = Pad(x, p)", {"x": f(2, 3), "p": ints(1, 0, 0, 2)}),
    "Pad_reflect": ('z = Pad <mode="reflect"> (x, p)', {"x": f(3, 4), "p": ints(1, 2, 2, 1)}),
    "Pad_edge": ('z = Pad <mode="edge"> (x, p)', {"x": f(3, 4), "p": ints(1, 2, 2, 1)}),
    "Expand": ("z = Expand(x, s)", {"x": f(3, 1), "s": ints(2, 1, 4)}),
    "Tile": ("z = Tile(x, s)", {"x": f(2, 3), "s": ints(2, 2)}),
    "Where": ("c = Greater(x, b)  z = Where(c, x, b)", {"x": f(2, 3), "b": f(1, 3)}),
    "Clip": (
        "z = Clip(x, a, b)",
        {"x": f(4, 5), "a": np.float32(-0.3).reshape(()), "b": np.float32(0.9).reshape(())},
    ),
    "PRelu": ("z = PRelu(x, s)", {"x": X, "s": f(3, 1, 1)}),
    "Attention": (
        "z = Attention <scale=0.3, softcap=2.0> (x, k, v, m)",
        {"x": f(2, 4, 3, 8), "k": f(2, 2, 5, 8), "v": f(2, 2, 5, 8), "m": f(3, 5)},
    ),
    "Attention_packed": (
        "z = Attention <q_num_heads=4, kv_num_heads=2, is_causal=1> (x, k, v)",
        {"x": f(2, 5, 32), "k": f(2, 5, 16), "v": f(2, 5, 16)},
    ),
    "RotaryEmbedding": (
        "z = RotaryEmbedding <interleaved=1, rotary_embedding_dim=4> (x, c, s, p)",
        {"x": f(2, 3, 4, 8), "c": f(6, 2), "s": f(6, 2), "p": i(6, 2, 4)},
    ),
    "RMSNormalization": ("z = RMSNormalization(x, s)", {"x": f(2, 3, 8), "s": f(8)}),
    "MultiHeadAttention": (
        "z = com.microsoft.MultiHeadAttention <num_heads=4> (x, k, v, b, , m)",
        {"x": f(2, 3, 16), "k": f(2, 5, 16), "v": f(2, 5, 16), "b": f(48), "m": f(1, 4, 3, 5)},
    ),
    "Attention_contrib": (
        "z = com.microsoft.Attention <num_heads=2, unidirectional=1> (x, w, b)",
        {"x": f(2, 5, 6), "w": f(6, 24), "b": f(24)},
    ),
    "SkipLayerNormalization": (
        "z = com.microsoft.SkipLayerNormalization(x, y, s, b)",
        {"x": f(2, 3, 8), "y": f(2, 3, 8), "s": f(8), "b": f(8)},
    ),
    "SkipSimplifiedLayerNormalization": (
        "z = com.microsoft.SkipSimplifiedLayerNormalization(x, y, s)",
        {"x": f(2, 3, 8), "y": f(2, 3, 8), "s": f(8)},
    ),
    "BiasGelu": ("z = com.microsoft.BiasGelu(x, b)", {"x": f(2, 8), "b": f(8)}),
    "FastGelu": ("z = com.microsoft.FastGelu(x, b)", {"x": f(2, 8), "b": f(8)}),
    "QuickGelu": ("z = com.microsoft.QuickGelu(x)", {"x": f(2, 8)}),
    "FusedConv": (
        'z = com.microsoft.FusedConv <activation="LeakyRelu", activation_params=[0.2]> (x, w, b)',
        {"x": X, "w": f(4, 3, 3, 3), "b": f(4)},
    ),
    "FusedMatMul": (
        "z = com.microsoft.FusedMatMul <transB=1, alpha=0.5> (x, w)",
        {"x": f(2, 3, 4), "w": f(2, 5, 4)},
    ),
}

#: Kinks, integers and booleans: compared with the runtime, not differentiated.
PLAIN = {
    name: (f"z = {name}(x)", {"x": f(3, 4)})
    for name in [
        "Relu",
        "LeakyRelu",
        "Abs",
        "Floor",
        "Ceil",
        "Round",
        "Sign",
        "IsNaN",
        "HardSigmoid",
        "Hardmax",
    ]
}
PLAIN |= {
    "MaxPool": (
        "z = MaxPool <kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 0], ceil_mode=1> (x)",
        {"x": X},
    ),
    "MaxPool_indices": ("z, k = MaxPool <kernel_shape=[2, 2], dilations=[2, 2]> (x)", {"x": X}),
    "AveragePool_ceil": (
        "z = AveragePool <kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1> (x)",
        {"x": X},
    ),
    "ReduceMax": ("z = ReduceMax(x, a)", {"x": f(2, 3, 4), "a": ints(0, 2)}),
    "ReduceProd": ("z = ReduceProd <keepdims=0> (x, a)", {"x": f(2, 3, 4), "a": ints(0, 2)}),
    "ArgMax": (
        "z = ArgMax <axis=1, select_last_index=1> (x)",
        {"x": i(3, 4, 5).astype(np.float32)},
    ),
    "TopK": ("z, k = TopK <largest=0> (x, n)", {"x": f(3, 7), "n": ints(3)}),
    "OneHot": ("z = OneHot <axis=0> (x, d, v2)", {"x": i(4, 5) - 2, "d": ints(4), "v2": f(2)}),
    "Trilu": ("z = Trilu <upper=0> (x, k)", {"x": f(3, 4, 5), "k": np.int64(1).reshape(())}),
    "Div_integers": ("z = Div(x, b)", {"x": i(20, 6) - 10, "b": ints(3, -3, 3, -3, 2, 7)}),
    "Mod": ("z = Mod(x, b)", {"x": i(20, 6) - 10, "b": ints(3, -3, 3, -3, 2, 7)}),
    "Mod_fmod": ("z = Mod <fmod=1> (x, b)", {"x": f(6), "b": f(6)}),
    "Cast": ("z = Cast <to=6> (x)", {"x": f(3, 4) * 10}),
    "NonZero": ("z = NonZero(x)", {"x": i(2, 3, 4)}),
    "Range": (
        "s = Shape(x)  n = Gather(s, k)  z = Range(o, n, d)",
        {
            "x": f(7, 2),
            "k": np.int64(0).reshape(()),
            "o": np.int64(0).reshape(()),
            "d": np.int64(2).reshape(()),
        },
    ),
    "Split": ("a, z = Split <axis=1, num_outputs=2> (x)", {"x": f(2, 7)}),
    "ConstantOfShape": (
        "s = Shape(x)  z = ConstantOfShape <value = float[1] {2.5}> (s)",
        {"x": f(2, 3)},
    ),
    "Reshape_zero": ("z = Reshape(x, s)", {"x": f(2, 3, 4), "s": ints(0, -1)}),
    "Resize_nearest": (
        'z = Resize <nearest_mode="floor", coordinate_transformation_mode="asymmetric"> (x, , s)',
        {"x": X, "s": np.array([1, 1, 1.7, 0.6], np.float32)},
    ),
    "Resize_crop": (
        'z = Resize <mode="linear", coordinate_transformation_mode="tf_crop_and_resize">'
        " (x, r, , s)",
        {
            "x": X,
            "r": np.array([0, 0, 0.2, -0.3, 1, 1, 0.8, 1.2], np.float32),
            "s": ints(2, 3, 5, 6),
        },
    ),
    "QuantizeLinear": (
        "z = QuantizeLinear(x, s, o)",
        {"x": f(40), "s": np.float32(0.02).reshape(()), "o": np.uint8(120).reshape(())},
    ),
    "QDQ_per_axis": (
        "q = QuantizeLinear <axis=0> (x, s, o)  z = DequantizeLinear <axis=0> (q, s, o)",
        {
            "x": f(3, 9),
            "s": np.array([0.1, 0.02, 0.3], np.float32),
            "o": ints(0, 3, -5, dtype=np.int8),
        },
    ),
    "DequantizeLinear_weight": (
        "d = DequantizeLinear <axis=0> (w, s, o)  z = Conv(x, d)",
        {
            "x": X,
            "w": i(255, 4, 3, 3, 3, dtype=np.uint8),
            "s": np.abs(f(4)),
            "o": i(255, 4, dtype=np.uint8),
        },
    ),
    "DynamicQuantizeLinear": ("z, s, o = DynamicQuantizeLinear(x)", {"x": f(30)}),
    "MatMulInteger": (
        "z = MatMulInteger(x, w, a, b)",
        {
            "x": i(255, 3, 4, dtype=np.uint8),
            "w": i(255, 4, 5, dtype=np.uint8),
            "a": np.uint8(3).reshape(()),
            "b": np.uint8(100).reshape(()),
        },
    ),
    "MatMulIntegerToFloat": (
        "z = com.microsoft.MatMulIntegerToFloat(x, w, a, s, o, , b)",
        {
            "x": i(255, 3, 4, dtype=np.uint8),
            "w": (i(127, 4, 5) - 63).astype(np.int8),
            "a": np.float32(0.1).reshape(()),
            "s": np.abs(f(5)),
            "o": np.uint8(100).reshape(()),
            "b": f(5),
        },
    ),
    "QLinearConv": (
        "z = QLinearConv <pads=[1, 1, 1, 1]> (x, sx, ox, w, sw, ow, sz, oz, b)",
        {
            "x": i(255, 1, 3, 6, 6, dtype=np.uint8),
            "sx": np.float32(0.02).reshape(()),
            "ox": np.uint8(120).reshape(()),
            "w": (i(127, 4, 3, 3, 3) - 63).astype(np.int8),
            "sw": np.abs(f(4)) * 0.01,
            "ow": np.zeros(4, np.int8),
            "sz": np.float32(0.3).reshape(()),
            "oz": np.uint8(128).reshape(()),
            "b": i(900, 4, dtype=np.int32),
        },
    ),
    "QLinearMatMul": (
        "z = QLinearMatMul(x, sx, ox, w, sw, ow, sz, oz)",
        {
            "x": i(255, 3, 8, dtype=np.uint8),
            "sx": np.float32(0.02).reshape(()),
            "ox": np.uint8(120).reshape(()),
            "w": (i(127, 8, 5) - 63).astype(np.int8),
            "sw": np.float32(0.01).reshape(()),
            "ow": np.int8(0).reshape(()),
            "sz": np.float32(0.1).reshape(()),
            "oz": np.uint8(128).reshape(()),
        },
    ),
    "QLinearAdd": (
        "z = com.microsoft.QLinearAdd(x, sx, ox, w, sw, ow, sz, oz)",
        {
            "x": i(255, 3, 8, dtype=np.uint8),
            "sx": np.float32(0.0217).reshape(()),
            "ox": np.uint8(120).reshape(()),
            "w": i(255, 8, dtype=np.uint8),
            "sw": np.float32(0.0131).reshape(()),
            "ow": np.uint8(100).reshape(()),
            "sz": np.float32(0.0397).reshape(()),
            "oz": np.uint8(128).reshape(()),
        },
    ),
    "DynamicQuantizeLSTM": (
        "z, h, c = com.microsoft.DynamicQuantizeLSTM <hidden_size=5>"
        " (x, w, r, b, , , , , ws, wo, rs, ro)",
        {
            "x": f(4, 1, 3),
            "w": (i(127, 1, 3, 20) - 63).astype(np.int8),
            "r": (i(127, 1, 5, 20) - 63).astype(np.int8),
            "b": f(1, 40),
            "ws": np.abs(f(1, 20)) * 0.01,
            "wo": np.zeros((1, 20), np.int8),
            "rs": np.abs(f(1, 20)) * 0.01,
            "ro": np.zeros((1, 20), np.int8),
        },
    ),
    "GatherBlockQuantized": (
        "z = com.microsoft.GatherBlockQuantized"
        " <bits=8, block_size=16, gather_axis=0, quantize_axis=1> (w, x, s)",
        {"x": i(6, 2, 3), "w": i(255, 6, 32, dtype=np.uint8), "s": np.abs(f(6, 2))},
    ),
    "Sequence": (
        "q = SplitToSequence <axis=1> (x, n)  z = SequenceAt(q, k)",
        {"x": f(2, 6), "n": ints(2, 4), "k": np.int64(1).reshape(())},
    ),
}

INPUTS = ("x", "y", "u", "v")
NEW = ("Attention", "RotaryEmbedding", "RMSNormalization")


def model_of(name, text, arrays):
    """The model of a case and the arrays of its inputs."""
    opset = 23 if name.split("_")[0] in NEW and "com." not in text else 20
    inputs = {k: a for k, a in arrays.items() if k in INPUTS}
    constants = {k: a for k, a in arrays.items() if k not in INPUTS}
    model = parse_model(text, inputs=inputs, constants=constants, opset=opset)
    return model, inputs
