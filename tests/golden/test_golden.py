"""Every golden checkpoint decodes to the bits that it decoded to when its format version was new."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import bitbudget  # noqa: F401  registers the format
from bitbudget.checkpoint.native import FORMAT_VERSION, NativeConfig
from bitbudget.errors import InputError
from bitbudget.pipeline.verify import open_folder

GOLDEN = sorted(path for path in Path(__file__).parent.glob("v*") if path.is_dir())


def test_there_is_one_for_every_version() -> None:
    assert [path.name for path in GOLDEN] == [f"v{number}" for number in range(1, FORMAT_VERSION + 1)]


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.name)
def test_decodes_to_the_same_bits(golden: Path) -> None:
    folder = open_folder(golden)
    decoded = json.loads((golden / "decoded.json").read_text())
    assert folder.config.layers.keys() == decoded.keys()
    for name, entry in decoded.items():
        weight = folder.weights.stored(name)
        assert str(weight.choice) == entry["choice"]
        assert sha256(weight.dequantize().numpy().tobytes()).hexdigest() == entry["sha256"], name


@pytest.mark.usefixtures("reference_kernels")
@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.name)
def test_transformers_loads_and_multiplies_with_the_same_weights(golden: Path) -> None:
    folder = open_folder(golden)
    model = AutoModelForCausalLM.from_pretrained(golden, dtype=torch.float32)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    for name in folder.config.layers:
        module = model.get_submodule(name)
        weight = folder.weights.stored(name).dequantize()
        if name.endswith("embed_tokens"):
            assert torch.equal(module(torch.arange(128)), weight)
        elif weight.shape[1] == 64:
            torch.testing.assert_close(module(x), x @ weight.T)


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(GOLDEN[-1], tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"]["format_version"] = FORMAT_VERSION + 1
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"format version {FORMAT_VERSION + 1}"):
        open_folder(copy)


def test_an_unknown_kind_of_part_is_refused_by_name() -> None:
    stored = {"quant_method": "bitbudget", "format_version": 1, "choices": ["int4:g32+lowrank:8"], "layers": {"a": 0}}
    with pytest.raises(InputError, match="lowrank"):
        NativeConfig.from_dict(stored)
