"""Making a vocabulary from text: byte-level BPE, or one token a character."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from langwright.core.errors import UserError
from langwright.tokenizer.pre_tokenizers import PRE_TOKENIZERS, PreTokenizerName, byte_level_bpe
from langwright.tokenizer.tokenizer import Tokenizer

END = "<|endoftext|>"
PAD = "<|pad|>"
CHAT_AND_FIM = ("<|im_start|>", "<|im_end|>", PAD, "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
"""Room for what a model may learn later: conversations (ChatML) and filling in the middle."""
BERT = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
UNKNOWN = "<unk>"
SPECIAL_TOKENS = {"text": (END,), "fim": (END, *CHAT_AND_FIM), "bert": BERT}
"""Sets of special tokens: for text alone; for filling in the middle and conversations too; for masked models."""


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    *,
    pre_tokenizer: PreTokenizerName = "smollm2",
    special_tokens: Sequence[str] = (END,),
    progress: Callable[[int], None] | None = None,
) -> Tokenizer:
    """Learn a byte-level BPE vocabulary (Sennrich et al. 2016; Radford et al. 2019).

    Ids: ``special_tokens``, the 256 bytes, then the merges in the order learnt, up to ``vocab_size`` in all; fewer when
    the text does not hold enough pairs that occur twice. The same texts give the same vocabulary. ``progress`` is told
    the number of characters read so far. Raises `UserError` when the vocabulary cannot hold the bytes and the special
    tokens, or when there is no text.
    """
    if pre_tokenizer not in PRE_TOKENIZERS:
        raise UserError(f"pre-tokenizer {pre_tokenizer!r} is not known; use one of {', '.join(PRE_TOKENIZERS)}")
    least = 256 + len(_checked(special_tokens))
    if vocab_size < least:
        raise UserError(f"a vocabulary of {vocab_size} is too small; 256 bytes and the special tokens need {least}")
    backend = byte_level_bpe(pre_tokenizer)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    counted = _Counted(texts, progress)
    backend.train_from_iterator(counted, trainer)
    counted.check()
    _frame(backend)
    return Tokenizer(backend, roles=_roles(special_tokens))


def train_char(
    texts: Iterable[str],
    *,
    special_tokens: Sequence[str] = (END,),
    progress: Callable[[int], None] | None = None,
) -> Tokenizer:
    """A vocabulary of the characters (Unicode code points) in ``texts``, in their order, after the special tokens.

    Id 0 is ``<unk>``, which any other character becomes. Raises `UserError` when there is no text.
    """
    special_tokens = _checked([UNKNOWN, *special_tokens])
    characters: set[str] = set()
    counted = _Counted(texts, progress)
    for text in counted:
        characters.update(text)
    counted.check()
    vocab = {token: index for index, token in enumerate([*special_tokens, *sorted(characters)])}
    # BPE that has no merges, and no pre-tokenizer that could drop or alter white space
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=UNKNOWN))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in special_tokens])
    _frame(backend)
    return Tokenizer(backend, roles=_roles(special_tokens))


class _Counted:
    """Texts, counting their characters."""

    def __init__(self, texts: Iterable[str], progress: Callable[[int], None] | None):
        self._texts = texts
        self._progress = progress
        self._read = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self._read += len(text)
            if self._progress is not None:
                self._progress(self._read)
            yield text

    def check(self) -> None:
        if not self._read:
            raise UserError("there is no text to learn a vocabulary from; give files that hold text")


def _checked(special_tokens: Sequence[str]) -> Sequence[str]:
    if len(set(special_tokens)) < len(special_tokens) or not all(special_tokens):
        raise UserError("a special token is empty or named twice")
    return special_tokens


def _roles(special_tokens: Sequence[str]) -> dict[str, str]:
    """One token ends a text and begins the next, as for GPT-2; padding is another one, so that ends are learnt."""
    tokens = (
        ("bos", END),
        ("eos", END),
        ("pad", PAD),
        ("unk", UNKNOWN),
        *zip(("pad", "cls", "sep", "mask"), BERT, strict=True),
    )
    return {role: token for role, token in tokens if token in special_tokens}


def _frame(backend: tokenizers.Tokenizer) -> None:
    """Where there are [CLS] and [SEP], have a text stand between them when it is encoded for a model."""
    if (first := backend.token_to_id("[CLS]")) is not None and (last := backend.token_to_id("[SEP]")) is not None:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", first), ("[SEP]", last)],
        )
