"""Wrong rewrites, one idea each: what `wrong_passes` runs through the pipeline as exact passes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from graphopt.graph.traverse import all_graphs, all_nodes

__all__ = ["EDITS"]

#: name -> (model, edit, what it reports: an "edit", "nothing", or an edit "elsewhere")
EDITS = {}


def wrong(model, reports="edit"):
    def kept(function):
        EDITS[function.__name__] = (model, function, reports)
        return function

    return kept


# --- tools -----------------------------------------------------------------------------------


def find(m, op, k=0):
    """The k-th node of an operator, subgraphs included."""
    return [n for n in all_nodes(m.graph) if n.op_type == op][k]


def constant(m, array, name):
    value = ir.val(name, const_value=ir.tensor(np.asarray(array), name=name))
    value.dtype, value.shape = value.const_value.dtype, value.const_value.shape
    m.graph.register_initializer(value)
    return value


def stored(m, name):
    return next(g.initializers[name] for g in all_graphs(m.graph) if name in g.initializers)


def change(m, name, function):
    """A weight becomes another one."""
    value = stored(m, name)
    array = np.array(value.const_value.numpy())
    made = function(array)
    value.const_value = ir.tensor(array if made is None else made, name=name)


def behind(m, value, *steps):
    """Operators behind a value that all its readers see: (operator, further inputs, attributes)."""
    users = [(u.node, u.idx) for u in value.uses()]
    nodes, last = [], value
    for k, (op, more, attributes) in enumerate(steps):
        inputs = [last if x is None else x for x in more] if None in more else [last, *more]
        node = ir.node(op, inputs, attributes, name=f"wrong_{op}_{k}")
        node.outputs[0].name = f"{value.name}_wrong_{k}"
        nodes.append(node)
        last = node.outputs[0]
    last.type, last.shape = last.type or value.type, last.shape or value.shape
    producer = value.producer()
    if producer is None:
        m.graph.insert_before(m.graph[0], nodes)
    else:
        producer.graph.insert_after(producer, nodes)
    for node, k in users:
        node.replace_input_with(k, last)
    for k, output in enumerate(m.graph.outputs):
        if output is value:
            value.name, last.name = f"{value.name}_before", value.name
            m.graph.outputs[k] = last
    return last


def put(node, **attributes):
    for k, v in attributes.items():
        node.attributes[k] = ir.convenience.convert_attribute(k, v)


def to(kind):
    return {"to": int(kind)}


# --- interface -------------------------------------------------------------------------------


@wrong("mlp")
def outputs_swapped_with_their_names(m, ctx):
    a, b = m.graph.outputs
    a.name, b.name = "t", a.name
    a.name = "z"
    m.graph.outputs[0], m.graph.outputs[1] = b, a


@wrong("mlp")
def one_output_twice(m, ctx):
    find(m, "Sigmoid").replace_input_with(0, find(m, "MatMul", 1).outputs[0])


@wrong("unread", "nothing")
def an_unread_input_is_removed(m, ctx):
    del m.graph.inputs[1]


@wrong("tokens")
def output_shape_declared_fixed(m, ctx):
    m.graph.outputs[0].shape = ir.Shape([2, 5, 8])


@wrong("picks")
def indices_become_int32(m, ctx):
    value = m.graph.outputs[1]
    last = behind(m, value, ("Cast", (), to(ir.DataType.INT32)))
    last.type = ir.TensorType(ir.DataType.INT32)


@wrong("given")
def a_default_input_is_baked_in(m, ctx):
    value = m.graph.inputs[1]
    find(m, "Mul").replace_input_with(1, constant(m, value.const_value.numpy(), "baked"))


# --- sizes -----------------------------------------------------------------------------------


@wrong("tokens")
def the_sequence_is_frozen(m, ctx):
    shape = find(m, "Shape").outputs[0]
    users = [(u.node, u.idx) for u in shape.uses()]
    for node, k in users:
        node.replace_input_with(k, constant(m, np.array([1, 4]), "frozen"))


@wrong("tokens")
def the_fill_is_made_for_two_rows(m, ctx):
    behind(
        m,
        find(m, "Concat").outputs[0],
        ("Min", (constant(m, np.array([2, 9, 1]), "made_for"),), {}),
    )


@wrong("long")
def a_branch_on_the_batch_is_dropped(m, ctx):
    node = find(m, "If")
    node.replace_input_with(0, constant(m, np.array(False), "never"))


@wrong("mlp")
def every_row_gets_a_share_of_the_batch(m, ctx):
    value = find(m, "MatMul").outputs[0]
    last = behind(m, value, ("Sum", (value,), {}))
    mean = ir.node("ReduceMean", [value, constant(m, np.array([0]), "ax")], name="wrong_mean")
    mean.outputs[0].name = "batch_mean"
    small = constant(m, np.float32(1e-3), "small")
    share = ir.node("Mul", [mean.outputs[0], small], name="wrong_share")
    share.outputs[0].name = "batch_share"
    m.graph.insert_before(last.producer(), [mean, share])
    last.producer().replace_input_with(1, share.outputs[0])


@wrong("hollow")
def a_first_row_is_needed(m, ctx):
    row = ir.node("Gather", [m.graph.inputs[0], constant(m, np.array(0), "top")], name="wrong_row")
    none = ir.node("Mul", [row.outputs[0], constant(m, np.float32(0), "nought")], name="wrong_none")
    row.outputs[0].name, none.outputs[0].name = "row", "none_of_it"
    m.graph.insert_before(m.graph[0], [row, none])
    behind(m, find(m, "ReduceSum").outputs[0], ("Add", (none.outputs[0],), {}))


@wrong("hollow")
def no_axes_means_all(m, ctx):
    del find(m, "ReduceSum", 1).attributes["noop_with_empty_axes"]
    put(find(m, "ReduceSum", 1), keepdims=1)


# --- control flow and state ------------------------------------------------------------------


@wrong("flagged")
def branches_exchanged(m, ctx):
    node = find(m, "If", 1)
    a, b = node.attributes["then_branch"].value, node.attributes["else_branch"].value
    node.attributes["then_branch"] = ir.AttrGraph("then_branch", b)
    node.attributes["else_branch"] = ir.AttrGraph("else_branch", a)


@wrong("flagged")
def a_rare_branch_loses_its_scale(m, ctx):
    node = find(m, "Constant")
    node.attributes["value_float"] = ir.AttrFloat32("value_float", 0.26)


@wrong("flagged")
def a_flag_is_taken_for_granted(m, ctx):
    find(m, "If").replace_input_with(0, constant(m, np.array(True), "granted"))


@wrong("flagged")
def a_branch_captures_another_value(m, ctx):
    find(m, "Neg").replace_input_with(0, m.graph.inputs[0])


@wrong("loop")
def one_turn_less(m, ctx):
    change(m, "turns", lambda a: a - 1)


@wrong("loop")
def the_carried_value_is_the_first(m, ctx):
    find(m, "Mul").replace_input_with(0, m.graph.inputs[0])


@wrong("gru")
def the_state_output_is_the_input(m, ctx):
    node = ir.node("Identity", [m.graph.inputs[1]], name="wrong_state")
    old = m.graph.outputs[1]
    new = node.outputs[0]
    new.type, new.shape = old.type, old.shape
    old.name, new.name = "h_before", old.name
    m.graph.append(node)
    m.graph.outputs[1] = new


@wrong("gru")
def gates_in_another_order(m, ctx):
    def swap(a):
        a[:, :5], a[:, 5:10] = a[:, 5:10].copy(), a[:, :5].copy()

    change(m, "w_1_15_4_a", swap)


@wrong("gru")
def reset_applied_before(m, ctx):
    put(find(m, "GRU"), linear_before_reset=0)


# --- numbers ---------------------------------------------------------------------------------


@wrong("special")
def no_number_is_let_through(m, ctx):
    node = find(m, "Where")
    node.replace_input_with(0, constant(m, np.zeros((), bool), "no"))


@wrong("special")
def minus_zero_becomes_zero(m, ctx):
    behind(m, find(m, "Mul").outputs[0], ("Add", (constant(m, np.float32(0), "plus"),), {}))


@wrong("special")
def small_numbers_are_flushed(m, ctx):
    behind(m, m.graph.inputs[0], ("Shrink", (), {"lambd": 1e-36, "bias": 0.0}))


@wrong("special")
def greater_becomes_at_least(m, ctx):
    find(m, "Greater").op_type = "GreaterOrEqual"


@wrong("special")
def out_of_range_and_back(m, ctx):
    up, down = constant(m, np.float32(1e36), "up"), constant(m, np.float32(1e-36), "down")
    behind(m, m.graph.inputs[0], ("Mul", (up,), {}), ("Mul", (down,), {}))


@wrong("plain")
def digits_are_lost(m, ctx):
    big = constant(m, np.float32(3e4), "big")
    behind(m, m.graph.inputs[0], ("Add", (big,), {}), ("Sub", (big,), {}))


@wrong("plain")
def halves_are_rounded_up(m, ctx):
    node = find(m, "Round")
    node.op_type = "Floor"
    half = constant(m, np.float32(0.5), "half")
    add = ir.node("Add", [m.graph.inputs[0], half], name="wrong_half")
    add.outputs[0].name = "shifted"
    m.graph.insert_before(node, add)
    node.replace_input_with(0, add.outputs[0])


@wrong("plain")
def the_root_of_a_square_is_its_base(m, ctx):
    node = find(m, "Sqrt")
    node.op_type = "Identity"
    node.replace_input_with(0, m.graph.inputs[0])


@wrong("plain")
def the_bound_is_a_little_higher(m, ctx):
    change(m, "hi", lambda a: a + np.float32(0.01))


@wrong("plain")
def a_value_passes_through_half(m, ctx):
    kinds = to(ir.DataType.FLOAT16), to(ir.DataType.FLOAT)
    last = behind(m, m.graph.inputs[0], ("Cast", (), kinds[0]), ("Cast", (), kinds[1]))
    last.producer().inputs[0].type = ir.TensorType(ir.DataType.FLOAT16)


@wrong("mlp")
def weights_keep_eight_bits(m, ctx):
    change(m, "w_16_32_a", lambda a: a.astype(ml_dtypes.bfloat16).astype(np.float32))


@wrong("logs")
def the_logarithm_of_what_vanishes(m, ctx):
    node = find(m, "LogSoftmax")
    node.op_type = "Softmax"
    behind(m, node.outputs[0], ("Log", (), {}))


@wrong("scores")
def a_softmax_without_its_maximum(m, ctx):
    node = find(m, "Softmax")
    node.op_type = "Exp"
    del node.attributes["axis"]
    divided = behind(m, node.outputs[0], ("Div", (constant(m, np.float32(1), "one"),), {}))
    total = ir.node("ReduceSum", [node.outputs[0], stored(m, "last")], name="wrong_sum")
    total.outputs[0].name = "total"
    m.graph.insert_before(divided.producer(), total)
    divided.producer().replace_input_with(1, total.outputs[0])


# --- hidden ----------------------------------------------------------------------------------


@wrong("scores")
def scores_are_capped_before_a_softmax(m, ctx):
    low, high = (constant(m, np.float32(x), f"cap{x}") for x in (-9, 9))
    behind(m, find(m, "Add").outputs[0], ("Clip", (low, high), {}))


@wrong("scores")
def a_class_is_preferred_by_a_hair(m, ctx):
    hair = constant(m, np.array([0, 0, 2e-2, 0, 0, 0, 0, 0], np.float32), "hair")
    add = ir.node("Add", [find(m, "Add").outputs[0], hair], name="wrong_hair")
    add.outputs[0].name = "preferred"
    m.graph.insert_before(find(m, "ArgMax"), add)
    find(m, "ArgMax").replace_input_with(0, add.outputs[0])


@wrong("text")
def ties_go_to_the_last(m, ctx):
    put(find(m, "ArgMax"), select_last_index=1)


@wrong("mlp")
def a_unit_that_relu_hides_gets_another_bias(m, ctx):
    def move(a):
        a[3] -= 60 if a[3] < 0 else -1e-3

    change(m, "w_32_b", move)


@wrong("masked")
def padding_leaks(m, ctx):
    change(m, "low", lambda a: a * np.float32(1e-8))


# --- operators and attributes ----------------------------------------------------------------


@wrong("conv")
def a_slope_falls_back_to_its_default(m, ctx):
    del find(m, "LeakyRelu").attributes["alpha"]


@wrong("conv")
def pads_begin_where_they_end(m, ctx):
    put(find(m, "Conv"), pads=[1, 0, 0, 1])


@wrong("conv")
def what_is_reflected_is_repeated(m, ctx):
    put(find(m, "Pad"), mode="edge")


@wrong("conv")
def padding_counts_no_more(m, ctx):
    put(find(m, "AveragePool"), count_include_pad=0)


@wrong("conv")
def the_epsilon_is_the_usual_one(m, ctx):
    put(find(m, "BatchNormalization"), epsilon=1e-5)


@wrong("conv")
def groups_of_weights_exchanged(m, ctx):
    change(m, "w_6_2_3_3_a", lambda a: np.roll(a, 3, 0))


@wrong("resized")
def corners_are_aligned(m, ctx):
    put(find(m, "Resize"), coordinate_transformation_mode="asymmetric")


@wrong("norm")
def a_transpose_of_a_square_is_a_reshape(m, ctx):
    node = find(m, "Transpose")
    put(node, perm=[0, 1, 2])


@wrong("norm")
def gelu_by_tanh(m, ctx):
    put(find(m, "Gelu"), approximate="tanh")


@wrong("norm")
def an_equation_transposed(m, ctx):
    put(find(m, "Einsum"), equation="bij,kj->bik")


@wrong("eleven", "elsewhere")
def a_newer_opset_means_something_else(m, ctx):
    m.graph.opset_imports[""] = 13


@wrong("picks")
def parts_of_a_split_exchanged(m, ctx):
    node = find(m, "Split")
    a, c = node.outputs[0], node.outputs[2]
    k = list(m.graph.outputs).index(a)
    a.name, c.name = "a_before", "a"
    c.shape = a.shape
    m.graph.outputs[k] = c


@wrong("picks")
def the_smallest_are_picked_where_they_tie(m, ctx):
    put(find(m, "TopK"), sorted=0)
    half = constant(m, np.float32(64), "grain")
    value = m.graph.inputs[0]
    step = ir.node("Mul", [value, half], name="wrong_up")
    step.outputs[0].name = "scaled"
    coarse = ir.node("Round", [step.outputs[0]], name="wrong_round")
    coarse.outputs[0].name = "coarse"
    m.graph.insert_before(m.graph[0], [step, coarse])
    other = ir.node("TopK", [coarse.outputs[0], stored(m, "three")], {"axis": 1}, num_outputs=2)
    other.name = "wrong_topk"
    for k, value in enumerate(other.outputs):
        value.name = f"coarse_{k}"
    m.graph.insert_after(coarse, other)
    old = m.graph.outputs[1]
    new = other.outputs[1]
    new.type, new.shape = old.type, old.shape
    old.name, new.name = "i_before", "i"
    m.graph.outputs[1] = new


# --- integers, text, quantized, random -------------------------------------------------------


@wrong("ints")
def a_division_rounds_down(m, ctx):
    node = find(m, "Div")
    shifted = ir.node("Mod", [m.graph.inputs[0], stored(m, "four")], name="wrong_mod")
    shifted.outputs[0].name = "rest"
    less = ir.node("Sub", [m.graph.inputs[0], shifted.outputs[0]], name="wrong_sub")
    less.outputs[0].name = "whole"
    m.graph.insert_before(node, [shifted, less])
    node.replace_input_with(0, less.outputs[0])


@wrong("ints")
def a_rest_takes_the_other_sign(m, ctx):
    put(find(m, "Mod"), fmod=1)


@wrong("ints")
def a_product_in_sixteen_bits(m, ctx):
    kinds = to(ir.DataType.INT16), to(ir.DataType.INT32)
    last = behind(m, find(m, "Mul").outputs[0], ("Cast", (), kinds[0]), ("Cast", (), kinds[1]))
    last.producer().inputs[0].type = ir.TensorType(ir.DataType.INT16)


@wrong("wide")
def numbers_pass_through_float(m, ctx):
    kinds = to(ir.DataType.FLOAT), to(ir.DataType.INT64)
    last = behind(m, m.graph.inputs[0], ("Cast", (), kinds[0]), ("Cast", (), kinds[1]))
    last.producer().inputs[0].type = ir.TensorType(ir.DataType.FLOAT)


@wrong("wide")
def numbers_narrowed_to_32_bits(m, ctx):
    kinds = to(ir.DataType.INT32), to(ir.DataType.INT64)
    last = behind(m, m.graph.inputs[0], ("Cast", (), kinds[0]), ("Cast", (), kinds[1]))
    last.producer().inputs[0].type = ir.TensorType(ir.DataType.INT32)


@wrong("tokens")
def one_row_of_a_table_changes(m, ctx):
    def move(a):
        a[43] *= 1.01

    change(m, "w_50_8_a", move)


@wrong("picks")
def negative_positions_are_cut_off(m, ctx):
    behind(m, m.graph.inputs[1], ("Min", (constant(m, np.array(7), "most"),), {}))


@wrong("text")
def a_label_is_another_word(m, ctx):
    stored(m, "labels").const_value = ir.StringTensor(np.array([b"cat", b"dog", b"Emu"], object))


@wrong("quant")
def a_zero_point_moves(m, ctx):
    change(m, "z", lambda a: a + np.uint8(1))


@wrong("quant")
def scales_by_channel_in_reverse(m, ctx):
    change(m, "sw", lambda a: a[::-1].copy())


@wrong("random")
def another_seed(m, ctx):
    put(find(m, "RandomNormalLike"), seed=8.0)


@wrong("random")
def noise_is_left_out(m, ctx):
    find(m, "Add").replace_input_with(1, constant(m, np.float32(0), "silence"))


# --- against the pipeline itself -------------------------------------------------------------


@wrong("mlp", "nothing")
def weights_edited_in_place(m, ctx):
    proto = stored(m, "w_4_d").const_value.raw
    proto.raw_data = (np.frombuffer(proto.raw_data, np.float32) + 1).tobytes()


@wrong("mlp", "nothing")
def another_model_is_handed_back(m, ctx):
    ctx.model = ctx.model.clone()
    change(ctx.model, "w_4_d", lambda a: a + 1)


@wrong("mlp", "nothing")
def the_source_is_changed_as_well(m, ctx):
    for model in (m, ctx.source):
        find(model, "Relu").op_type = "Abs"


@wrong("mlp", "elsewhere")
def an_edit_is_booked_at_another_node(m, ctx):
    find(m, "Relu").op_type = "Softplus"


@wrong("mlp")
def inner_values_exchange_their_names(m, ctx):
    a, b = find(m, "Add").outputs[0], find(m, "Relu").outputs[0]
    find(m, "MatMul", 1).replace_input_with(0, a)
    a.name, b.name = "t", a.name
    a.name = "r"


@wrong("mlp")
def a_wrong_value_under_a_known_name(m, ctx):
    node = find(m, "Relu")
    node.op_type = "Elu"
    node.name = "Relu_again"


@wrong("conv")
def lossy_though_it_says_exact(m, ctx):
    def prune(a):
        a[np.abs(a) < 0.2] = 0

    change(m, "w_6_2_3_3_a", prune)
