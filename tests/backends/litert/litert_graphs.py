"""Arrays for the graphs of these tests, and what stands in a file."""

import numpy as np

_RNG = np.random.default_rng(0)


def drawn(*shape):
    """Normal numbers in float32."""
    return _RNG.standard_normal(shape).astype(np.float32)


def parsed(path):
    """The file as plain objects of the schema."""
    from graphopt.backends.litert.flatbuffer import schema

    return schema().ModelT.InitFromObj(schema().Model.GetRootAs(path.read_bytes(), 0))


def operators(path):
    """The names of the file's operators, in order."""
    from graphopt.backends.litert.flatbuffer import codes

    model = parsed(path)
    names = {v: k for k, v in codes("BuiltinOperator").items()}
    kinds = [names[c.builtinCode] for c in model.operatorCodes]
    return [kinds[o.opcodeIndex] for o in model.subgraphs[0].operators]
