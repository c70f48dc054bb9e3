"""What a fold does to tensors, how folds add up, and that they come back from the disk as they were."""

import pytest
import torch

from bitbudget.errors import InputError, OutputError
from bitbudget.models.source import SourceModel
from bitbudget.models.weights import CheckpointWeights, Weights
from bitbudget.transforms.fold import Factors, Fold, FoldedWeights
from zoo import ARCHITECTURES, HELD_OUT, MIXTURES

ALL = [*ARCHITECTURES, *HELD_OUT, *MIXTURES]


def scaled(rows: list[float] | None, columns: list[float] | None, name: str = "a.weight", reason: str = "r") -> Fold:
    vectors = (None if values is None else torch.tensor(values) for values in (rows, columns))
    return Fold({}, {name: Factors(*vectors)}, {name: reason})


def gain(values: list[float], name: str = "norm.weight") -> Fold:
    return Fold({name: torch.tensor(values, dtype=torch.bfloat16)}, {}, {name: "gain"})


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, dtype) for name in ALL for dtype in (torch.float32, torch.bfloat16)),
        *((name, torch.float16) for name in ("llama", "gemma3", "opt", "gpt2")),
    ],
)
def test_a_folded_model_computes_what_the_original_does(zoo, name, dtype, stream_of, groups_of, random_fold, sequences):
    folder = zoo(name, dtype=dtype)
    stream = stream_of(folder)
    groups = groups_of(stream, sequences)
    fold = random_fold(stream.source, groups)
    # Nothing is left out quietly: every group's consumers are scaled.
    assert {f"{layer}.weight" for group in groups for layer in group.consumers} <= fold.factors.keys()
    folded = stream_of(folder, fold)
    for ours, theirs in zip(
        folded.logits(folded.forward(sequences)), stream.logits(stream.forward(sequences)), strict=True
    ):
        assert (ours - theirs).norm() <= 5e-6 * theirs.norm()


def test_apply_multiplies_in_fp32_and_leaves_other_tensors_alone():
    tensor = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.bfloat16)
    fold = scaled([2.0, 1.0], [1.0, 0.1])
    assert fold.apply("b.weight", tensor) is tensor
    result = fold.apply("a.weight", tensor)
    assert result.dtype == torch.float32
    assert torch.equal(result, torch.tensor([[2.0, 0.1 * torch.tensor(4.0)], [3.0, 4 * torch.tensor(0.1)]]))
    original = tensor.float()
    assert fold.apply("a.weight", original) is not original and torch.equal(original, tensor.float())
    assert torch.equal(gain([1.0, 3.0]).apply("norm.weight", torch.ones(2)), torch.tensor([1.0, 3.0]).bfloat16())
    assert Fold.none().apply("a.weight", tensor) is tensor


def test_column_factors_are_those_of_input_features(zoo):
    for name, transposed in (("llama", False), ("gpt2", True)):
        layer = next(layer for layer in SourceModel.open(zoo(name)).layers if layer.kind == "linear")
        assert layer.transposed == transposed
        inputs, outputs = torch.rand(layer.shape[1]), torch.rand(layer.shape[0])
        factors = Factors(inputs, outputs) if transposed else Factors(outputs, inputs)
        fold = Fold({}, {layer.tensor: factors}, {layer.tensor: "test"})
        assert torch.equal(fold.column_factor(layer), inputs)
        assert Fold.none().column_factor(layer) is None


def test_folds_add_up():
    both = scaled([2.0, 4.0], None, reason="rows").then(scaled(None, [3.0, 5.0], reason="columns"))
    assert torch.equal(both.apply("a.weight", torch.ones(2, 2)), torch.tensor([[6.0, 10.0], [12.0, 20.0]]))
    assert both.reasons == {"a.weight": "rows; columns"}
    twice = both.then(scaled(None, [2.0, 2.0]))
    assert torch.equal(twice.factors["a.weight"].columns, torch.tensor([6.0, 10.0]))
    with_gain = both.then(gain([1.0]))
    assert with_gain.reasons.keys() == {"a.weight", "norm.weight"}
    assert with_gain.then(Fold.none()).fingerprint == Fold.none().then(with_gain).fingerprint == with_gain.fingerprint


def test_a_rounded_tensor_is_not_changed_twice():
    with pytest.raises(ValueError, match=r"norm\.weight"):
        gain([1.0]).then(gain([2.0]))
    with pytest.raises(ValueError, match=r"norm\.weight"):
        scaled([1.0], None, "norm.weight").then(gain([2.0]))


def test_it_comes_back_from_the_disk(tmp_path, zoo, stream_of, groups_of, random_fold, sequences):
    stream = stream_of(zoo("opt", dtype=torch.bfloat16))
    fold = random_fold(stream.source, groups_of(stream, sequences))
    fold.save(tmp_path / "fold.safetensors")
    again = Fold.load(tmp_path / "fold.safetensors")
    assert again.fingerprint == fold.fingerprint and again.reasons == fold.reasons
    assert again.replaced.keys() == fold.replaced.keys() and again.factors.keys() == fold.factors.keys()
    assert all(value.dtype == torch.bfloat16 for value in again.replaced.values())
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "fold.safetensors").read_bytes()
    Fold.none().save(tmp_path / "none.safetensors")
    assert Fold.load(tmp_path / "none.safetensors") == Fold.none()


def test_what_cannot_be_read_or_written_is_told(tmp_path):
    path = tmp_path / "fold.safetensors"
    with pytest.raises(InputError, match=r"fold\.safetensors"):
        Fold.load(path)
    for content in (b"", b"nonsense of some length"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="Search them again"):
            Fold.load(path)
    with pytest.raises(OutputError):
        Fold.none().save(tmp_path / "absent" / "fold.safetensors")


def test_fingerprints_depend_on_every_value():
    prints = {
        fold.fingerprint
        for fold in (
            Fold.none(), scaled([2.0], None), scaled(None, [2.0]), scaled([2.5], None), scaled([2.0], None, "b.weight"),
            gain([2.0]), gain([2.0, 1.0]),
        )
    }  # fmt: skip
    assert len(prints) == 7
    assert scaled([2.0], None, reason="other").fingerprint in prints


def test_folded_weights_are_a_source_of_weights(zoo):
    checkpoint = SourceModel.open(zoo("llama", dtype=torch.bfloat16)).checkpoint
    name = "model.embed_tokens.weight"
    table = checkpoint.read(name)
    rows, columns = torch.rand(table.shape[0]), torch.rand(table.shape[1])
    norm = checkpoint.read("model.norm.weight") * 2
    fold = Fold({"model.norm.weight": norm}, {name: Factors(rows, columns)}, {"model.norm.weight": "", name: ""})
    weights = FoldedWeights(CheckpointWeights(checkpoint), fold)
    assert isinstance(weights, Weights)
    whole = table.float() * rows[:, None] * columns
    ids = torch.tensor([5, 2, 5])
    assert torch.equal(weights.rows(name, ids), whole[ids])
    assert torch.equal(weights.tensor(name, torch.float32), whole)
    assert torch.equal(weights.tensor(name, torch.bfloat16), whole.bfloat16())
    assert torch.equal(weights.tensor("model.norm.weight", torch.float32), norm.float())
    plain = FoldedWeights(CheckpointWeights(checkpoint), Fold.none())
    assert torch.equal(plain.rows(name, ids), table[ids])
    assert torch.equal(plain.tensor(name, torch.bfloat16), table)
