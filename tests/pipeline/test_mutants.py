"""Every check of `verify` is proven by a damaged file: it fails, and names what is damaged."""

import json
from collections.abc import Callable
from pathlib import Path

import mutants
import numpy as np
import pytest

from bitbudget.models.source import SourceModel
from bitbudget.pipeline.progress import Run
from bitbudget.pipeline.record import RECORD_NAME
from bitbudget.pipeline.texts import Cut
from bitbudget.pipeline.verify import Verification, verify_folder

Q = "model.layers.0.self_attn.q_proj"
GATE = "model.layers.1.mlp.gate_proj"
GAIN = "model.layers.1.input_layernorm.weight"
SHORT = Cut(window=24, tokens=48)


def flip(values: np.ndarray) -> None:
    values[len(values) // 2] ^= 1


def setter(value: float, place: int = 3) -> Callable[[np.ndarray], None]:
    def change(values: np.ndarray) -> None:
        values[place] = value

    return change


def verification(folder: Path, original: Path | None) -> Verification:
    return verify_folder(folder, SourceModel.open(original) if original else None, None, Run("cpu"), SHORT)


def assert_found(folder: Path, original: Path | None, *words: str) -> None:
    found = verification(folder, original)
    assert not found.passed
    assert any(all(word in problem for word in words) for problem in found.problems), found.problems


def test_unharmed_folder_passes(finished: Path, original: Path) -> None:
    found = verification(finished, original)
    assert found.passed, found.problems
    assert found.measurement is not None and found.measurement.kl is not None and found.measurement.kl > 0
    assert verification(finished, None).passed


@pytest.mark.parametrize(
    ("name", "itemtype", "change"),
    [
        (f"{Q}.dense1.codes", "u1", flip),
        (f"{Q}.dense0.codes", "u1", flip),
        (f"{GATE}.dense1.scale", "<u2", flip),
        (f"{GATE}.dense1.zero", "u1", flip),
        (f"{GATE}.dense0.rows", "<u2", flip),
        (f"{Q}.outliers.columns", "<u2", flip),
        (f"{Q}.outliers.values", "<u2", flip),
        (f"{Q}.outliers.row_pointers", "<i4", flip),
        (f"{Q}.bias", "<u2", flip),
        (GAIN, "<u2", flip),
        ("lm_head.weight", "<u2", flip),
        ("model.embed_tokens.dense.codes", "u1", flip),
    ],
)
def test_one_bit(copy: Path, name: str, itemtype: str, change: Callable[[np.ndarray], None]) -> None:
    mutants.edit(copy, name, change, itemtype)
    assert_found(copy, None, name, "SHA-256")


@pytest.mark.parametrize("name", [f"{Q}.bias", GAIN, "lm_head.weight"])
def test_forged_hash_of_a_kept_tensor_is_seen_against_the_original(copy: Path, original: Path, name: str) -> None:
    mutants.edit(copy, name, flip, "<u2")
    mutants.forge(copy, name)
    assert verification(copy, None).passed
    assert_found(copy, original, name, "bit for bit")


@pytest.mark.parametrize(
    ("name", "itemtype", "change", "words"),
    [
        (f"{GATE}.dense1.scale", "<f2", setter(0.0), (GATE, "dense1.scale", "zero")),
        (f"{GATE}.dense1.scale", "<f2", setter(-0.01), (GATE, "dense1.scale", "negative")),
        (f"{GATE}.dense1.scale", "<f2", setter(np.nan), (f"{GATE}.dense1.scale", "NaN")),
        (f"{GATE}.dense1.scale", "<f2", setter(np.inf), (f"{GATE}.dense1.scale", "infinity")),
        (f"{Q}.outliers.values", "<f2", setter(np.nan), (f"{Q}.outliers.values", "NaN")),
        (GAIN, "<u2", setter(0x7F80), (GAIN, "infinity")),
        (f"{Q}.outliers.columns", "<u2", setter(64), (Q, "outside the 64 columns")),
        (f"{Q}.outliers.row_pointers", "<i4", setter(10**6), (Q, "row_pointers")),
        (f"{GATE}.dense0.rows", "<u2", setter(0), (GATE, "ascending")),
        (f"{GATE}.dense0.rows", "<u2", setter(999, -1), (GATE, "ascending list of rows below 150")),
    ],
)
def test_forged_hash_of_an_illegal_value_is_seen(
    copy: Path, name: str, itemtype: str, change: Callable[[np.ndarray], None], words: tuple[str, ...]
) -> None:
    mutants.edit(copy, name, change, itemtype)
    mutants.forge(copy, name)
    assert_found(copy, None, *words)


def test_forged_order_of_csr_columns(copy: Path) -> None:
    def reverse(values: np.ndarray) -> None:
        values[:] = values[::-1].copy()

    mutants.edit(copy, f"{Q}.outliers.columns", reverse, "<u2")
    mutants.forge(copy, f"{Q}.outliers.columns")
    assert_found(copy, None, Q, "do not ascend within a row")


def test_forged_row_stored_twice(copy: Path) -> None:
    def last_to_next(values: np.ndarray) -> None:
        missing = sorted(set(range(150)) - set(values.tolist()))
        values[-1] = next(row for row in missing if row > values[-2])

    mutants.edit(copy, f"{GATE}.dense0.rows", last_to_next, "<u2")
    mutants.forge(copy, f"{GATE}.dense0.rows")
    assert_found(copy, None, GATE, "instead of once")


def test_swapped_tensors(copy: Path, original: Path) -> None:
    one, other = "model.layers.0.self_attn.k_proj.bias", "model.layers.0.self_attn.v_proj.bias"
    mutants.swap(copy, one, other)
    assert_found(copy, None, one, "SHA-256")
    mutants.forge(copy, one, other)
    assert_found(copy, original, other, "bit for bit")


@pytest.mark.parametrize("name", [f"{Q}.dense1.scale", f"{Q}.bias", GAIN, f"{Q}.weight"])
def test_missing_tensor(copy: Path, name: str) -> None:
    mutants.drop(copy, name)
    assert_found(copy, None, name)


def test_misindexed_tensor(copy: Path) -> None:
    mutants.misindex(copy, GAIN)
    assert_found(copy, None, GAIN)


def test_a_tensor_that_the_record_forgot_is_seen(copy: Path, original: Path) -> None:
    mutants.drop(copy, GAIN)
    record = json.loads((copy / RECORD_NAME).read_text())
    del record["tensors"][GAIN]
    (copy / RECORD_NAME).write_text(json.dumps(record))
    assert_found(copy, original, GAIN)


def test_bytes_that_differ_from_the_prediction(copy: Path) -> None:
    record = json.loads((copy / RECORD_NAME).read_text())
    record["output"]["weights_bytes"] += 1
    (copy / RECORD_NAME).write_text(json.dumps(record))
    assert_found(copy, None, "bytes", "predicted")


def test_truncated_shard(copy: Path) -> None:
    shard = sorted(copy.glob("model-*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1])
    assert_found(copy, None, shard.name)


def test_choice_of_a_layer_changed_in_the_config(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"]["choices"].append("int4:g32")
    config["quantization_config"]["layers"][Q] = len(config["quantization_config"]["choices"]) - 1
    (copy / "config.json").write_text(json.dumps(config))
    assert_found(copy, None, Q)


def test_another_original(finished: Path, original: Path, model_copy: Callable[[], Path]) -> None:
    other = model_copy()
    mutants.edit(other, f"{Q}.weight", flip, "<u2")
    assert_found(finished, other, Q, "another weight")


def test_verification_changes_nothing(copy: Path, original: Path) -> None:
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    verification(copy, original)
    assert before == {path.name: path.read_bytes() for path in copy.iterdir()}
