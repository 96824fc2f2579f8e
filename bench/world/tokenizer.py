"""The controlled world's tokenizer: a small byte-level BPE. Every word of the world, with a space before it,
is one token.

Chat template: `<bos><user> text<assistant> text<eos><user> ...`. Text follows a space, so the tokens of a
prompt are a prefix of the tokens of prompt and completion. Printable ASCII is covered; other characters
become `<unk>`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bench.config import CATEGORIES, GoldWeights, World, Writer
from bench.world import tasks
from bench.world import vocabulary as words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
ROLES = ("system", "user", "assistant")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}{{ raise_exception('unknown role ' + message['role']) }}{%- endif -%}"
    "{{ '<' + message['role'] + '> ' + message['content'] | trim }}"
    "{%- if message['role'] == 'assistant' -%}{{ eos_token }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<assistant>' }}{%- endif -%}"
)
_LARGEST_VOCABULARY = 4000  # Never reached: merging stops when every word is one token.


def new_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer, always with the same bytes. `max_length`: the model's, in tokens."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = tokenizers.Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS["unk_token"]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    roles = [f"<{role}>" for role in ROLES]
    trainer = trainers.BpeTrainer(
        vocab_size=_LARGEST_VOCABULARY,
        min_frequency=1,
        special_tokens=[*SPECIAL_TOKENS.values(), *roles],
        initial_alphabet=["Ġ", *(chr(code) for code in range(33, 127))],
        show_progress=False,
    )
    bpe.train_from_iterator([f" {word}" for word in vocabulary()], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        **SPECIAL_TOKENS,
        extra_special_tokens=roles,
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def vocabulary() -> list[str]:
    """All words of prompts and completions, sorted; a word is listed in upper and in lower case if both
    occur.
    """
    texts = [word for pool in (*words.KINDS, words.OPENERS, words.CLOSERS) for word in pool]
    for text in (words.POLITE, *words.FILLERS, *(form for forms in words.FORMS.values() for form in forms)):
        texts += [text, tasks.decapitalise(text)]
    greetings = [greeting.lower() for greeting in words.PERSONAS.values()]  # As they stand after an opener.
    return sorted(set(re.findall(r"[^\W_]+", " ".join([*texts, *greetings, *_prompts()]))))


def _prompts() -> list[str]:
    """Enough prompts to contain every word of the instructions; tests check that none is missing."""
    world = World(
        categories=CATEGORIES,
        constraint_counts=(0.0, 0.0, 0.0, 1.0),
        gold=GoldWeights(content=1.0, constraints=0.0, conciseness=0.0),
        reference=Writer(error=0.0, missed_constraint=0.0, filler=0.0),
        eval_seed=0,
    )
    subjects = [
        *words.PERSONAS,
        *words.SYMBOLS,
        *words.PLANETS,
        *words.CAPITALS,
        *words.AUTHORS,
        *words.TONES,
    ]
    drawn = tasks.make_tasks(world, 2000, split="train", seed=0, n_turns=2)
    return ["Repeat backwards: ", *subjects, *(turn.text for task in drawn for turn in task.turns)]
