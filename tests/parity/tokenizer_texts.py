"""2,000 strings that tokenizers disagree on, built the same way every time."""

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "../shared/data"
COUNT = 2000

EDGES = [
    "", " ", "  ", "\n", "\r\n", "\t", "\n\n\n", " \n ", "\n \n", "a\u00a0b", "a\u3000b", "\u200b",
    "\ufeffa", "\x00", "\x7f\x80", "0", "00", "007", "1234567890", "3.14159", "1,000,000", "-5", "1e-9",
    "٣٤٥", "①②③", "Ⅻ", "½", "x²", "2\u00b2\u2075", "１２３", "I'm you've he'd SHE'LL they're it's IT'S 's",
    "don’t", "''s", "O'Neill's", "…", "—–-", "$100", "50%", "a_b", "__init__", "你好，世界！", "繁體中文",
    "你好world", "北京2008年", "「引号」", "㐀㐁", "𠀀𠀁", "日本語テキスト", "ｶﾀｶﾅ", "한국어 문장", "ไทย",
    "हिन्दी", "العربية", "Zürich", "naïve café", "cafe\u0301", "e\u0301\u0323", "İstanbul ß ẞ ŉ", "Ω≈ç√∫",
    "ﬁ ﬂ", "Привет, мир", "ÅÅÅ", "😀", "😀😀", "👩‍👩‍👧‍👦", "👍🏽", "🏳️‍🌈", "🇨🇳🇫🇷", "❤️", "1️⃣", "a😀b",
    "🤷‍♂️ ok", "\U0001f9d1\u200d\U0001f680", "def f(x):\n    return x  # ok\n", "if (a && b) { c++; }",
    "\tfor i in range(10):\n\t\tprint(i)", "<div class=\"a\">x</div>", "{\"a\": [1, 2.5, null]}",
    "https://example.com/a?b=c&d=%20#e", "a@b.co", "C:\\dir\\file.txt", "foo();;;;bar", "#include <x.h>",
    "    four", "        eight", "a    b", "trailing   ", "   leading", "x\n\n\ny", "x \n \n y", "\t\t x",
    "a\rb", "a\u2028b", "a\x0bb\x0cc", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "=" * 70, "!?!?!?",
    "........", "~~~~", "ALLCAPS", "camelCaseWord", "snake_case_word",
]  # fmt: skip


def texts() -> list[str]:
    """`COUNT` different strings: the edges, lines of books, documentation and code, and shuffled mixtures of all."""
    draw = random.Random(20261124)
    lines = sorted(set(_lines()))
    chosen = draw.sample(lines, 1200)
    found = dict.fromkeys([*EDGES, *chosen])
    alphabets = ["abcdefgh XYZ", "0123456789 .,", "你好世界的一是在不了，。", "😀👍🏽❤️\u200d🇨🇳"]
    alphabets += [" \t\n\r", "{}()[];=<>/\\'\"", "éàüßçñøåœ", "\u0301\u0300"]
    while len(found) < COUNT:
        parts = []
        for _ in range(draw.randint(1, 6)):
            if draw.random() < 0.5:
                line = draw.choice(lines)
                start = draw.randrange(len(line))
                parts.append(line[start : start + draw.randint(1, 40)])
            else:
                alphabet = draw.choice(alphabets)
                parts.append("".join(draw.choice(alphabet) for _ in range(draw.randint(1, 12))))
        found["".join(parts)] = None
    return list(found)[:COUNT]


def _lines() -> Iterator[str]:
    yield from gzip.decompress((DATA / "lm/en/tinyshakespeare.txt.gz").read_bytes()).decode().split("\n\n")[:4000]
    for name in ("lm/zh/vue_docs_zh", "lm/zh/chinese_poetry", "lm/en/wikipedia_demo", "code/cpython_stdlib"):
        with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            for _, row in zip(range(12), file, strict=False):
                value = json.loads(row)
                text = value.get("text") or value.get("content") or json.dumps(value, ensure_ascii=False)
                yield from (line for line in text.splitlines()[:400] if line)
