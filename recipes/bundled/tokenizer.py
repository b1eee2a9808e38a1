"""Train the bundled model's tokenizer from the standard library and the needle sentences.

    python recipes/bundled/tokenizer.py OUT

Byte-level BPE, 3072 tokens. Digits come in groups of up to three, as in Llama 3. The eight fixed phrases of the needle
sentence and the questions are single tokens, in the spirit of SuperBPE (arXiv 2503.13423): a model of 1.4M parameters
then spends its context of 128 tokens on keys and values. `<|endoftext|>` separates documents and opens every prompt.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from drope.data import needles as N
from drope.data import stdlib

VOCABULARY, CONTEXT, EOS = 3072, 128, "<|endoftext|>"
WORDS = r"\p{N}{1,3}|\n+|[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PHRASES = [
    " " + N.NEEDLE.split(" {key}")[0],
    " is: ",
    *("\n" + ask.split(" {keys}")[0] for ask in (N.ASK_KEYS, N.ASK_KEY, N.ASK_VALUES)),
    *(ask.split("{keys}")[1] for ask in (N.ASK_KEYS, N.ASK_KEY, N.ASK_VALUES)),
]


def corpus(rng: random.Random) -> Iterator[str]:
    yield from stdlib.prose("train")
    sources, size = list(stdlib.sources()), 0
    rng.shuffle(sources)
    for text in sources:
        yield text
        size += len(text)
        if size > 1_500_000:
            break
    for _ in range(40_000):
        yield N.NEEDLE.format(key=N.random_key(rng), value="")
    for _ in range(4_000):
        yield from (ask.format(keys="x") for ask in (N.ASK_KEY, N.ASK_KEYS, N.ASK_VALUES))
    for _ in range(40_000):
        yield " ".join(f"{n:03d}" for n in rng.sample(range(1000), 10))


def main(out: str) -> None:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(PHRASES),
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(random.Random(0)), trainer)
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in PHRASES])
    eos = (EOS, tokenizer.token_to_id(EOS))
    tokenizer.post_processor = processors.TemplateProcessing(f"{EOS} $A", f"{EOS} $A $B", special_tokens=[eos])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=EOS, eos_token=EOS, model_max_length=CONTEXT)
    fast.save_pretrained(out)


if __name__ == "__main__":
    main(sys.argv[1])
