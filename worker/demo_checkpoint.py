"""A checkpoint for trying kvtier out, made on this machine in seconds, without a network.

It is real in everything the system touches: tokenizer, chat template, configuration, weights in
safetensors, a context of 32,768 tokens. Its weights are random: **the text it writes means
nothing**. What it shows is time, reuse and money, not language.

Invariant: equal Python and library versions give equal files, and a directory at the final name
is complete, because it is renamed there when everything is written. Any thread, once.
"""

import argparse
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

__all__ = ["CONTEXT_TOKENS", "make_demo_checkpoint"]

CONTEXT_TOKENS = 32_768
VOCABULARY = 8_192
TRAINING_BYTES = 4 * 1024 * 1024
WEIGHT_SCALE = 3.0
"""Times the usual initialisation: else all logits are nearly equal and greedy text one token."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"


def make_demo_checkpoint(directory: Path, progress: Callable[[str], None]) -> Path:
    """Makes the checkpoint at `directory` unless it is there; returns `directory`.

    `progress` gets a line per step. Raises OSError when the place cannot be written.
    """
    if (directory / "config.json").is_file():
        progress(f"demo checkpoint: using {directory}")
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        progress("demo checkpoint: training a tokenizer on the standard library's sources")
        tokenizer = _train_tokenizer()
        tokenizer.save_pretrained(work)
        progress("demo checkpoint: drawing 20 million random weights")
        _save_model(tokenizer, work)
        _publish(work, directory)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    progress(f"demo checkpoint: made {directory}")
    return directory


def _publish(work: Path, directory: Path) -> None:
    for path in work.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    try:
        work.rename(directory)
    except OSError:
        # Someone else was faster; theirs is as good, files are equal.
        if not (directory / "config.json").is_file():
            raise


def _train_tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(_standard_library(), trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=raw,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _standard_library() -> list[str]:
    texts, size = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        texts.append(text)
        size += len(text)
        if size > TRAINING_BYTES:
            break
    return texts


def _save_model(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=384,
        intermediate_size=1152,
        num_hidden_layers=10,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.float32
        )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(WEIGHT_SCALE)
    model.save_pretrained(directory)


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m worker.demo_checkpoint DIRECTORY`."""
    parser = argparse.ArgumentParser(prog="worker.demo_checkpoint", description=main.__doc__)
    parser.add_argument("directory", type=Path)
    make_demo_checkpoint(parser.parse_args(argv).directory, print)


if __name__ == "__main__":
    main()
