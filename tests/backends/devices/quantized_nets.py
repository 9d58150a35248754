"""A small quantized network: a convolution with its Relu, a mean, a product with a float result."""

import numpy as np

from graphopt.testing import parse_model

RNG = np.random.default_rng(0)
X = RNG.uniform(-1, 1, (1, 3, 8, 8)).astype(np.float32)
S, G = np.float32(1 / 127), np.float32(4 / 127)


def integers(*shape):
    return RNG.integers(-127, 128, shape).astype(np.int8)


W, P = integers(32, 3, 3, 3), integers(32, 1024)
WS = np.linspace(0.001, 0.002, 32).astype(np.float32)
PS = np.linspace(0.002, 0.004, 1024).astype(np.float32)
BIAS = np.arange(32, dtype=np.int32) * 50
TEXT = """
q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
k = DequantizeLinear<axis=0>(w, ws)  b = DequantizeLinear<axis=0>(bq, bs)
c = Conv<pads=[1,1,1,1]>(d, k, b)  r = Relu(c)
rq = QuantizeLinear(r, g, z)  rd = DequantizeLinear(rq, g, z)
m = GlobalAveragePool(rd)  f = Reshape(m, shape)
fq = QuantizeLinear(f, g, z)  fd = DequantizeLinear(fq, g, z)
p = DequantizeLinear<axis=1>(pq, ps)  y = MatMul(fd, p)
"""
CONSTANTS = {"s": S, "g": G, "z": np.int8(0), "pq": P, "ps": PS}
CONSTANTS |= {"w": W, "ws": WS, "bq": BIAS, "bs": S * WS}
CONSTANTS["shape"] = np.array([1, 32])


def net():
    return parse_model(TEXT, inputs={"x": X.shape}, constants=CONSTANTS)
