"""Blocks run one at a time give what the whole model gives, bit for bit, with one block in memory."""

import pytest
import torch
from torch import Tensor, nn

from bitbudget.errors import InputError
from bitbudget.models.source import SourceModel
from bitbudget.models.stream import BlockStream, CheckpointWeights
from zoo import ARCHITECTURES, HELD_OUT, MIXTURES, VOCABULARY

CPU = torch.device("cpu")
ALL = [*ARCHITECTURES, *HELD_OUT, *MIXTURES]


class WatchedWeights(CheckpointWeights):
    """Remembers what was asked for, and may change a tensor on its way."""

    def __init__(self, checkpoint) -> None:
        super().__init__(checkpoint)
        self.change: str | None = None
        self.tensors: list[str] = []
        self.rows_read: list[tuple[str, list[int]]] = []

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        self.tensors.append(name)
        return super().tensor(name, dtype) * (1.5 if name == self.change else 1)

    def rows(self, name: str, ids: Tensor) -> Tensor:
        self.rows_read.append((name, ids.tolist()))
        return super().rows(name, ids) * (1.5 if name == self.change else 1)


def stream_of(folder, dtype: torch.dtype = torch.float32, **options) -> BlockStream:
    source = SourceModel.open(folder, **options)
    return BlockStream(source, WatchedWeights(source.checkpoint), CPU, dtype)


def assert_equal_logits(stream: BlockStream, sequences, expected) -> None:
    logits = list(stream.logits(stream.forward(sequences)))
    assert [tuple(entry.shape) for entry in logits] == [(len(sequence), VOCABULARY) for sequence in sequences]
    for ours, theirs in zip(logits, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ALL)
def test_streamed_logits_equal_the_whole_models(zoo, name, sequences, whole_logits):
    folder = zoo(name)
    expected = whole_logits(folder, sequences)
    assert expected[-1].std() > 2
    assert_equal_logits(stream_of(folder), sequences, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALL)
def test_so_they_do_for_sharded_16_bit_files(zoo, name, dtype, sequences, whole_logits):
    folder = zoo(name, dtype=dtype, shards=5, seed=1)
    assert_equal_logits(stream_of(folder), sequences, whole_logits(folder, sequences))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "gpt2", "qwen3_moe"])
def test_so_they_do_in_bf16(zoo, name, sequences, whole_logits):
    folder = zoo(name, dtype=torch.bfloat16, shards=5, seed=1)
    assert_equal_logits(
        stream_of(folder, torch.bfloat16), sequences, whole_logits(folder, sequences, dtype=torch.bfloat16)
    )


@pytest.mark.parametrize("name", ["mistral", "gemma3", "smollm3"])
def test_so_they_do_with_another_attention(zoo, name, sequences, whole_logits):
    expected = whole_logits(zoo(name), sequences, attn_implementation="eager")
    assert_equal_logits(stream_of(zoo(name), attn_implementation="eager"), sequences, expected)


def test_so_they_do_without_the_prefix_in_the_file(edited, sequences, whole_logits):
    folder = edited("gpt2", lambda tensors: {name.removeprefix("transformer."): t for name, t in tensors.items()})
    assert_equal_logits(stream_of(folder), sequences, whole_logits(folder, sequences))


def test_so_they_do_beside_a_vision_tower_which_is_never_read(vision_model, sequences, whole_logits):
    stream = stream_of(vision_model)
    assert_equal_logits(stream, sequences, whole_logits(vision_model, sequences))
    assert not [name for name in stream._filler.weights.tensors if "vision" in name]


@pytest.mark.parametrize("shift", [0, 1])
def test_so_they_do_for_ties_stored_twice(edited, sequences, whole_logits, shift):
    folder = edited(
        "llama_tied", lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + shift}
    )
    assert_equal_logits(stream_of(folder), sequences, whole_logits(folder, sequences))


@pytest.mark.parametrize("name", ALL)
def test_no_tensor_of_the_file_is_lost(zoo, name, sequences):
    # Many tokens, so that every expert has some.
    source = SourceModel.open(zoo(name))
    weights = WatchedWeights(source.checkpoint)
    stream = BlockStream(source, weights, CPU, torch.float32)

    def logits() -> Tensor:
        return next(stream.logits(stream.forward(sequences[-1:])))

    usual = logits()
    for tensor in source.checkpoint.tensors:
        weights.change = tensor
        assert not torch.equal(logits(), usual), tensor


def test_one_block_is_in_memory_and_none_after(zoo, sequences):
    stream = stream_of(zoo("llama"))
    filled: list[set[str]] = []

    def look(*_) -> None:
        filled.append({name for name, parameter in stream.model.named_parameters() if not parameter.is_meta})

    for block in stream.model.model.layers:
        block.self_attn.register_forward_hook(look)
    states = stream.forward(sequences)
    assert all(len({name.split(".")[2] for name in names}) == 1 for names in filled)
    assert all(name.startswith("model.layers.") for names in filled for name in names)
    list(stream.logits(states))
    assert all(parameter.is_meta for parameter in stream.model.parameters())


def test_only_the_embedding_rows_that_occur_are_read_and_the_head_once(zoo, sequences):
    stream = stream_of(zoo("llama"))
    states = stream.forward(sequences)
    weights = stream._filler.weights
    assert "model.embed_tokens.weight" not in weights.tensors and "lm_head.weight" not in weights.tensors
    asked = {(name, tuple(ids)) for name, ids in weights.rows_read}
    wanted = [*sequences, sequences[0][:8]]
    assert asked == {("model.embed_tokens.weight", tuple(sorted(set(each.tolist())))) for each in wanted}
    weights.tensors.clear()
    list(stream.logits(states))
    assert weights.tensors == ["model.norm.weight", "lm_head.weight"]


def test_arguments_of_equal_sequences_are_stored_once(zoo, sequences):
    states = stream_of(zoo("gemma3")).start(sequences)
    assert states.calls[1] is states.calls[2]
    masks = {id(call.kwargs["attention_mask"]) for call in states.calls[1]}
    assert len(masks) == 2  # sliding and full


def test_states_can_go_two_ways(zoo, sequences):
    stream = stream_of(zoo("llama"))
    states = stream.start(sequences)
    other = states.copy()
    stream.run_block(0, states)
    stream.run_block(0, other)
    assert all(map(torch.equal, states.hidden, other.hidden))
    with pytest.raises(ValueError, match="before block 1"):
        stream.run_block(0, states)
    with pytest.raises(ValueError, match="not after the last"):
        next(stream.logits(states))


def test_blocks_and_tail_carry_gradients_when_asked(zoo, sequences):
    stream = stream_of(zoo("llama"))
    states = stream.start(sequences[1:2])
    hidden = states.hidden[0].clone().requires_grad_(True)
    with stream.loaded(0) as block:
        block.mlp.down_proj.weight.requires_grad_(True)
        stream.finish(states, 0, stream.call(0, states, 0, hidden)).logsumexp(-1).sum().backward()
        assert block.mlp.down_proj.weight.grad.abs().sum() > 0
    assert hidden.grad.abs().sum() > 0
    stream.free()
    assert all(parameter.is_meta for parameter in stream.model.parameters())


def test_a_block_is_freed_when_its_caller_fails(zoo, sequences):
    stream = stream_of(zoo("llama"))
    with pytest.raises(KeyError), stream.loaded(1):
        raise KeyError
    assert all(parameter.is_meta for parameter in stream.model.parameters())


def test_random_state_threads_and_gradient_mode_stay(zoo, sequences):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    stream = stream_of(zoo("opt"))  # its config has dropout
    first = list(stream.logits(stream.forward(sequences)))
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled() and not first[0].requires_grad
    assert all(map(torch.equal, first, stream.logits(stream.forward(sequences))))


def test_progress_is_told_after_each_block(zoo, sequences):
    told = []
    stream_of(zoo("llama")).forward(sequences, lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("ids", "message"),
    [([], "is empty"), ([3, VOCABULARY], f"from 3 to {VOCABULARY}"), ([-1, 2], "from -1 to 2")],
)
def test_bad_sequences_are_refused(zoo, ids, message):
    with pytest.raises(InputError, match=message):
        stream_of(zoo("llama")).start([torch.tensor([1, 2]), torch.tensor(ids, dtype=torch.long)])


def test_no_sequences_are_refused(zoo):
    with pytest.raises(InputError, match="no sequence"):
        stream_of(zoo("llama")).start([])


class TestModelsWhoseBlocksAreNoStraightChain:
    """Hooks make a Llama do what some models do between their blocks."""

    @staticmethod
    def hooked(zoo, index: int, change) -> BlockStream:
        stream = stream_of(zoo("llama"))

        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            return change(args, kwargs)

        stream.model.model.layers[index].register_forward_pre_hook(hook, with_kwargs=True)
        return stream

    def test_something_is_added_between_blocks(self, zoo, sequences):
        stream = self.hooked(zoo, 1, lambda args, kwargs: ((args[0] + 1, *args[1:]), kwargs))
        with pytest.raises(
            InputError, match=r"block 1 \(model\.layers\.1, LlamaDecoderLayer\) receives something else"
        ):
            stream.start(sequences)

    def test_an_argument_depends_on_hidden_states(self, zoo, sequences):
        stream = self.hooked(zoo, 2, lambda args, kwargs: (args, kwargs | {"memory": args[0].mean()}))
        with pytest.raises(InputError, match="block 2 .*'memory', which depends on what other blocks return"):
            stream.start(sequences)

    def test_an_argument_could_carry_values(self, zoo, sequences):
        stream = self.hooked(zoo, 1, lambda args, kwargs: (args, kwargs | {"shared": {}}))
        with pytest.raises(InputError, match="block 1 .*'shared' with a dict"):
            stream.start(sequences)

    def test_the_end_depends_on_the_embedding(self, zoo, sequences):
        stream = stream_of(zoo("llama"))
        kept = []
        stream.model.model.embed_tokens.register_forward_hook(lambda module, args, output: kept.append(output))
        stream.model.model.norm.register_forward_pre_hook(lambda module, args: (args[0] + kept[-1],))
        with pytest.raises(InputError, match="depends on more than its last block's result"):
            stream.start(sequences)
