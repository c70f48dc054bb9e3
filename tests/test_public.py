"""The names that a library user sees."""

import subprocess
import sys
from pathlib import Path

import bitbudget


def test_five_verbs() -> None:
    for name in bitbudget.__all__:
        assert callable(getattr(bitbudget, name)), name


def test_the_story_of_the_docstring(tmp_path: Path) -> None:
    assert bitbudget.forecast("demo", probe=False).now.weights_bytes == 11_540_992
    record = bitbudget.quantize("demo", "int4:g128", tmp_path / "out", embedding="int8:g128")
    assert record["verification"]["passed"]
    assert bitbudget.verify(tmp_path / "out", against="demo", tokens=200).passed
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"It was the {word} of times." for word in ("best", "worst", "first", "last") * 60))
    measured = bitbudget.evaluate(tmp_path / "out", text, against="demo", window=64, tokens=200)
    assert measured.kl is not None and 0 < measured.kl < 0.1
    assert bitbudget.load(tmp_path / "out").get_submodule("model.layers.0.mlp.up_proj").choice is not None


def test_import_is_light() -> None:
    code = "import sys, bitbudget; assert not {'torch', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
