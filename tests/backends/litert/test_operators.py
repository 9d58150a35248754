"""Each operator of the writer: its file is run by LiteRT and compared with ONNX Runtime.

`lowered` raises where the outputs are more than 1e-4 apart (relative L2), on two draws.
"""

import numpy as np
import pytest
from litert_graphs import drawn

IMAGE = {"x": (2, 3, 8, 8)}
K3 = {"k": drawn(4, 3, 3, 3), "b": drawn(4)}

FORMS = {
    # convolution
    "conv": ("y = Conv<pads=[1,1,1,1]>(x, k, b)", IMAGE, K3, "CONV_2D"),
    "conv, stride": ("y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, k, b)", IMAGE, K3, "PAD"),
    "conv, dilation": ("y = Conv<pads=[2,2,2,2], dilations=[2,2]>(x, k)", IMAGE, K3, "CONV_2D"),
    "conv, same": ('y = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, k)', IMAGE, K3, "CONV_2D"),
    "conv, relu": ("a = Conv(x, k, b)  y = Relu(a)", IMAGE, K3, "CONV_2D"),
    "depthwise": (
        "y = Conv<group=3, pads=[1,1,1,1]>(x, k)",
        IMAGE,
        {"k": drawn(6, 1, 3, 3)},
        "DEPTHWISE_CONV_2D",
    ),
    "groups": ("y = Conv<group=2>(x, k)", {"x": (2, 4, 8, 8)}, {"k": drawn(6, 2, 3, 3)}, "CONV_2D"),
    "signal": ("y = Conv<pads=[1,1]>(x, k)", {"x": (2, 3, 9)}, {"k": drawn(4, 3, 3)}, "CONV_2D"),
    "transposed": (
        "y = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(x, k, b)",
        IMAGE,
        {"k": drawn(3, 5, 3, 3), "b": drawn(5)},
        "TRANSPOSE_CONV",
    ),
    # pooling
    "maxima": ("y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)", IMAGE, {}, "MAX_POOL_2D"),
    "maxima, padded": (
        "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)",
        IMAGE,
        {},
        "MAX_POOL_2D",
    ),
    "maxima, ceiling": (
        "y = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x)",
        IMAGE,
        {},
        "MAX_POOL_2D",
    ),
    "means, padded": (
        "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)",
        IMAGE,
        {},
        "AVERAGE_POOL_2D",
    ),
    "means, padding counted": (
        "y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)",
        IMAGE,
        {},
        "AVERAGE_POOL_2D",
    ),
    "a window over all and more": (
        "y = AveragePool<kernel_shape=[40,40], strides=[40,40], ceil_mode=1>(x)",
        IMAGE,
        {},
        "MEAN",
    ),
    "global": ("y = GlobalAveragePool(x)", IMAGE, {}, "MEAN"),
    "global maxima": ("y = GlobalMaxPool(x)", IMAGE, {}, "REDUCE_MAX"),
    # products
    "matmul": ("y = MatMul(x, w)", {"x": (2, 5, 8)}, {"w": drawn(8, 4)}, "FULLY_CONNECTED"),
    "matmul, bias, relu": (
        "a = MatMul(x, w)  c = Add(a, b)  y = Relu(c)",
        {"x": (2, 5, 8)},
        {"w": drawn(8, 4), "b": drawn(4)},
        "FULLY_CONNECTED",
    ),
    "batches": ("y = MatMul(x, z)", {"x": (2, 3, 4, 5), "z": (2, 3, 5, 6)}, {}, "BATCH_MATMUL"),
    "transposed batches": (
        "t = Transpose<perm=[0,1,3,2]>(z)  y = MatMul(x, t)",
        {"x": (2, 3, 4, 5), "z": (2, 3, 6, 5)},
        {},
        "BATCH_MATMUL",
    ),
    "gemm": (
        "y = Gemm<alpha=0.5, transB=1>(x, w, b)",
        {"x": (2, 8)},
        {"w": drawn(4, 8), "b": drawn(4)},
        "FULLY_CONNECTED",
    ),
    "gemm, beta": (
        "y = Gemm<beta=2.0>(x, w, b)",
        {"x": (2, 8)},
        {"w": drawn(8, 4), "b": drawn(2, 4)},
        "FULLY_CONNECTED",
    ),
    # norms
    "layer norm": (
        "y = LayerNormalization(x, s, b)",
        {"x": (2, 5, 8)},
        {"s": drawn(8), "b": drawn(8)},
        "RSQRT",
    ),
    "instance norm": (
        "y = InstanceNormalization(x, s, b)",
        IMAGE,
        {"s": drawn(3), "b": drawn(3)},
        "RSQRT",
    ),
    "batch norm": (
        "y = BatchNormalization(x, s, b, m, v)",
        IMAGE,
        {"s": drawn(3), "b": drawn(3), "m": drawn(3), "v": np.abs(drawn(3))},
        "MUL",
    ),
    "softmax": ("y = Softmax<axis=1>(x)", IMAGE, {}, "SOFTMAX"),
    "log softmax": ("y = LogSoftmax(x)", IMAGE, {}, "LOG_SOFTMAX"),
    "l2": ("y = ReduceL2<keepdims=0>(x, a)", IMAGE, {"a": np.array([2])}, "SUM"),
    # attention
    "attention": (
        "y = Attention<is_causal=1>(q, k, v)",
        dict.fromkeys("qkv", (2, 3, 5, 4)),
        {},
        "SOFTMAX",
    ),
    "attention, by head": (
        "y = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v, m)",
        dict.fromkeys("qkv", (2, 5, 8)),
        {"m": np.tri(5, dtype=bool)},
        "SELECT_V2",
    ),
    # elements
    "broadcast": ("y = Add(x, b)", IMAGE, {"b": drawn(3, 1, 1)}, "ADD"),
    "gelu": ("y = Gelu(x)", IMAGE, {}, "GELU"),
    "clip": ("y = Clip(x, l, h)", IMAGE, {"l": np.float32(-0.5), "h": np.float32(0.5)}, "MINIMUM"),
    "square": ("y = Pow(x, t)", IMAGE, {"t": np.float32(2)}, "MUL"),
    "hard sigmoid": ("y = HardSigmoid<alpha=0.3>(x)", IMAGE, {}, "MAXIMUM"),
    "hard swish": ("y = HardSwish(x)", IMAGE, {}, "HARD_SWISH"),
    "leaky": ("y = LeakyRelu<alpha=0.2>(x)", IMAGE, {}, "LEAKY_RELU"),
    "nan": ("n = IsNaN(x)  y = Where(n, z, x)", IMAGE, {"z": np.float32(0)}, "SELECT_V2"),
    "compare": ("n = Less(x, z)  y = Where(n, z, x)", IMAGE, {"z": np.float32(0)}, "LESS"),
    "sum": ("y = Max(x, a, b)", IMAGE, {"a": drawn(8), "b": drawn(1)}, "MAXIMUM"),
    # moving
    "concat": ("a = Neg(x)  y = Concat<axis=1>(x, a)", IMAGE, {}, "CONCATENATION"),
    "slice": (
        "y = Slice(x, s, e, a, t)",
        IMAGE,
        {k: np.array(v) for k, v in {"s": [-1], "e": [-9], "a": [2], "t": [-2]}.items()},
        "STRIDED_SLICE",
    ),
    "gather": ("y = Gather<axis=1>(x, i)", IMAGE, {"i": np.array(-1)}, "GATHER"),
    "expand": ("y = Expand(x, s)", {"x": (3, 1)}, {"s": np.array([2, 3, 4])}, "BROADCAST_TO"),
    "tile": ("y = Tile(x, s)", {"x": (3, 2)}, {"s": np.array([2, 3])}, "TILE"),
    "pad": (
        "y = Pad(x, p, v)",
        {"x": (3, 2)},
        {"p": np.array([1, 0, 0, 2]), "v": np.float32(7)},
        "PADV2",
    ),
    "reflect": (
        'y = Pad<mode="reflect">(x, p)',
        {"x": (3, 2)},
        {"p": np.array([1, 0, 1, 1])},
        "MIRROR_PAD",
    ),
    "nearest": (
        'y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric",'
        ' nearest_mode="floor">(x, "", s)',
        IMAGE,
        {"s": np.array([1, 1, 2, 2], np.float32)},
        "RESIZE_NEAREST_NEIGHBOR",
    ),
    "bilinear": (
        'y = Resize<mode="linear">(x, "", s)',
        IMAGE,
        {"s": np.array([1, 1, 2, 2], np.float32)},
        "RESIZE_BILINEAR",
    ),
    "depth to space": (
        'y = DepthToSpace<blocksize=2, mode="CRD">(x)',
        {"x": (2, 8, 3, 5)},
        {},
        "TRANSPOSE",
    ),
    "cumulative": ("y = CumSum(x, a)", {"x": (3, 4)}, {"a": np.array(1)}, "CUMSUM"),
    "argmax": ("y = ArgMax<axis=1, keepdims=0>(x)", {"x": (3, 4)}, {}, "ARG_MAX"),
    # recurrent
    "lstm": (
        'y, h, c = LSTM<hidden_size=4, direction="bidirectional">(x, w, r, b)',
        {"x": (5, 2, 3)},
        {"w": drawn(2, 16, 3), "r": drawn(2, 16, 4), "b": drawn(2, 32)},
        "LOGISTIC",
    ),
    "gru": (
        'y, h = GRU<hidden_size=4, direction="reverse", linear_before_reset=1>(x, w, r, b)',
        {"x": (5, 2, 3)},
        {"w": drawn(1, 12, 3), "r": drawn(1, 12, 4), "b": drawn(1, 24)},
        "TANH",
    ),
    "gru, reset first": (
        "y, h = GRU<hidden_size=4>(x, w, r, b)",
        {"x": (5, 2, 3)},
        {"w": drawn(1, 12, 3), "r": drawn(1, 12, 4), "b": drawn(1, 24)},
        "TANH",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_computes_what_the_model_computes(lowered, form):
    text, inputs, constants, operator = FORMS[form]
    opset = 23 if "Attention" in text else 20
    _, written = lowered(text, inputs, constants, opset=opset)
    assert operator in written
