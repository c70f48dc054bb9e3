"""`quantization_config`: what is written, and what readers refuse."""

from typing import Any

import pytest

from bitbudget.checkpoint.native import NativeConfig, stored_names
from bitbudget.errors import InputError
from bitbudget.storage import Choice

CONFIG = {
    "quant_method": "bitbudget",
    "format_version": 1,
    "choices": ["int4:g8", "int2"],
    "layers": {"a": 0, "b": 1, "c": 0},
}


def test_round_trip() -> None:
    config = NativeConfig({"a": Choice.parse("int4:g8"), "b": Choice.parse("int2"), "c": Choice.parse("int4:g8")})
    assert config.to_dict() == CONFIG
    assert NativeConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "change, message",
    [
        ({"quant_method": "gptq"}, "quant_method 'gptq'"),
        ({"quant_method": None}, "quant_method None"),
        ({"format_version": 2}, "format version 2; this bitbudget reads versions up to 1"),
        ({"format_version": 0}, "no valid format_version"),
        ({"format_version": "1"}, "no valid format_version"),
        ({"format_version": True}, "no valid format_version"),
        ({"format_version": None}, "no valid format_version"),
        ({"choices": None}, "lists"),
        ({"layers": []}, "lists"),
        ({"layers": {"a": 2}}, "layer a the choice 2 of 2"),
        ({"layers": {"a": -1}}, "layer a the choice -1"),
        ({"layers": {"a": "0"}}, "layer a the choice '0'"),
        ({"layers": {"a": True}}, "layer a the choice True"),
        ({"choices": ["int4:g8", "int4:planes"]}, "at character 6"),
        ({"choices": ["int4:g8", 3]}, "at character 1"),
        ({"choices": ["int4:g8", "fp16"]}, "lists layer b as fp16"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NativeConfig.from_dict(CONFIG | change)


def test_names_in_the_file() -> None:
    names = stored_names("model.head", Choice.parse("int4"), (8, 8))
    assert names == ("model.head.weight", "model.head.dense.codes", "model.head.dense.scale", "model.head.dense.zero")
