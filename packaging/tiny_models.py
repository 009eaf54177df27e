#!/usr/bin/env python3
"""Build four tiny models with random weights, so that a real vLLM can be run where no weights can be had.

  tiny-llama    LlamaForCausalLM: chat, a window of 32768 tokens, a template with tools
  deep-llama    the same of many layers, for tests: its tokens take the milliseconds that those of a real one take
  tiny-embed    BertModel: embeddings of 160 numbers, mean pooling
  tiny-rerank   XLMRobertaForSequenceClassification: rerank and score

Run it with the interpreter of the engine environment (torch, transformers, tokenizers):

  python tiny_models.py [OUTDIR]      (default: $XDG_CACHE_HOME/llmd/models)

What they say is noise, but deterministic noise: the weights are seeded. A model that is complete is left alone.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)
from transformers.utils import logging

WINDOW = 32768
# Heads of 80 numbers: where 32 divides them, vLLM takes its AMX attention, which dies of SIGILL on some CPUs.
SHAPE = {"hidden_size": 160, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}

# What the tokenizers are trained on: enough for short words to become one token.
SENTENCES = (
    "The engine starts, answers and stops when it is told to.",
    "Every card has a budget, and every model a place in it.",
    "A stream of tokens ends with the usage and a last line.",
    "You are a helpful assistant. What is the capital of France? Paris.",
    "Hello, how are you today? I am well, thank you.",
    "one two three four five six seven eight nine ten 0 1 2 3 4 5 6 7 8 9",
)

CHAT_TEMPLATE = """\
{%- if tools %}<|system|>Tools: {{ tools | tojson }}<|end|>{% endif %}
{%- for message in messages %}<|{{ message['role'] if message['role'] in ('system', 'assistant') else 'user' }}|>
{{- message['content'] or '' }}<|end|>{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""


def main() -> None:
    logging.disable_progress_bar()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    outdir = Path(sys.argv[1]) if len(sys.argv) > 1 else cache / "llmd" / "models"
    outdir.mkdir(parents=True, exist_ok=True)
    for name, build in BUILDERS.items():
        place = outdir / name
        if not (place / "config.json").exists():
            build_in_place(build, place)
        print(place)


def build_in_place(build: Callable[[Path], None], place: Path) -> None:
    """A model appears under its name whole or not at all: built beside it, then renamed."""
    draft = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        draft.chmod(0o755)
        build(draft)
        if not place.exists():  # another run may have been quicker
            draft.rename(place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def build_llama(out: Path, layers: int = SHAPE["num_hidden_layers"]) -> None:
    specials = ["<s>", "</s>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    roles = specials[3:6]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(specials),
        bos_token="<s>",
        eos_token="<|end|>",
        pad_token="<pad>",
        additional_special_tokens=roles,
        model_max_length=WINDOW,
        chat_template=CHAT_TEMPLATE,
    )
    config = LlamaConfig(
        **SHAPE | {"num_hidden_layers": layers},
        vocab_size=len(tokenizer),
        num_key_value_heads=1,
        max_position_embeddings=WINDOW,
        bos_token_id=specials.index("<s>"),
        eos_token_id=specials.index("<|end|>"),
        pad_token_id=specials.index("<pad>"),
        tie_word_embeddings=False,
    )
    save(out, tokenizer, seeded(0, LlamaForCausalLM, config).to(torch.bfloat16))


def build_embed(out: Path) -> None:
    specials = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    tokenizer = byte_level_bpe(specials)
    tokenizer.post_processor = framed(specials, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        model_max_length=512,
    )
    config = BertConfig(**SHAPE, vocab_size=len(fast), max_position_embeddings=512, pad_token_id=0)
    save(out, fast, seeded(1, BertModel, config))
    tell_pooling(out)


def build_rerank(out: Path) -> None:
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = byte_level_bpe(specials)
    tokenizer.post_processor = framed(specials, "<s> $A </s>", "<s> $A </s> </s> $B </s>")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        cls_token="<s>",
        sep_token="</s>",
        model_max_length=512,
    )
    config = XLMRobertaConfig(
        **SHAPE,
        vocab_size=len(fast),
        max_position_embeddings=514,  # this family starts counting at its padding token: two are lost
        type_vocab_size=1,
        num_labels=1,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    save(out, fast, seeded(2, XLMRobertaForSequenceClassification, config))


def byte_level_bpe(specials: list[str], size: int = 512) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 10, trainer)
    return tokenizer


def framed(specials: list[str], single: str, pair: str) -> processors.TemplateProcessing:
    numbered = [(token, number) for number, token in enumerate(specials)]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=numbered)


def seeded(seed: int, kind: type[PreTrainedModel], config: object) -> PreTrainedModel:
    torch.manual_seed(seed)
    return kind(config)


def save(out: Path, tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel) -> None:
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)
    for file in out.iterdir():
        file.chmod(0o644)  # weights are written for their owner only; another user may run the engines


def tell_pooling(out: Path) -> None:
    """vLLM reads how to pool from the files that sentence-transformers leaves."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds.items())
    ]
    (out / "modules.json").write_text(json.dumps(modules))
    (out / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 512, "do_lower_case": False})
    )
    (out / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": SHAPE["hidden_size"], "pooling_mode_mean_tokens": True}
    (out / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


BUILDERS = {
    "tiny-llama": build_llama,
    "deep-llama": partial(build_llama, layers=32),
    "tiny-embed": build_embed,
    "tiny-rerank": build_rerank,
}

if __name__ == "__main__":
    main()
