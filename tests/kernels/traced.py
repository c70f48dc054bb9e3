"""Run as a program, without the checks of shapes, which no graph can hold: compiled and exported modules give the same numbers.

Argument: a choice. Prints "same" for each check.
"""

import sys

import torch

from bitbudget.kernels import QuantLinear, use_kernels
from bitbudget.rounding import nearest
from bitbudget.storage import Choice, StoredWeight


def main() -> None:
    torch.manual_seed(0)
    plain = nearest(torch.randn(50, 128), Choice.parse(sys.argv[1]))
    weight = StoredWeight.from_tensors(plain.choice, plain.shape, plain.tensors(), torch.randn(50))
    module = QuantLinear.from_stored(weight)
    assert use_kernels(module) == {}
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            for count in (1, 5, 17):
                x = torch.randn(count, 128).to(dtype)
                assert torch.equal(compiled(x), module(x))
                print("same")
        program = torch.export.export(module, (x,))
        assert "bitbudget.packed_linear" in str(program.graph)
        assert torch.equal(program.module()(x), module(x))
        print("same")


if __name__ == "__main__":
    main()
