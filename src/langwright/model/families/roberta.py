"""RoBERTa (Liu et al. 2019, arXiv:1907.11692): BERT's layers, positions counted from the padding id on."""

from typing import Any

from langwright.core.errors import FormatError
from langwright.model.config import ModelConfig
from langwright.model.families.base import ConfigReader, Family
from langwright.model.families.bert import bert_rules, read_bert, write_bert
from langwright.model.rename import rule


def _read(reader: ConfigReader) -> dict[str, Any]:
    pad = reader.values.setdefault("pad_token_id", 1)
    if isinstance(pad, bool) or not isinstance(pad, int) or pad < 0:
        raise FormatError(
            f"{reader.source}: 'pad_token_id' should be a number, as positions are counted from it; is {pad!r:.60}"
        )
    fields = read_bert(reader)
    # Of the position table's rows, those up to the padding id belong to no position.
    return fields | {
        "position_offset": pad + 1,
        "max_positions": fields["max_positions"] - pad - 1,
        "head_activation": "gelu",
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return write_bert(config) | {"max_position_embeddings": config.max_positions + config.position_offset}


FAMILY = Family(
    name="roberta",
    model_types=("roberta",),
    read=_read,
    write=_write,
    rules=bert_rules("roberta."),
    heads={
        "masked_lm": (
            rule("lm_head.dense.{p}", "head.transform.dense.{p}"),
            rule("lm_head.layer_norm.{p}", "head.transform.norm.{p}"),
            rule("lm_head.decoder.weight", "head.proj.weight"),
            rule("lm_head.bias", "head.proj.bias"),
        ),
        "sequence_classifier": (
            rule("classifier.dense.{p}", "head.transform.dense.{p}"),
            rule("classifier.out_proj.{p}", "head.proj.{p}"),
        ),
        "token_classifier": (rule("classifier.{p}", "head.proj.{p}"),),
        "embedding": (),
    },
    architectures={
        "masked_lm": "RobertaForMaskedLM",
        "sequence_classifier": "RobertaForSequenceClassification",
        "token_classifier": "RobertaForTokenClassification",
        "embedding": "RobertaModel",
    },
    prefix="roberta.",
    unused=(
        r"(roberta\.)?pooler\..*",
        r"(roberta\.)?embeddings\.(position_ids|token_type_ids)",
        r"lm_head\.decoder\.bias",
    ),
)
