"""Trains a third small model: StableLM architecture (LayerNorm, biases on q, k and v, a head of its own), the demo's tokenizer.

    python benchmarks/llm_mq/train_third.py FOLDER

Needs `../shared`. One thread and one seed, so that the same versions on the same processor give the same bytes. The
finished Hugging Face folder stays outside the repository; its hash and loss go to `results/third.json`.
"""

import json
import lzma
import math
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import torch
from texts import TRAINING, unused_documents
from torch import Tensor
from transformers import StableLmConfig, StableLmForCausalLM

from bitbudget.calibration.documents import SEPARATOR
from bitbudget.calibration.tokenizer import Tokenizer
from bitbudget.calibration.tokens import TokenSequence, fingerprint, sequences
from bitbudget.data import demo_model_folder

RESULT = Path(__file__).parent / "results" / "third.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
SEED = 0
STEPS, BATCH, LENGTH = 1500, 8, 256
BOOK_LETTERS = 40_000  # taken from every book, at equal distances
MUON, ADAM = 0.02, 0.004  # learning rates of the blocks' matrices and of all other parameters
WARM_UP, DECAY = 0.02, 0.4  # shares of the steps


def architecture(vocabulary: int) -> StableLmConfig:
    """4 blocks, 128 wide; every matrix is divisible by groups of 128.

    For some architectures (Qwen2) transformers replaces the class of the tokenizer that a folder holds; not for this one.
    """
    return StableLmConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        use_qkv_bias=True,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )


def token_stream(tokenizer: Tokenizer) -> Tensor:
    """Pieces of every training book, one after the other, with the separator's token between them."""
    with lzma.open(TRAINING, "rt", encoding="utf-8") as file:
        books = file.read().split(SEPARATOR)
    ids: list[int] = []
    for book in books:
        for part in range(4):
            start = part * len(book) // 4
            ids += [0, *tokenizer.encode(book[start : start + BOOK_LETTERS // 4])]
    return torch.tensor(ids)


def batches(stream: Tensor) -> Iterator[Tensor]:
    """STEPS batches [BATCH, LENGTH + 1]: each place of the stream once, then again in another order."""
    generator = torch.Generator().manual_seed(SEED)
    starts: list[int] = []
    for _ in range(STEPS):
        while len(starts) < BATCH:
            rows = len(stream) // LENGTH - 1
            shift = int(torch.randint(LENGTH, (), generator=generator))
            starts += [shift + int(row) * LENGTH for row in torch.randperm(rows, generator=generator)]
        taken, starts = starts[:BATCH], starts[BATCH:]
        yield torch.stack([stream[start : start + LENGTH + 1] for start in taken])


def optimizers(model: StableLmForCausalLM) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices of the blocks, AdamW for embedding, head, gains and biases."""
    matrices = [weight for name, weight in model.named_parameters() if ".layers." in name and weight.dim() == 2]
    known = {id(weight) for weight in matrices}
    rest = [weight for weight in model.parameters() if id(weight) not in known]
    return (
        torch.optim.Muon(matrices, lr=MUON, weight_decay=0.0),
        torch.optim.AdamW(rest, lr=ADAM, betas=(0.9, 0.98), weight_decay=0.0),
    )


def rate(step: int) -> float:
    """Share of the full learning rate: a short rise, a plateau, a linear fall to zero."""
    return min((step + 1) / (WARM_UP * STEPS), 1.0, (STEPS - step) / (DECAY * STEPS))


def train(model: StableLmForCausalLM, stream: Tensor) -> None:
    """One pass over the batches, with the loss shown now and then."""
    steppers = optimizers(model)
    schedules = [torch.optim.lr_scheduler.LambdaLR(stepper, rate) for stepper in steppers]
    started = time.perf_counter()
    for step, batch in enumerate(batches(stream)):
        logits = model(batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper, schedule in zip(steppers, schedules, strict=True):
            stepper.step()
            schedule.step()
            stepper.zero_grad()
        if step % 50 == 0 or step + 1 == STEPS:
            print(f"{step:5d}  loss {float(loss.detach()):.3f}  {time.perf_counter() - started:.0f} s", flush=True)


@torch.no_grad()
def held_out(model: StableLmForCausalLM, windows: Sequence[TokenSequence]) -> float:
    """Loss per scored token on text that nothing was trained on."""
    total = tokens = 0.0
    for window in windows:
        logits = model(window.ids[None], use_cache=False).logits[0, window.positions].double()
        total += float(torch.nn.functional.cross_entropy(logits, window.labels, reduction="sum"))
        tokens += window.scored
    return total / tokens


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    tokenizer = Tokenizer.open(demo_model_folder())
    model = StableLmForCausalLM(architecture(len(tokenizer.encoder)))
    train(model, token_stream(tokenizer))
    model = model.to(torch.bfloat16)
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copyfile(demo_model_folder() / name, folder / name)
    own = sequences(unused_documents(), Tokenizer.open(folder), LENGTH)
    assert fingerprint(own) == fingerprint(sequences(unused_documents(), tokenizer, LENGTH)), "another tokenizer"
    loss = held_out(model.float().eval(), own)
    record = {
        "architecture": type(model).__name__,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "tokens": STEPS * BATCH * LENGTH,
        "held_out_loss": round(loss, 4),
        "held_out_perplexity": round(math.exp(loss), 2),
        "sha256": sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
