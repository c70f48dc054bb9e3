"""Tiny random models of many architectures, saved as ordinary Hugging Face folders.

Every parameter is random and large enough to matter: gains 0.5 to 2, biases of the size of the outputs, logits of
standard deviation 3. A gain or bias that gets lost therefore shows.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    StableLmConfig,
)
from transformers.pytorch_utils import Conv1D

WIDTH = 64
VOCABULARY = 503
TEXT_VOCABULARY = 4096  # of the demo tokenizer
WINDOW = 12
LOGIT_DEVIATION = 3.0
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
TOKENIZER_FOLDERS = ("src/bitbudget/data/books-6m", "../shared/models/books-6m")  # seen from the repository's root

ENDS = MappingProxyType({"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None})
COMMON = MappingProxyType({
    **ENDS, "hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 256,
})  # fmt: skip
GROUPED = MappingProxyType({**COMMON, "num_key_value_heads": 2, "intermediate_size": 150})
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
GEMMA = MappingProxyType({
    **GROUPED, "num_hidden_layers": 4, "head_dim": 24, "query_pre_attn_scalar": 20, "sliding_window": WINDOW,
    "layer_types": ALTERNATING,
})  # fmt: skip
# grouped matrix products want rows of a multiple of 16 bytes
EXPERTS = MappingProxyType({**GROUPED, "intermediate_size": 152, "num_experts_per_tok": 2})

Builder = Callable[[int], PreTrainedConfig]  # vocabulary -> config

ARCHITECTURES: Mapping[str, Builder] = MappingProxyType({
    "llama": lambda vocab: LlamaConfig(vocab_size=vocab, tie_word_embeddings=False, **GROUPED),
    "llama_tied": lambda vocab: LlamaConfig(vocab_size=vocab, tie_word_embeddings=True, mlp_bias=True, **GROUPED),
    "mistral": lambda vocab: MistralConfig(vocab_size=vocab, sliding_window=WINDOW, **GROUPED),
    "qwen2": lambda vocab: Qwen2Config(vocab_size=vocab, **GROUPED),
    "qwen3": lambda vocab: Qwen3Config(vocab_size=vocab, head_dim=24, tie_word_embeddings=True, **GROUPED),
    "gemma2": lambda vocab: Gemma2Config(vocab_size=vocab, **GEMMA),
    "gemma3": lambda vocab: Gemma3TextConfig(vocab_size=vocab, **GEMMA),
    "phi": lambda vocab: PhiConfig(vocab_size=vocab, **(COMMON | {"intermediate_size": 150})),
    "opt": lambda vocab: OPTConfig(
        vocab_size=vocab, ffn_dim=150, word_embed_proj_dim=40, do_layer_norm_before=True, **COMMON
    ),
    "gpt2": lambda vocab: GPT2Config(
        vocab_size=vocab, n_embd=WIDTH, n_layer=3, n_head=4, n_positions=256, n_inner=150, **ENDS
    ),
    "phi3": lambda vocab: Phi3Config(vocab_size=vocab, sliding_window=WINDOW, **GROUPED),
    "smollm3": lambda vocab: SmolLM3Config(vocab_size=vocab, no_rope_layer_interval=2, **GROUPED),
})  # fmt: skip

HELD_OUT: Mapping[str, Builder] = MappingProxyType({
    "gpt_neox": lambda vocab: GPTNeoXConfig(
        vocab_size=vocab, tie_word_embeddings=False, **(COMMON | {"intermediate_size": 150})
    ),
    "stablelm": lambda vocab: StableLmConfig(vocab_size=vocab, use_qkv_bias=True, **GROUPED),
    "olmo2": lambda vocab: Olmo2Config(vocab_size=vocab, **GROUPED),
})  # fmt: skip

MIXTURES: Mapping[str, Builder] = MappingProxyType({
    "mixtral": lambda vocab: MixtralConfig(vocab_size=vocab, num_local_experts=4, **EXPERTS),
    "qwen3_moe": lambda vocab: Qwen3MoeConfig(
        vocab_size=vocab, num_experts=4, moe_intermediate_size=40, head_dim=24, **EXPERTS
    ),
})  # fmt: skip


def make_model(
    name: str,
    folder: Path,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
    text: bool = False,
) -> Path:
    """Writes the model called `name` in one of the dicts above into `folder` and returns the folder.

    With `text` it has the demo tokenizer and its vocabulary. `shards` is about how many files there will be.
    """
    builders = {**ARCHITECTURES, **HELD_OUT, **MIXTURES}
    config = builders[name](TEXT_VOCABULARY if text else VOCABULARY)
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    randomize(model, seed)
    model.to(dtype).config.dtype = dtype
    total = sum(parameter.nbytes for parameter in model.parameters())
    model.save_pretrained(folder, max_shard_size=total // shards + 1 if shards > 1 else "1GB")
    if text:
        copy_tokenizer(folder)
    return folder


def copy_tokenizer(folder: Path) -> None:
    """Puts the demo tokenizer's files into a model folder."""
    root = Path(__file__).resolve().parent.parent
    source = next(root / place for place in TOKENIZER_FOLDERS if (root / place / TOKENIZER_FILES[0]).is_file())
    for name in TOKENIZER_FILES:
        shutil.copy(source / name, folder / name)


@torch.no_grad()
def randomize(model: PreTrainedModel, seed: int) -> None:
    """Fills every parameter from the seed and scales embeddings or head until the logits' deviation is 3."""
    generator = torch.Generator().manual_seed(seed)
    shift = 1.0 if model.config.model_type.startswith("gemma") else 0.0  # Gemma's gains are 1 + weight
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            parameter.copy_(_random(module, name, parameter, shift, generator))
    ids = torch.randint(model.config.vocab_size, (1, 64), generator=generator)
    scaled = model.get_output_embeddings()
    for _ in range(4):  # a tied table changes what enters the blocks too, so one step is not enough
        factor = LOGIT_DEVIATION / float(model(ids, use_cache=False).logits.std())
        scaled.weight.mul_(factor)
        if scaled.bias is not None:
            scaled.bias.mul_(factor)


def _random(module: nn.Module, name: str, parameter: Tensor, shift: float, generator: torch.Generator) -> Tensor:
    if parameter.dim() == 1 and name == "weight":
        return 0.5 + 1.5 * torch.rand(parameter.shape, generator=generator) - shift
    values = torch.randn(parameter.shape, generator=generator)
    if parameter.dim() == 1:
        return 0.7 * values
    if isinstance(module, nn.Embedding):
        return values
    return values / parameter.shape[0 if isinstance(module, Conv1D) else -1] ** 0.5
