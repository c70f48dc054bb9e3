"""The heavy-tailed twin of the demo model: the same function, but weights and activations like those of large models.

The demo's weights are near-Gaussian, so methods that exist because of outliers look useless on it. The twin's logits are
the demo's, and everything that rounds weights finds it harder. In real arithmetic these edits change nothing:

    widen       zero channels and zero neurons; gains shrink by √(d/d'), the norms' epsilon by d/d'
    split       1 % of the residual channels: channel p becomes p and q, both h/√2, read by two columns w/√2
                0.3 % of the neurons: neuron n becomes n and m, read by two columns of down_proj, w/2
    oppose      the two columns become w/√2 + v and w/√2 − v; v: 5 % of the entries, Student t with 2 degrees of freedom
    gains       every channel of a block's norm times 2^k, its consumers' columns times 2^-k; k normal, deviation 0.5
    permute     channels and neurons, so that pairs and zeros fall into all groups

v is scaled until the weights of q, k, v, gate and up together have kurtosis 30. The embedding stays tied: widening and
splitting change table and head alike, and the final norm keeps its gains. Random numbers are made from uniform ones by
exact arithmetic, so that the file is the same everywhere: `SHA256` names it, and it never changes. Stored in bf16, as the
demo is; rounding costs 7e-6 nats per token (in fp32: 2e-12).
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitbudget.data import demo_model_folder

SHA256 = "d6f0e81283c34903ceda43e4fc94b6a0f1f3e616e7cbe0f23ae43a4b5b647375"  # of model.safetensors
STORED = torch.bfloat16
MULTIPLE = 128  # of channels and neurons: groups of 128 divide every matrix
SPLIT_CHANNELS, SPLIT_NEURONS = 0.01, 0.003
DENSITY = 0.05
GAIN_DEVIATION = 0.5
KURTOSIS = 30.0
SCALE_STEP = 2.0**-10  # the scale is a multiple of it, so that the last bits of sums do not matter

Tensors = dict[str, Tensor]
READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
WRITERS = ("self_attn.o_proj", "mlp.down_proj")


@dataclass
class Draw:
    """A seeded stream of random numbers, made of uniform ones alone."""

    seed: int = 0
    _generator: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng(self.seed)

    def uniform(self, *shape: int) -> Tensor:
        return torch.from_numpy(self._generator.random(shape))

    def order(self, count: int) -> Tensor:
        """A permutation."""
        return self.uniform(count).argsort()

    def student(self, *shape: int) -> Tensor:
        """Student t with 2 degrees of freedom in 5 % of the entries, zero elsewhere."""
        present, level = self.uniform(*shape) < DENSITY, self.uniform(*shape)
        return torch.where(present, (2 * level - 1) / (2 * level * (1 - level)).sqrt(), 0.0)

    def powers(self, count: int) -> Tensor:
        """2^k, k normal with deviation 0.5, rounded."""
        normal = NormalDist(0.0, GAIN_DEVIATION)
        return torch.tensor([2.0 ** round(normal.inv_cdf(level)) for level in self.uniform(count).tolist()]).double()


@dataclass(frozen=True)
class Sizes:
    """Channels and neurons before and after, and which of them are split. Until the end the old ones come first, then
    the partners of those that are split, then zeros."""

    blocks: int
    channels: int
    neurons: int
    split_channels: Tensor
    split_neurons: tuple[Tensor, ...]  # of each block

    @classmethod
    def draw(cls, config: dict[str, int], draw: Draw) -> "Sizes":
        channels, neurons, blocks = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
        chosen = draw.order(channels)[: round(SPLIT_CHANNELS * channels)]
        doubled = [draw.order(neurons)[: round(SPLIT_NEURONS * neurons)] for _ in range(blocks)]
        return cls(blocks, channels, neurons, chosen, tuple(doubled))

    @property
    def channel_partners(self) -> Tensor:
        return self.channels + torch.arange(len(self.split_channels))

    @property
    def neuron_partners(self) -> Tensor:
        return self.neurons + torch.arange(len(self.split_neurons[0]))

    @property
    def wide_channels(self) -> int:
        return -(-(self.channels + len(self.split_channels)) // MULTIPLE) * MULTIPLE

    @property
    def wide_neurons(self) -> int:
        return -(-(self.neurons + len(self.split_neurons[0])) // MULTIPLE) * MULTIPLE


def plant(folder: Path) -> Path:
    """Writes the twin into `folder`, an ordinary Hugging Face folder with the demo's tokenizer, and returns the folder."""
    source = demo_model_folder()
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    draw = Draw()
    sizes = Sizes.draw(config, draw)
    tensors = {name: tensor.double() for name, tensor in load_file(source / "model.safetensors").items()}
    noise, gains = _noise(tensors, sizes, draw), _gains(sizes, draw)
    for block in range(sizes.blocks):
        _split_neurons(tensors, block, sizes)
    _split_channels(tensors, sizes)
    tensors = _gained(_opposed(tensors, noise, _scale(tensors, noise, gains, sizes), sizes), gains, sizes.blocks)
    _permute(tensors, sizes, draw)
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: tensor.to(STORED).contiguous() for name, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    _write_config(folder, config, sizes)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(source / name, folder / name)
    return folder


def kurtosis(tensors: Tensors, blocks: int) -> float:
    """E (w − mean)⁴ over the square of the variance, of all weights of q, k, v, gate and up together."""
    pooled = torch.cat([tensors[name].double().flatten() for names in _readers(blocks).values() for name in names])
    squares = (pooled - pooled.mean()).square()
    return float(squares.square().mean() / squares.mean().square())


def _readers(blocks: int) -> dict[str, list[str]]:
    """Names of the blocks' norms, with the names of the matrices that read what a norm returns."""
    return {
        f"model.layers.{block}.{norm}.weight": [f"model.layers.{block}.{reader}.weight" for reader in readers]
        for block in range(blocks)
        for norm, readers in READERS.items()
    }


def _mlp(block: int, name: str) -> str:
    return f"model.layers.{block}.mlp.{name}_proj.weight"


def _noise(tensors: Tensors, sizes: Sizes, draw: Draw) -> Tensors:
    """v of every matrix that gets one, in units of the matrix's own root mean square."""
    width = {name: len(sizes.split_channels) for names in _readers(sizes.blocks).values() for name in names}
    width |= {_mlp(block, "down"): len(chosen) for block, chosen in enumerate(sizes.split_neurons)}
    return {
        name: draw.student(len(tensors[name]), columns) * tensors[name].square().mean().sqrt()
        for name, columns in width.items()
    }


def _gains(sizes: Sizes, draw: Draw) -> Tensors:
    return {norm: draw.powers(sizes.wide_channels) for norm in _readers(sizes.blocks)}


def _split_neurons(tensors: Tensors, block: int, sizes: Sizes) -> None:
    """Copies the chosen neurons, halves what is read of them, and adds neurons that are always zero."""
    chosen = sizes.split_neurons[block]
    for name in (_mlp(block, "gate"), _mlp(block, "up")):
        tensors[name] = _longer(torch.cat([tensors[name], tensors[name][chosen]]), sizes.wide_neurons, 0)
    down = _longer(tensors[_mlp(block, "down")], sizes.wide_neurons, 1)
    down[:, chosen] /= 2
    down[:, sizes.neuron_partners] = down[:, chosen]
    tensors[_mlp(block, "down")] = down


def _split_channels(tensors: Tensors, sizes: Sizes) -> None:
    """Adds channels: partners of the chosen ones, which share their signal, and others that are always zero."""
    chosen, partners = sizes.split_channels, sizes.channel_partners
    for name, tensor in tensors.items():
        if tensor.dim() == 1:
            wide = torch.cat([tensor, tensor.new_ones(sizes.wide_channels - sizes.channels)])
            wide[partners] = wide[chosen]
            tensors[name] = wide * (sizes.channels / sizes.wide_channels) ** 0.5
            continue
        axis = 0 if any(writer in name for writer in WRITERS) else 1
        wide = _longer(tensor, sizes.wide_channels, axis)
        pairs = wide if axis else wide.T
        pairs[:, chosen] /= 2**0.5
        pairs[:, partners] = pairs[:, chosen]
        tensors[name] = wide


def _longer(tensor: Tensor, length: int, axis: int) -> Tensor:
    """Zeros added at the end of an axis."""
    shape = list(tensor.shape)
    shape[axis] = length - shape[axis]
    return torch.cat([tensor, tensor.new_zeros(shape)], axis)


def _opposed(tensors: Tensors, noise: Tensors, scale: float, sizes: Sizes) -> Tensors:
    """v, times the scale, added to the first column of every pair and taken from the second."""
    result = dict(tensors)
    for name, column in noise.items():
        matrix = tensors[name].clone()
        down = next((block for block in range(sizes.blocks) if name == _mlp(block, "down")), None)
        chosen = sizes.split_channels if down is None else sizes.split_neurons[down]
        partners = sizes.channel_partners if down is None else sizes.neuron_partners
        matrix[: len(column), chosen] += scale * column
        matrix[: len(column), partners] -= scale * column
        result[name] = matrix
    return result


def _gained(tensors: Tensors, gains: Tensors, blocks: int) -> Tensors:
    """Every norm's gains times powers of two, the columns of its readers divided by them."""
    result = dict(tensors)
    for norm, readers in _readers(blocks).items():
        result[norm] = tensors[norm] * gains[norm]
        result |= {reader: tensors[reader] / gains[norm] for reader in readers}
    return result


def _scale(tensors: Tensors, noise: Tensors, gains: Tensors, sizes: Sizes) -> float:
    """The multiple of SCALE_STEP that brings the kurtosis to its target, by bisection."""
    low, high = 0, round(64 / SCALE_STEP)
    while high - low > 1:
        middle = (low + high) // 2
        planted = _gained(_opposed(tensors, noise, middle * SCALE_STEP, sizes), gains, sizes.blocks)
        low, high = (middle, high) if kurtosis(planted, sizes.blocks) < KURTOSIS else (low, middle)
    return low * SCALE_STEP


def _permute(tensors: Tensors, sizes: Sizes, draw: Draw) -> None:
    """One order of the channels for all, one of the neurons for every block."""
    channels = draw.order(sizes.wide_channels)
    neurons = [draw.order(sizes.wide_neurons) for _ in range(sizes.blocks)]
    for name, tensor in tensors.items():
        axis = 0 if tensor.dim() == 1 or any(writer in name for writer in WRITERS) else 1
        tensors[name] = tensor.index_select(axis, channels)
    for block, order in enumerate(neurons):
        for name, axis in (("gate", 0), ("up", 0), ("down", 1)):
            tensors[_mlp(block, name)] = tensors[_mlp(block, name)].index_select(axis, order)


def _write_config(folder: Path, config: dict[str, Any], sizes: Sizes) -> None:
    changed = {
        "hidden_size": sizes.wide_channels,
        "intermediate_size": sizes.wide_neurons,
        "rms_norm_eps": config["rms_norm_eps"] * sizes.channels / sizes.wide_channels,
        "dtype": str(STORED).removeprefix("torch."),
    }
    (folder / "config.json").write_text(json.dumps(config | changed, indent=2) + "\n", encoding="utf-8")
