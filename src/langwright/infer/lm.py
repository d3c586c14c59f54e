"""The face of a model: text in, text, probabilities or vectors out."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast, get_args, overload

import torch
from torch import Tensor

from langwright.core.errors import UserError
from langwright.core.json_text import read_json_object
from langwright.core.runtime import pick_device, pick_dtype
from langwright.infer import embedding, scoring
from langwright.infer.admission import check_ids
from langwright.infer.classifying import label_logits, word_logits
from langwright.infer.evaluating import evaluating
from langwright.infer.generate import OnToken, Stream, generate, stream
from langwright.infer.packing import Quantise
from langwright.infer.prompts import encode_pair, encode_prompt, frame
from langwright.infer.quantised import load_quantised
from langwright.infer.row import Generation
from langwright.infer.sampling import SamplingConfig
from langwright.infer.scoring import Likelihood, Score
from langwright.infer.tagging import Tagged, TaggedWord, collect, lay_words
from langwright.infer.tool_calls import Tool, bind
from langwright.model.adapters.opening import find_base, is_adapter, load_adapted
from langwright.model.checkpoint.hub import resolve
from langwright.model.checkpoint.load import load_model
from langwright.model.config import ModelConfig, Problem
from langwright.model.model import Model
from langwright.tokenizer.chat import ChatTemplate
from langwright.tokenizer.load import holds_tokenizer, load_tokenizer
from langwright.tokenizer.segments import Framed, PairFrame, encode_words, place_words, split_words
from langwright.tokenizer.tokenizer import Tokenizer

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""A text, token ids, or a chat: ``[{"role": "user", "content": "..."}, ...]``."""

Classifiable = str | tuple[str, str]
"""A text, or a pair of texts for a model that was taught pairs."""

Prompts = list[str] | Sequence[Sequence[int]] | Sequence[Sequence[Mapping[str, Any]]]


def load(
    ref: str | Path,
    *,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    quantise: Quantise | None = None,
    fuse: bool = True,
) -> "LM":
    """A model with its tokenizer from ``ref``: a folder, a ``.gguf`` file, a catalogue name or a hub id.

    A folder with an adapter in PEFT's format gives the base that it names with the adapter fused into it (or beside it,
    without ``fuse``); the tokenizer is the adapter's where it has one, else the base's.
    ``device`` ``auto`` is CUDA, else MPS, else CPU. ``dtype`` None is float32 on the CPU and what the checkpoint
    stores elsewhere (a GGUF becomes float32). ``quantise`` ``int8`` or ``int4`` keeps matrices in 8 or 4 bits and runs
    them on the CPU (`load_quantised`). Raises `UserError` or `FormatError` in one line for whatever is
    missing, damaged or unfit.
    """
    where = pick_device("cpu" if quantise is not None and device == "auto" else device)
    if isinstance(dtype, str):
        dtype = pick_dtype(dtype)
    elif dtype is None and where.type == "cpu":
        dtype = torch.float32
    if quantise is not None:
        _check_quantise(quantise, device, dtype)
    path = resolve(str(ref))
    if quantise is not None:
        if is_adapter(path):
            raise UserError(f"{path}: an adapter cannot be quantised; merge it into its base first")
        found = LM(load_quantised(path, quantise), load_tokenizer(path), name=str(ref))
    elif is_adapter(path):
        base = find_base(path)
        tokenizer = load_tokenizer(path if holds_tokenizer(path) else base)
        model = load_adapted(path, base, dtype=dtype, device=where, fuse=fuse)
        found = LM(model, tokenizer, name=str(ref))
    else:
        found = LM(load_model(path, dtype=dtype, device=where), load_tokenizer(path), name=str(ref))
    if found.model.head_kind in ("sequence_classifier", "token_classifier"):
        _add_what_tuning_wrote(found, path)
    return found


def _check_quantise(quantise: str, device: str, dtype: torch.dtype | None) -> None:
    if quantise not in get_args(Quantise):
        raise UserError(f"quantise is {quantise!r:.60}; use one of {', '.join(get_args(Quantise))}")
    if device not in ("auto", "cpu") or dtype not in (None, torch.float32):
        raise UserError("quantised models run on the CPU and are float32 otherwise; leave device and dtype out")


def _add_what_tuning_wrote(lm: "LM", folder: Path) -> None:
    """A classifier's temperature, and what an adapter's configuration has no place for: labels, what is told of a
    text."""
    about = folder / "langwright.json"
    written = read_json_object(about) if about.is_file() else {}
    metrics, model = written.get("metrics"), written.get("model")
    temperature = metrics.get("temperature") if isinstance(metrics, dict) else None
    if isinstance(temperature, float) and 0.01 <= temperature <= 100:
        lm.temperature = temperature
    labels = model.get("labels") if isinstance(model, dict) else None
    names = tuple(each for each in labels if isinstance(each, str)) if isinstance(labels, list) else ()
    if len(names) == lm.config.n_labels and not lm.config.labels:
        lm.model.config = lm.config.replace(labels=names)
    problem = model.get("problem") if isinstance(model, dict) else None
    if problem in get_args(Problem) and lm.config.problem is None:
        lm.model.config = lm.config.replace(problem=problem)


class LM:
    """A `Model` and its `Tokenizer`, used together.

    Raises `UserError` when the tokenizer has more tokens than the model has embeddings. The model is put in
    evaluation mode for the length of each call.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, name: str = "model"):
        if tokenizer.vocab_size > model.config.vocab_size:
            raise UserError(
                f"{name}: the tokenizer has ids up to {tokenizer.vocab_size - 1} and the model only "
                f"{model.config.vocab_size} embeddings; use the tokenizer that this model was made with"
            )
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.temperature = 1.0
        """Of a classifier: what its logits are divided by, so that its probabilities mean what they say."""

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    def __repr__(self) -> str:
        return f"LM({self.name!r}, {self.config.family}, {self.model.dtype}, {self.model.device})"

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> Tensor:
        """Logits of the token after each of ``ids``, (T, V) float32 on the CPU (at each place, for a masked model).

        Raises `UserError` for no ids, ids outside the vocabulary, and more than the context holds.
        """
        self._need("causal_lm", "masked_lm", what="give token logits")
        checked = self._fitting(check_ids(ids, self.config.vocab_size), "the input")
        with evaluating(self.model):
            return self.model(torch.tensor([checked], device=self.model.device))[0].float().cpu()

    @overload
    def generate(self, prompt: Prompt, *, on_token: OnToken | None = ..., **settings: Any) -> Generation: ...

    @overload
    def generate(self, prompt: Prompts, *, on_token: OnToken | None = ..., **settings: Any) -> list[Generation]: ...

    def generate(
        self,
        prompt: Prompt | Prompts,
        *,
        allow_special: bool = False,
        on_token: OnToken | None = None,
        batch_size: int = 16,
        tools: Sequence[Tool] = (),
        tool_choice: str = "auto",
        parallel_tool_calls: bool = True,
        **sampling: Any,
    ) -> Generation | list[Generation]:
        """Continue a text, a list of token ids, or a chat (a list of messages); or each of a list of those.

        ``sampling`` are the fields of `SamplingConfig`. With ``allow_special`` a text such as ``<|im_end|>`` in a
        plain prompt is that token; chat content never is. In a chat the model may call ``tools``, as ``tool_choice``
        says (`langwright.infer.tool_calls.constrain`); `parse_calls` of the same module reads the calls.

        Raises `UserError` for an unknown setting, a chat without a template or one that does not show the tools, and
        what `langwright.infer.generate.generate` refuses.
        """
        config = bind(SamplingConfig.parse(sampling, "sampling"), tools, tool_choice, parallel_tool_calls)
        many = _is_many(prompt)
        prompts = cast(list[Prompt], list(prompt) if many else [prompt])
        shown = () if tool_choice == "none" else tools
        ids = [self.encode_prompt(one, allow_special=allow_special, tools=shown) for one in prompts]
        answers = generate(self.model, ids, config, tokenizer=self.tokenizer, on_token=on_token, batch_size=batch_size)
        return answers if many else answers[0]

    def stream(
        self,
        prompt: Prompt,
        *,
        allow_special: bool = False,
        tools: Sequence[Tool] = (),
        tool_choice: str = "auto",
        parallel_tool_calls: bool = True,
        **sampling: Any,
    ) -> Stream:
        """Like `generate` for one prompt: iterate over pieces of text, then read ``.result``."""
        config = bind(SamplingConfig.parse(sampling, "sampling"), tools, tool_choice, parallel_tool_calls)
        shown = () if tool_choice == "none" else tools
        ids = self.encode_prompt(prompt, allow_special=allow_special, tools=shown)
        return stream(self.model, ids, config, tokenizer=self.tokenizer)

    def encode_prompt(self, prompt: Prompt, *, allow_special: bool = False, tools: Sequence[Tool] = ()) -> list[int]:
        """Token ids of a prompt: a text, ids, or messages rendered with the model's chat template.

        Raises `UserError` for ``tools`` without messages, and where the template does not show them.
        """
        if tools and not (isinstance(prompt, Sequence) and all(isinstance(item, Mapping) for item in prompt)):
            raise UserError("tools can only be called in a chat; pass a list of messages")
        if isinstance(prompt, str):
            return encode_prompt(self.tokenizer, prompt, allow_special=allow_special)
        if not isinstance(prompt, Sequence):
            raise UserError(
                f"a prompt is a text, a list of token ids or a list of messages, not {type(prompt).__name__}"
            )
        messages = [item for item in prompt if isinstance(item, Mapping)]
        if messages and len(messages) == len(prompt):
            rendered = self.chat_template.render(messages, tools=tools or None, add_generation_prompt=True)
            if hidden := [name for tool in tools if (name := tool["function"]["name"]) not in rendered.text]:
                raise UserError(
                    f"{self.name}: the chat template does not show the model the tool {hidden[0]}; use a template for"
                    " tools, such as chatml-tools"
                )
            return rendered.ids
        return check_ids(prompt, self.config.vocab_size)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """Raises `UserError` when the model has none."""
        if self.tokenizer.chat_template is None:
            raise UserError(
                f"{self.name}: this model has no chat template, so it cannot take messages; pass plain text, or use "
                " an instruction-tuned model"
            )
        return ChatTemplate(self.tokenizer.chat_template, self.tokenizer)

    def score(self, text: str, *, context: int | None = None, stride: int | None = None) -> Score:
        """How well the model predicts ``text``, in windows of ``context`` tokens that advance by ``stride``.

        By default the context is the model's, at most 2,048, and the stride half of it, so that each token of a long
        text is predicted from at least half a window. The first token is predicted from the beginning token; where
        the tokenizer has none it is only read, and counts neither as a token nor in bytes. Raises `UserError` when
        nothing is left to predict.
        """
        self._need("causal_lm", what="score text")
        context, stride = scoring.window_sizes(self.config.max_positions, context, stride)
        ids, size, bos = self.tokenizer.encode(text), len(text.encode()), self.tokenizer.bos_id
        if bos is None and ids:
            size -= len(self.tokenizer.decode(ids[:1]).encode())
        sequence = ids if bos is None else [bos, *ids]
        if len(sequence) < 2:
            raise UserError("the text is too short to be scored; give at least one token more")
        nll = -float(scoring.predict(self.model, sequence, context, stride).sum())
        return Score(nll, len(sequence) - 1, size, context, stride)

    def loglikelihood(
        self, pairs: Sequence[tuple[str, str]], *, truncate: bool = False, batch_size: int = 16
    ) -> list[Likelihood]:
        """For each (context, continuation): the continuation's log-probability in nats, and whether it is the greedy.

        As lm-eval-harness does it: the two are encoded as one text, parted after as many tokens as the context alone
        has; white space at the context's end belongs to the continuation; an empty context is the beginning token,
        else an end token. Raises `UserError` for an empty continuation, and for a pair longer than the model's
        context unless ``truncate`` drops the context's beginning.
        """
        self._need("causal_lm", what="score text")
        encoded, limit = [], self.config.max_positions
        for context, continuation in pairs:
            before, after = encode_pair(self.tokenizer, context, continuation)
            excess = len(before) + len(after) - 1 - limit  # the last token is predicted, never read
            if excess > 0 and (not truncate or excess >= len(before)):
                raise UserError(
                    f"a context and its continuation have {len(before) + len(after)} tokens and this model reads "
                    f"{limit}; pass truncate=True to drop the beginning of the context"
                )
            encoded.append((before[max(0, excess) :], after))
        return scoring.continuations(self.model, encoded, batch_size=batch_size)

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        """The log-probability of each text, in nats, as `score` takes it with its default windows."""
        return [-self.score(text).nll for text in texts]

    def embed(self, texts: Sequence[str], *, truncate: bool = False, batch_size: int = 32) -> Tensor:
        """One unit vector a text, (n, D) float32 on the CPU; their dot products are cosine similarities.

        Of an encoder: its sentence embedding, last hidden states pooled as the checkpoint says (by default their
        mean) with the tokenizer's special tokens around the text. Of a decoder: the mean of the last hidden states.
        Raises `UserError` for a text longer than the context unless ``truncate`` keeps its beginning, and for one
        without tokens.
        """
        if isinstance(texts, str):
            raise UserError("embed takes a list of texts; put the text in brackets")
        rows = [self._embeddable(text, truncate) for text in texts]
        return embedding.embed(self.model, rows, batch_size=batch_size)

    def classify(
        self,
        texts: Sequence[Classifiable],
        *,
        temperature: float | None = None,
        truncate: bool = False,
        batch_size: int = 32,
    ) -> list[dict[str, float]]:
        """For each text, or pair of texts, the probability of every label, likeliest first.

        Of one label a text they add up to 1; of several at once each stands alone. Logits are divided by
        ``temperature``, by default the one that tuning found on held-out examples. Raises `UserError` for a model
        without a classifier, or one that tells a number (`rate`), and as `embed` does.
        """
        if self._tells_a_number:
            raise UserError(f"{self.name}: this model tells a number, not a label; use rate")
        logits = self._label_logits(texts, "classify", truncate, batch_size) / (temperature or self.temperature)
        several = self.config.problem == "several"
        shares = torch.sigmoid(logits) if several else torch.softmax(logits, dim=-1)
        found = []
        for row in shares.tolist():
            pairs = sorted(zip(self._label_names, row, strict=True), key=lambda pair: -pair[1])
            found.append(dict(pairs))
        return found

    def rate(self, texts: Sequence[Classifiable], *, truncate: bool = False, batch_size: int = 32) -> list[float]:
        """For each text, or pair of texts, the number that a regression model tells of it.

        Raises `UserError` for other models, and as `embed` does.
        """
        if not self._tells_a_number:
            raise UserError(f"{self.name}: this model tells no number of a text; use classify, or embed")
        return self._label_logits(texts, "rate", truncate, batch_size)[:, 0].tolist()

    def tag(
        self, texts: Sequence[str | Sequence[str]], *, truncate: bool = False, batch_size: int = 32
    ) -> list[Tagged]:
        """For each text, which is split into words and marks, or list of words: every word's tag, and the spans.

        Places are characters of the text; a list of words is a text with a space between them. Raises `UserError` for
        a model that does not label words, for a word without tokens, and as `embed` does.
        """
        self._need("token_classifier", what="label words")
        if isinstance(texts, str):
            raise UserError("tag takes a list of texts; put the text in brackets")
        placed = [split_words(text) if isinstance(text, str) else place_words(text) for text in texts]
        before, _, after = frame(self.tokenizer, "a")
        encoded = encode_words(self.tokenizer, [[word.text for word in words] for words in placed])
        rows, places = [], []
        for words, pieces in zip(placed, encoded, strict=True):
            if empty := [word.text for word, ids in zip(words, pieces, strict=True) if not ids]:
                raise UserError(f"the word {empty[0]!r:.40} has no tokens; leave it out")
            size = len(before) + sum(map(len, pieces)) + len(after)
            limit = self.config.max_positions
            if size > limit and not truncate:
                raise UserError(
                    f"a text has {size} tokens and this model's context is {limit}; pass truncate=True to label its "
                    "beginning only"
                )
            ids, where = lay_words(pieces, before, after, limit, last=self.config.causal)
            rows.append(ids)
            places.append(where)
        said = [number for number, where in enumerate(places) if where]
        logits = word_logits(self.model, [rows[n] for n in said], [places[n] for n in said], batch_size=batch_size)
        found = [Tagged((), ())] * len(texts)
        for number, each in zip(said, logits, strict=True):
            shares, tags = torch.softmax(each / self.temperature, dim=-1).max(-1)
            words = [
                TaggedWord(word.text, self._label_names[tag], share, word.start, word.stop)
                for word, tag, share in zip(placed[number], tags.tolist(), shares.tolist(), strict=False)
            ]
            text = texts[number]
            found[number] = collect(text if isinstance(text, str) else " ".join(text), words)
        return found

    @property
    def _tells_a_number(self) -> bool:
        config = self.config
        single = self.model.head_kind == "sequence_classifier" and config.n_labels == 1
        return config.problem == "number" or (single and config.problem is None)

    @property
    def _label_names(self) -> tuple[str, ...]:
        return self.config.labels or tuple(f"LABEL_{n}" for n in range(self.config.n_labels or 2))

    def _label_logits(self, texts: Sequence[Classifiable], what: str, truncate: bool, batch_size: int) -> Tensor:
        self._need("sequence_classifier", what="classify")
        if isinstance(texts, str):
            raise UserError(f"{what} takes a list of texts; put the text in brackets")
        rows = [
            Framed(self._embeddable(text, truncate)) if isinstance(text, str) else self._framed_pair(*text, truncate)
            for text in texts
        ]
        return label_logits(self.model, [row.ids for row in rows], [row.types for row in rows], batch_size=batch_size)

    def _framed_pair(self, first: str, second: str, truncate: bool) -> Framed:
        limit = self.config.max_positions if truncate else None
        found = PairFrame.of(self.tokenizer).join(self.tokenizer.encode(first), self.tokenizer.encode(second), limit)
        self._fitting(found.ids, "a pair of texts", "pass truncate=True to cut the longer text")
        return found

    @overload
    def reward(self, said: Prompt, *, truncate: bool = ..., batch_size: int = ...) -> float: ...

    @overload
    def reward(self, said: Prompts, *, truncate: bool = ..., batch_size: int = ...) -> list[float]: ...

    def reward(self, said: Prompt | Prompts, *, truncate: bool = False, batch_size: int = 32) -> float | list[float]:
        """How good a reward model finds a text, or a chat up to its last answer; or each of a list of those.

        Only differences between answers to one prompt mean something. Raises `UserError` for a model that gives not one
        number, a chat without a template, and what is longer than the context, unless ``truncate`` keeps its beginning.
        """
        self._need("sequence_classifier", what="give rewards")
        if self.config.n_labels != 1:
            raise UserError(f"{self.name}: tells {self.config.n_labels or 2} labels and gives no reward; use classify")
        many = _is_many(said)
        rows = []
        for one in cast(list[Prompt], list(said) if many else [said]):
            if isinstance(one, str):
                rows.append(self._embeddable(one, truncate))
                continue
            messages = [item for item in one if isinstance(item, Mapping)]
            ids = self.chat_template.render(messages, add_generation_prompt=False).ids if messages else one
            checked = check_ids(cast(Sequence[int], ids), self.config.vocab_size)
            rows.append(self._fitting(checked[: self.config.max_positions] if truncate else checked, "the input"))
        found = label_logits(self.model, rows, batch_size=batch_size)[:, 0].tolist()
        return found if many else found[0]

    def _embeddable(self, text: str, truncate: bool) -> list[int]:
        before, ids, after = frame(self.tokenizer, text)
        if not ids and not before and self.tokenizer.bos_id is not None:
            before = [self.tokenizer.bos_id]
        if truncate:
            ids = ids[: max(0, self.config.max_positions - len(before) - len(after))]
        return self._fitting([*before, *ids, *after], "a text", "pass truncate=True to embed its beginning only")

    def _fitting(self, ids: list[int], what: str, remedy: str = "shorten it") -> list[int]:
        if not ids:
            raise UserError(f"{what} has no tokens; give at least one")
        if len(ids) > self.config.max_positions:
            raise UserError(
                f"{what} has {len(ids)} tokens and this model's context is {self.config.max_positions}; {remedy}"
            )
        return ids

    def _need(self, *heads: str, what: str) -> None:
        if self.model.head_kind not in heads:
            raise UserError(
                f"{self.name}: a {self.config.family} model (head: {self.model.head_kind}) cannot {what}; "
                "use a language model"
            )


def _is_many(prompt: Prompt | Prompts) -> bool:
    """Whether ``prompt`` is a list of prompts: of texts, or of lists."""
    return (
        isinstance(prompt, Sequence)
        and not isinstance(prompt, str)
        and all(isinstance(one, Sequence) for one in prompt)
    )
