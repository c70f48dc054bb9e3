"""Seconds of every stage: the bytes and operations of that stage over the speeds that the probe has measured."""

import math

from bitbudget.pipeline.probe import Speeds
from bitbudget.pipeline.workload import VERIFY_TOKENS, Workload, weights

WIDE_PASSES = 3  # elementwise passes over what the linears of a block return: activation function, product, rotation
HIDDEN_PASSES = 16  # over the hidden state: two norms in their steps, two sums


def stage_seconds(work: Workload, speeds: Speeds) -> dict[str, float]:
    """Seconds of all stages, by name."""
    again = speeds.cached_bytes if work.stays_cached else speeds.read_bytes
    passing = running(work, speeds, VERIFY_TOKENS, work.window)
    heads = sum(work.outside) / speeds.load_weights
    return {
        "quantize": _quantize(work, speeds),
        "check": _check(work, speeds, again),
        "original model": work.source_bytes / again + sum(work.block_weights) / speeds.load_weights + passing,
        "stored model": work.plan.weights_bytes / again + _decoding(work, speeds) + passing,
        "compare": 2 * heads + _comparing(work, speeds),
    }


def _quantize(work: Workload, speeds: Speeds) -> float:
    seconds = work.plan.disk_bytes * (1 / speeds.write_bytes + 1 / speeds.hash_bytes)
    for info, planned in work.tensors():
        seconds += info.nbytes / speeds.read_bytes + math.prod(info.shape) / speeds.look_weights
        if planned is not None:
            seconds += info.nbytes / speeds.hash_bytes + weights(planned) / speeds.store_weights
    return seconds


def _check(work: Workload, speeds: Speeds, again: float) -> float:
    """Everything stored is looked through and hashed, everything of the original hashed, and what is kept once more."""
    kept = [info for info, planned in work.tensors() if planned is None]
    kept_bytes = sum(info.nbytes for info in kept)
    hashed = work.plan.weights_bytes + work.source_bytes + kept_bytes
    looked = sum(math.prod(info.shape) for info in kept)
    read = hashed + work.plan.weights_bytes
    return hashed / speeds.hash_bytes + read / again + looked / speeds.look_weights


def _decoding(work: Workload, speeds: Speeds) -> float:
    stored = sum(weights(planned) for block in work.blocks for planned in block if not planned.choice.kept)
    return stored / speeds.decode_weights + (sum(work.block_weights) - stored) / speeds.load_weights


def running(work: Workload, speeds: Speeds, tokens: int, window: int) -> float:
    """Tokens in windows through all blocks: linears and attention by their FLOP, the rest by passes over what they return.

    Every expert of a mixture is counted as if all of them ran, so such models take less.
    """
    hidden = work.table[1]
    outputs = sum(planned.layer.shape[0] for block in work.blocks for planned in block)
    flops = 2 * sum(work.block_weights) + 4 * window * hidden * len(work.block_weights)
    passes = WIDE_PASSES * outputs + HIDDEN_PASSES * hidden * len(work.block_weights)
    return tokens * (flops / speeds.flops + passes / speeds.elementwise)


def _comparing(work: Workload, speeds: Speeds) -> float:
    vocabulary, hidden = work.table
    return VERIFY_TOKENS * vocabulary * (2 * 2 * hidden / speeds.flops + 1 / speeds.compare_logits)
