"""An ONNX model with one MatMulNBits node for each copy of a matrix, all with the same input."""

import numpy
import onnx
from onnx import TensorProto, helper


def graph_of_products(shape: tuple[int, int], bits: int, group: int, copies: int) -> bytes:
    """The serialized model; weights [rows, columns] by chance."""
    rows, columns = shape
    draw = numpy.random.default_rng(0)
    blocks = columns // group
    nodes, initializers, outputs = [], [], []
    for copy in range(copies):
        weight = draw.integers(0, 256, (rows, blocks, group * bits // 8), dtype=numpy.uint8)
        scales = draw.random((rows, blocks), dtype=numpy.float32)
        initializers.append(onnx.numpy_helper.from_array(weight, f"w{copy}"))
        initializers.append(onnx.numpy_helper.from_array(scales, f"s{copy}"))
        outputs.append(helper.make_tensor_value_info(f"y{copy}", TensorProto.FLOAT, [None, rows]))
        nodes.append(
            helper.make_node(
                "MatMulNBits", ["x", f"w{copy}", f"s{copy}"], [f"y{copy}"], domain="com.microsoft",
                K=columns, N=rows, bits=bits, block_size=group, accuracy_level=4,
            )
        )  # fmt: skip
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, columns])]
    graph = helper.make_graph(nodes, "products", inputs, outputs, initializers)
    versions = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=versions, ir_version=9).SerializeToString()
