"""Templates written to harm: each must end in one line, soon, and with little memory."""

import pytest

from langwright.core.errors import UserError
from langwright.tokenizer.chat import ChatTemplate
from langwright.tokenizer.tokenizer import Tokenizer

MESSAGES = [{"role": "user", "content": "hi there"}]
LETTERS = "{% set s = 'a' * 100000 %}"
LOOP = "{% for i in range(99999) %}"
ENDFOR = "{% endfor %}"
GROWING = (
    "{% set ns = namespace(x=START, y=START) %}{% for i in range(100) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x }}"
)


def growing(start: str, step: str, then: str = "") -> str:
    return GROWING.replace("START", start).replace("STEP", step) + then


BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that print": "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
    "loops in a block": "{% set x %}" + LOOP * 2 + "a" + ENDFOR * 2 + "{% endset %}",
    "loop over letters": LETTERS + "{% for a in s %}{% for b in s %}{% endfor %}{% endfor %}",
    "huge range": "{{ range(10**12) | list }}",
    "text times": "{{ 'a' * 10**9 }}",
    "times text": "{{ 10**9 * 'a' }}",
    "content times": "{{ messages[0].content * 10**9 }}",
    "list times": "{{ [1] * 10**9 }}",
    "empty list times": "{{ [] * 10**12 }}",
    "power": "{{ 9**(9**9) }}",
    "squares": growing("2", "ns.x * ns.x"),
    "doubling text": growing("'a'", "ns.x + ns.x"),
    "doubling with ~": growing("'a'", "ns.x ~ ns.x"),
    "doubling lists": growing("[1]", "ns.x + ns.x"),
    "lists in lists": growing("[1]", "[ns.x, ns.x]"),
    "dicts in dicts": growing("[1]", "{'a': ns.x, 'b': ns.x}"),
    "tuples as keys": growing("(1,)", "(ns.x, ns.x)", "{{ {ns.x: 1} }}"),
    "comparing nests": growing("[1]", "[ns.x, ns.x]") + "{{ ns.x == ns.y }}",
    "a deep nest": growing("[]", "[ns.x]").replace("100)", "99999)"),
    "many long texts": LETTERS + growing("[]", "ns.x + [s ~ i]").replace("100)", "99999)"),
    "one text in many places": LETTERS + "{{ [s] * 90000 }}",
    "the same as JSON": LETTERS + "{{ ([s] * 90000) | tojson }}",
    "indented JSON": "{{ [[1]] | tojson(indent=10**9) }}",
    "deep indented JSON": growing("range(50000) | list", "[ns.x]", "{{ ns.x | tojson(indent=100) }}"),
    "joined": LETTERS + "{{ range(99999) | join(s) }}",
    "replaced": LETTERS + "{{ s.replace('a', s) }}",
    "replaced nothing": LETTERS + "{{ s.replace('', s) }}",
    "replace filter": LETTERS + "{{ s | replace('a', s) }}",
    "indented": "{{ ('x\n' * 50000) | indent(10**9) }}",
    "indented by text": LETTERS + "{{ ('x\n' * 50000) | indent(s) }}",
    "split again and again": "{% set s = 'a ' * 40000 %}" + LOOP + "{% set y = s.split() %}" + ENDFOR,
    "compared again and again": LETTERS
    + "{% set t = 'a' * 100000 %}"
    + LOOP * 2
    + "{% if s == t %}{% endif %}"
    + ENDFOR * 2,
    "compared in a long line": "{% set s = 'a' * 99999 * 39 %}{% set t = 'a' * 99999 * 39 %}"
    + "{% if s == t %}{% endif %}" * 3000,
    "tested in a long line": "{% set s = 'a' * 99999 * 39 %}{% set t = 'a' * 99999 * 39 %}" + "{{ s is eq t }}" * 5000,
    "cut in a long line": "{% set s = 'a' * 99999 * 39 %}"
    + "".join(f"{{% set s{i} = s[1:] %}}" for i in range(3000)),
    "searched again and again": LETTERS + "{% for i in range(99999) %}{% if 'ab' in s %}{% endif %}{% endfor %}",
    "mapped again and again": LOOP + "{% set y = range(9999) | map('string') %}" + ENDFOR,
    "lazy chain": growing("['a']", "ns.x | map('upper')").replace("100)", "99999)"),
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive loop": "{% for x in [[1]] recursive %}{{ loop(x) }}{% endfor %}",
    "recursive block": "{% block a %}{{ self.a() }}{% endblock %}",
    "padding": "{{ 'a'.ljust(10**9) }}",
    "centred": "{{ 'a' | center(10**9) }}",
    "wide format": "{{ '{:>999999999}'.format(1) }}",
    "wide %": "{{ '%999999999d' % 1 }}",
    "wide filter": "{{ '%999999999d' | format(1) }}",
    "wide date": "{{ strftime_now('%999999999Y' * 50) }}",
    "rounded": "{{ 1.5 | round(10**9, 'floor') }}",
    "batched": "{{ [1] | batch(10**9, 'x') | list }}",
    "lorem ipsum": "{{ lipsum(n=10**7) }}",
    "long number": "{{ " + "9" * 50000 + " }}",
    "hexadecimal": "{{ ('0x' ~ 'f' * 50000) | int(base=16) + 1 }}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "additions": "{{ " + "+".join(["1"] * 20000) + " }}",
    "nested ifs": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "nested fors": "{% for a in [1] %}" * 40 + "{% endfor %}" * 40,
    "a long source": "a" * 200_000,
}  # fmt: skip

ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ '' | attr('__class__') }}",
    "{{ messages.__class__ }}",
    "{{ messages[0]['__class__'] }}",
    "{{ messages['__class__'] }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{{ messages | selectattr('__class__.__mro__') | list }}",
    "{{ messages | sort(attribute='__class__') }}",
    "{{ raise_exception.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ strftime_now.__code__ }}",
    "{{ range.__class__ }}",
    "{{ dict.mro() }}",
    "{{ dict.fromkeys('ab') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ ''.join.__self__ }}",
    "{{ ''.upper.__func__ }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "{{ '%s' % messages }}",
    "{% macro f() %}{% endmacro %}{{ f._func }}",
    "{% macro f() %}{{ caller.__class__ }}{% endmacro %}{% call f() %}{% endcall %}",
    "{% for x in [1] %}{{ loop._iterable }}{% endfor %}",
    "{% for x in [1] %}{{ loop.__class__ }}{% endfor %}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ namespace(__call__=1) }}",
    "{{ namespace({'_x': 1}) }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='system') }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages[0].content.encode() }}",
    "{{ messages[0].content.mask }}",
    "{{ messages[0].content.translate({}) }}",
    "{{ (1).__class__ }}",
    "{{ (1).real }}",
    "{{ cycler.__init__ }}",
    "{{ joiner }}{{ joiner() }}",
    "{% include 'x' %}",
    "{% import 'x' as x %}",
    "{% extends 'x' %}",
    "{% autoescape true %}{% endautoescape %}",
    "{{ x.y }}",
    "{{ self }}",
    "{{ namespace() }}",
    "{{ [namespace()] }}",
    "{{ messages[0].content | urlize }}",
    "{% for x in none %}{% endfor %}",
]


def refused(source: str, tokenizer: Tokenizer) -> str:
    with pytest.raises(UserError, match="^the chat template ") as caught:
        ChatTemplate(source, tokenizer, cpu_seconds=0.05).render(MESSAGES)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str, plain: Tokenizer) -> None:
    refused(BOMBS[name], plain)


@pytest.mark.parametrize("source", ESCAPES)
def test_escapes(source: str, plain: Tokenizer) -> None:
    refused(source, plain)


def test_what_it_says(plain: Tokenizer) -> None:
    assert refused(BOMBS["nested loops"], plain) == "the chat template failed: it computes too long"
    assert refused(ESCAPES[0], plain) == "the chat template failed: '__class__' of a str is not offered"
    assert refused(BOMBS["endless recursion"], plain).endswith("it is nested or calls itself too deeply")
    assert refused("{% if %}", plain).startswith("the chat template does not compile: ")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ [1, 'a', none, true, 2.5] }}", "[1, 'a', None, True, 2.5]"),
        ("{{ {'a': (1, 2)} }}{{ none }}{{ missing }}{{ range(3) }}", "{'a': (1, 2)}Nonerange(0, 3)"),
        ("{{ messages[0].items() | list | length }}{{ messages[0].get('x', 7) }}", "27"),
        ("{{ messages | map(attribute='content') | join(', ') }}", "hi there"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{{ {'b': '<é>', 'a': [1]} | tojson }}", '{"b": "<é>", "a": [1]}'),
        ("{{ {'b': 1, 'a': [1]} | tojson(indent=2, sort_keys=true) }}", '{\n  "a": [\n    1\n  ],\n  "b": 1\n}'),
        ("{{ 'a\n\nb\n' | indent(2) }}|{{ 'a\nb' | indent('->', true) }}", "a\n\n  b\n|->a\n->b"),
        ("{{ 'a\n\nb' | indent(1, blank=true) }}|{{ '' | indent }}", "a\n \n b|"),
        ("{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ loop.index }}{% endfor %}", "13"),
        ("{% for k, v in {'a': 1}.items() %}{{ k ~ v }}{% endfor %}{% for x in y %}{% else %}no{% endfor %}", "a1no"),
        ("{% for x in 'abc' if x != 'b' %}{{ x }}{{ loop.last }}{% endfor %}", "aFalsecTrue"),
        ("{% macro f(a, b='x') %}{{ a ~ b }}{{ caller() }}{% endmacro %}{% call f(2) %}c{% endcall %}", "2xc"),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x | upper }}{% filter title %}hi{% endfilter %}", "A1Hi"),
        ("{% set a, b = 1, (2, 3) %}{{ a + b[1] }}{{ [1] + [2] }}{{ 7 // 2 }}{{ -a * 2**9 }}", "4[1, 2]3-512"),
        ("{{ 'ab' * 2 }}{{ 'a-b'.split('-')[1] }}{{ ' x '.strip() }}{{ 'abc'[::-1] }}", "ababbxcba"),
        ("{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ dict(a=1).a }}", "21"),
        ("{{ 'y' if messages[0].content is string and 'hi' in messages[0].content else 'n' }}", "y"),
        ("{{ strftime_now('%Y') | int > 2000 }}", "True"),
    ],
)  # fmt: skip
def test_ordinary_templates_are_jinja(source: str, text: str, plain: Tokenizer) -> None:
    assert ChatTemplate(source, plain).render(MESSAGES).text == text


def test_long_content_is_no_bomb(plain: Tokenizer) -> None:
    source = "{% for m in messages %}{{ m.content | trim if m.content is iterable }}\n{% endfor %}"
    messages = [{"role": "user", "content": "word " * 60_000}] * 5
    assert len(ChatTemplate(source, plain).render(messages).text) == 5 * 300_000
    many = [{"role": "user", "content": "word"}] * 5000
    assert len(ChatTemplate(source, plain).render(many).text) == 25_000
