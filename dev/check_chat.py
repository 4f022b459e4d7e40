#!/usr/bin/env python3
"""Compares data/chat.h with transformers: every template given, in every conversation of a matrix.

    pip install transformers jinja2
    python3 dev/check_chat.py build/test_chat TEMPLATES...     # .jinja files; prints what test_chat counts
    python3 dev/check_chat.py --golden                         # test/golden/chat_templates.jsonl: templates of our own

A line: name, template (absent: the line before's), messages, tools, kwargs, tokens, add_generation_prompt, and what
transformers makes of them: text (null: it raises) and generation, the characters within {% generation %}.
"""
import datetime
import itertools
import json
import os
import subprocess
import sys
import tempfile
from transformers.utils import chat_template_utils as utils


class Fixed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2025, 7, 26)


utils.datetime = Fixed

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Say \"hi\" \u2014 <b>&'now'</b>",
    "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "description": "Where"}, "unit": {"type": "string", "enum": ["c", "f"], "default": "c"},
        "days": {"type": ["integer", "null"], "minimum": 0, "maximum": 1e3}, "deep": {"type": "object", "properties": {
            "list": {"type": "array", "items": {"type": "number"}}, "on": {"type": "boolean", "nullable": True}}}},
        "required": ["city"]},
    "return": {"type": "string"}}}
PLAIN = {"type": "function", "function": {"name": "g", "description": "", "parameters": {"type": "object", "properties": {}}}}
NUMBERS = {"type": "function", "function": {"name": "n", "description": "x\ny", "strict": True, "parameters": {
    "type": "object", "properties": {"a": {"type": "number", "enum": [1, 2.5, -0.0, 1e22, 1e-7, None, True]}},
    "additionalProperties": False}}}
TOOLS = [None, [WEATHER], [WEATHER, PLAIN, NUMBERS], []]


def m(role, content, **more):
    return dict(role=role, content=content, **more)


def call(name, arguments, id=None):
    c = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return dict(c, id=id) if id else c


U = [m("user", c) for c in ("Hello", " What's \"1+1\"?\n", "\u00fcber \u0e01\U0001f600 \u200b\u3000", "")]
A = [m("assistant", c) for c in ("Hi.", " It is 2. \n", "\nna\u00efve \u4e2d\u6587\n", "")]
THINK = [m("assistant", "<think>\nOne and\n\none.\n</think>\n\nTwo."), m("assistant", "Two.", reasoning_content="\nAside\n"),
         m("assistant", "Two.", thinking="Aside"), m("assistant", "Two.", reasoning="Apart", reasoning_content=None),
         m("assistant", "a</think>b</think>\nc")]
CALLS = [m("assistant", "", tool_calls=[call("get_weather", {"city": "K\u00f6ln", "days": 2, "deep": {"list": [1.5, None]}})]),
         m("assistant", "Look:", tool_calls=[call("get_weather", {"city": "a<b"}, "abcdefghi"), call("g", {}, "123456789")]),
         m("assistant", None, tool_calls=[call("get_weather", '{"city": "Rome"}', "call00001")], reasoning_content="Must call"),
         m("assistant", None, tool_calls=[{"name": "g", "arguments": {"x": True, "y": "it's"}}])]
RESULTS = [m("tool", '{"t": 21.5}', name="get_weather", tool_call_id="abcdefghi"), m("tool", "sunny\n", tool_call_id="123456789"),
           m("tool", "21")]
S = m("system", "Be kind.\n"), m("system", ""), m("developer", "Be brief.")
PARTS = [m("user", [{"type": "text", "text": "Part one. "}, {"type": "text", "text": "Two"}]),
         m("user", [{"type": "image"}, {"type": "text", "text": "What is it?"}]), m("user", ["a", "b"]),
         m("assistant", [{"type": "text", "text": " A cat. "}])]

CHATS = [[], [S[0]], [U[0]], [U[0], A[0]], [U[1], A[1]], [U[2], A[2]], [U[3], A[3]], [S[0], U[0], A[0], U[1], A[1]],
         [S[1], U[0], A[0]], [S[2], U[0], A[0]], [U[0], A[0], U[1], A[1], U[2], A[2]], [A[0], U[0]], [U[0], U[1]],
         [U[0], A[0], A[1]], [U[0], S[0], U[1], A[0]], [U[0], A[0], U[1]], [m("critic", "odd"), U[0]], [m(None, "x")],
         [m("user", None), A[0]], [{"role": "user"}], [{"content": "no role"}], [m("user", 3), m("assistant", 1.5)],
         [S[0], *itertools.chain.from_iterable([U[k % 4], A[(k + 1) % 4]] for k in range(6))]]
CHATS += [[U[0], t] for t in THINK] + [[U[0], t, U[1], THINK[0]] for t in THINK] + [[S[0], U[0], THINK[1], U[1]]]
CHATS += [[U[0], c] for c in CALLS] + [[U[0], c, RESULTS[0], A[0]] for c in CALLS]
CHATS += [[S[0], U[0], CALLS[1], RESULTS[0], RESULTS[1], A[0], U[1], CALLS[0], RESULTS[2]], [U[0], THINK[1], U[1], CALLS[2],
          RESULTS[0], THINK[1]], [U[0], m("assistant", "x", tool_calls=[]), U[1]], [U[0], RESULTS[0]], [RESULTS[2]],
          [U[0], m("ipython", "out"), A[0]], [U[0], m("assistant", "p", prefix=True)]]
CHATS += [[p] for p in PARTS] + [[S[0], PARTS[0], PARTS[3], U[0]], [m("system", [{"type": "text", "text": "Sys"}]), U[0]]]

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
KWARGS = [{}, {"enable_thinking": False}, {"enable_thinking": True}, {"reasoning_effort": "low", "thinking": True},
          {"date_string": "1 Jan 2025", "documents": None, "preserve_thinking": True, "model_identity": "Me",
           "clear_thinking": False, "keep_past_thinking": True, "tools_in_user_message": False, "xml_tools": [], "custom_tools": None}]


def render(template, chat, tools, kwargs, generation, tokens=TOKENS):
    kwargs = {k: v for k, v in kwargs.items() if k != "documents"}
    try:
        compiled = utils._compile_jinja_template(template)
        env = compiled.environment
        texts, spans = utils.render_jinja_template(
            [chat], tools=tools, chat_template=template, add_generation_prompt=generation,
            return_assistant_tokens_mask="generation" in env.extensions or "{% generation" in template or
            "{%- generation" in template, **tokens, **kwargs)
        return texts[0], spans[0] if spans else None
    except Exception:
        return None, None


def line(name, template, chat, tools, kwargs, generation):
    kwargs = {k: v for k, v in kwargs.items() if k != "documents"}
    text, spans = render(template, chat, tools, kwargs, generation)
    row = dict(name=name, messages=chat, tokens=TOKENS, add_generation_prompt=generation, text=text)
    if tools is not None:
        row["tools"] = tools
    if kwargs:
        row["kwargs"] = kwargs
    if spans is not None:
        row["generation"] = [list(s) for s in spans if s[0] < s[1]]
    return row


def matrix(name, template):
    first = True
    for i, chat in enumerate(CHATS):
        for k, tools in enumerate(TOOLS):
            for j, kwargs in enumerate(KWARGS):
                if k and j and (i + k + j) % 3:
                    continue
                for generation in (False, True):
                    row = line(name, template, chat, tools, kwargs, generation)
                    if first:
                        row["template"] = template
                    first = False
                    yield row


# Templates of our own: all that published ones use, a few lines each; those of the second list raise.
OWN = [
    "{{ bos_token }}{% for m in messages %}\n  <|{{ m.role }}|>\n{{ m['content'] }}{{ eos_token }}\n  {%- if loop.last %}!{% endif +%}\n{% endfor %}\n\n",
    "a \n {%- set x = 1 -%} \n b {# c #}\n  {# d -#}\n\n e {%+ if x %} f\n{% endif %}\n\tg\n  {{- x -}}  h\r\ni {{ '\\n\\x41\\u00e9\\'\\d' \"q\" }}\n",
    "{% macro t(a, b='B', c=[1]) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ t(1) }}{{ t('x', c=none) }}{{ t(b=2, a=true) }}{{ t() }}",
    "{% macro tree(v, d=0) %}{% if v is mapping %}{ {% for k, w in v|dictsort %}{{ k }}={{ tree(w, d + 1) }};{% endfor %} }{% elif v is sequence and v is not string %}[{% for w in v %}{{ tree(w, d+1) }},{% endfor %}]{% else %}{{ d }}:{{ v }}{% endif %}{% endmacro %}{{ tree(tools) }}{{ tree(messages) }}",
    "{% set ns = namespace(n=0, last=none) %}{% set y = 5 %}{% for m in messages if m.role != 'system' and ns.n < 2 %}{% set ns.n = ns.n + 1 %}{{ y }}{% set y = loop.index0 %}{{ y }}{% set ns.last = m %}{{ loop.length }}{{ loop.revindex }}{% endfor %}{{ ns.n }}{{ y }}{{ ns.last.content }}{{ ns.missing is defined }}",
    "{% for m in messages %}{{ loop.index }}{{ loop.first }}{% if loop.previtem is defined %}{{ loop.previtem.role }}{% endif %}{% if loop.nextitem %}{{ loop.nextitem.role }}{% endif %}{% if loop.index == 2 %}{% continue %}{% endif %}{% if loop.index0 == 3 %}{% break %}{% endif %}.{% endfor %}",
    "{{ messages[::-1] }}{{ messages[1:] | length }}{{ messages[-1].content }}{{ 'h\u00e9llo'[::-1] }}{{ 'h\u00e9llo'[1:3] }}{{ 'h\u00e9llo'[-2:] }}{{ 'abc'[5] is undefined }}{{ 'abcdef'[4:0:-2] }}{{ [1,2,3][:-1] }}{{ (1,2)[0:1] }}{{ 'ab'[None:none] }}",
    "{{ tools | tojson }}|{{ tools | tojson(indent=2) }}|{{ tools | tojson(ensure_ascii=true) }}|{{ messages | tojson(separators=(',', ':')) }}|{{ tools | tojson(sort_keys=true, indent='\t') }}|{{ {1: 2, none: [], 1.5: {}} | tojson(indent=0) }}|{{ \"<>&'\\x7f\u00e9\u2028\" | tojson }}{{ '\U0001f600\\x7f' | tojson(ensure_ascii=True) }}",
    "{{ 1 }}{{ 1.0 }}{{ 1e3 if false }}{{ 100000000000000000.0 * 10 }}{{ 0.1 + 0.2 }}{{ 1 / 2 }}{{ 7 // 2 }}{{ -7 // 2 }}{{ -7 % 3 }}{{ 7 % -3 }}{{ 7.5 % 2 }}{{ true + 1 }}{{ 2 * 'ab' }}{{ [1] * 2 }}{{ none }}{{ true }}{{ -1 | string }}{{ 1 < 2 < 3 }}{{ 1 < 3 < 2 }}{{ 1 == 1.0 == true }}",
    "{{ ['a', \"it's\", 'q\"', 'b\\n\\t\\\\', '\u00e9\u200b\U0001f600\\x00', 1.5, none, true, (1,), (), {'k': [1]}] }}{{ ('x' if messages else 'y') ~ 1 ~ none ~ [] }}{{ missing }}{{ [missing] }}",
    "{{ ' a b  c '.split() }}{{ 'a,b,,c'.split(',') }}{{ 'a,b,c'.split(',', 1) }}{{ ' a b c '.split(none, 1) }}{{ 'xxaxx'.strip('x') }}{{ '\\n\\na\\n'.lstrip('\\n') }}{{ 'abba'.rstrip('ab') }}{{ '\u3000a\u00a0'.strip() }}{{ 'abc'.startswith(('x', 'ab')) }}{{ 'abc'.endswith('bc') }}{{ 'aBC \u00c9'.capitalize() }}{{ 'aXbX'.replace('X', '--') }}{{ 'aXbX'.replace('X', '', 1) }}{{ 'AB\u0130\u03a3'.lower() }}{{ 'ab'.upper() }}{{ ','.join(['a', 'b']) }}",
    "{{ ' a '|trim }}.{{ 'xay'|trim('xy') }}{{ [1,none,'a']|join('-') }}{{ messages|map(attribute='role')|join(', ') }}{{ ['a','B']|map('upper')|list }}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}{{ messages|rejectattr('role', 'in', ['user','assistant'])|list }}{{ [1,0,2,none]|select|list }}{{ ['a','b']|reject('equalto', 'a')|list }}{{ ['b','A','a','B']|unique|list }}{{ {'b':1,'A':2,'a':0}|dictsort }}{{ {'b':1,'a':2}|dictsort(by='value', reverse=true) }}{{ 'a\nb\n\nc'|indent }}{{ 'a\nb\n\n'|indent(2, true, true) }}{{ missing|default('d') }}{{ ''|default('e', true) }}{{ none|default('f') }}{{ 'x'|default }}{{ 'abc'|length }}{{ {'a':1}|items|list }}{{ 'Ab C'|lower|upper|capitalize }}{{ 'aa'|replace('a','b',1) }}{{ missing|length }}{{ missing|list }}{{ 5|string|length }}",
    "{{ '<a>' + ('<b>'|safe) + \"<c'>\" }}{{ ('<b>'|safe) ~ '<c>' }}{{ '<d>' ~ (tools|tojson|safe) }}{{ ('<x>'|safe|trim) + '&' }}{{ (' <x> '|safe).strip() + '\"' }}{{ ['<x>'|safe] }}",
    "{% set x %}a{{ 1 }}\n{% endset %}{{ x|trim }}{{ x is string }}{% set y | upper | trim %} q{% endset %}{{ y }}{% filter upper %}ab{{ x }}{% endfilter %}{% set a, b = 1, 'z' %}{{ b ~ a }}{% for a, b in [(1, 2), 'xy'] %}{{ a }}{{ b }}{% endfor %}{{ a }}",
    "{{ 1 is defined }}{{ q is undefined }}{{ none is none }}{{ [] is iterable }}{{ 1 is iterable }}{{ q is iterable }}{{ {} is mapping }}{{ 'a' is sequence }}{{ {} is sequence }}{{ true is boolean }}{{ 1 is boolean }}{{ 1 is number }}{{ 1.5 is float }}{{ true is integer }}{{ 0 is false }}{{ false is false }}{{ true is true }}{{ 'a' is string }}{{ 1 is not string }}{{ 2 is equalto 2 }}{{ 'a' is in 'abc' }}{{ 2 is eq(2.0) }}{{ not q is defined }}",
    "{{ 'a' in 'abc' }}{{ 'x' not in ['x'] }}{{ 'k' in {'k': 1} }}{{ 1 in (1.0, 2) }}{{ 'x' in q }}{{ '' in '' }}{{ [1, 2] < [1, 3] }}{{ 'a' < 'b' }}{{ [1] == (1,) }}{{ {'a': 1} == {'a': 1.0} }}{{ q == r }}{{ none == q }}{{ 0 or 'x' }}{{ '' and 1 }}{{ [] or {} }}{{ not [] }}{{ 1 if q }}{{ 'a' if 0 else 'b' if 0 else 'c' }}",
    "{% for k, v in tools[0].function.items() %}{{ k }}{{ v is mapping }}{% endfor %}{{ tools[0].get('x') }}{{ tools[0].get('x', 'd') }}{{ tools[0]['function']['name'] }}{{ tools[0].function.parameters.properties.keys()|list }}{{ {'items': 1}['items'] }}{{ {'items': 1}.items()|list }}{{ {'items': 1}.get('items') }}{{ 'it'.upper is defined }}{{ tools.0.type }}{{ none.x is defined }}{{ 'a'.b is defined }}{{ [1]['x'] is defined }}{{ {}[[]] is defined }}",
    "{{ '%s-%d%%' % ('a', 3) }}{{ '%s' % [1] }}{{ range(3)|list }}{{ range(2, 8, 3)|list }}{% for i in range(3, 0, -1) %}{{ i }}{% endfor %}{{ dict(a=1, b=none) }}{{ strftime_now('%d %b %Y') }}{{ strftime_now('%Y-%m-%d %A %-d %j') }}{% set g = {'a': 1}|items %}{{ g|list }}{{ g|list }}{{ namespace is defined }}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}\u00e9{{ eos_token }}{% set z = 1 %}{% endgeneration %}{{ z }}{% else %}{{ m.content }}{% endif %}\n{% endfor %}{% generation %}{% endgeneration %}",
    "{% macro f() %}{{ late }}{% endmacro %}{% set late = 'L' %}{{ f() }}{% for i in [1, 2] %}{% macro g(x) %}{{ x }}{{ i }}{{ loop.index }}{% endmacro %}{{ g('a') }}{% endfor %}{{ g is defined }}{% if true %}{% set inner = 1 %}{% endif %}{{ inner }}{{ (3)|string ~ -(2) ~ - 1 ~ +1 }}{{ -1|string }}{{ [1, 2,][0] }}{{ {'a': 1,}.a }}{{ ((1)) }}{{ () }}{{ (1,)[0] }}",
    "{{ messages[0].reasoning_content is defined }}{{ messages[-1].thinking }}{{ messages[-1].keys()|list }}{{ messages[-1].reasoning_content }}{% if messages[0]['content'] is string %}s{% else %}{% for p in messages[0].content %}{{ p.text }}{% endfor %}{% endif %}{{ kw }}{{ add_generation_prompt }}{{ tools is none }}{{ documents }}",
]
RAISING = [
    "{{ none + 'a' }}", "{{ missing.a.b }}", "{{ missing + 'a' }}", "{{ 'a' + 1 }}", "{{ 1 in 'abc' }}", "{{ 'a' in none }}",
    "{% for x in none %}{% endfor %}", "{% for x in 5 %}{% endfor %}", "{{ 1 < 'a' }}", "{{ missing < 1 }}", "{{ missing() }}",
    "{{ raise_exception('no ' ~ messages|length) }}", "{{ [1].append(2) }}", "{{ missing|tojson }}", "{{ none|length }}", "{{ 1 // 0 }}",
    "{% set x = 1 %}{% set x.a = 2 %}", "{% for a, b in [(1,)] %}{% endfor %}", "{{ 'a'.split('') }}", "{{ 'a'.startswith(1) }}",
    "{{ [1][::0] }}", "{{ {}|items|length }}", "{{ namespace(_x=1) }}", "{% macro f(a) %}{% endmacro %}{{ f(1, 2) }}",
    "{% macro f(a) %}{% endmacro %}{{ f(b=2) }}", "{{ '%s %s' % 'a' }}", "{{ 'a'|join(1, 2, 3) }}", "{{ range(200000)|list }}",
    "{{ [1]|tojson(bad=1) }}", "{% if x %}", "{% endif %}", "{{ 1 + }}", "{{ 'a }}", "{{ [1, 2 }}", "{# x", "{% break %}",
    "{% for x in [1] %}{% generation %}{% break %}{% endgeneration %}{% endfor %}", "{{ messages[0].nothing.more }}",
    "{{ -'a' }}", "{{ ['a', 1]|dictsort }}", "{{ {[]: 1} }}", "{{ ','.join([1]) }}", "{% set 1 = 2 %}", "{{ a b }}", "{{ none['x'].y }}",
]
SOME = [[], [U[0], A[2]], [S[0], U[1], A[1], U[2], CALLS[0], RESULTS[0], A[0]], [U[0], THINK[1]], [PARTS[0]]]


def golden():
    with open("test/golden/chat_templates.jsonl", "w", encoding="utf-8") as out:
        for i, template in enumerate(OWN):
            for k, chat in enumerate(SOME):
                row = line("own %d" % i, template, chat, TOOLS[2] if k % 2 else TOOLS[1], {"kw": {"a": [1.5, "x"]}}, k > 2)
                assert k != 2 or row["text"] is not None, template
                out.write(json.dumps(dict(row, template=template) if not k else row, ensure_ascii=False) + "\n")
        for i, template in enumerate(RAISING):
            row = line("raising %d" % i, template, SOME[1], None, {}, False)
            assert row["text"] is None, (template, row["text"])
            out.write(json.dumps(dict(row, template=template), ensure_ascii=False) + "\n")
    return 0


def main():
    if sys.argv[1] == "--golden":
        return golden()
    program, files = sys.argv[1], sys.argv[2:]
    failed = 0
    for file in files:
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as out:
            for row in matrix(os.path.basename(file), open(file, encoding="utf-8").read()):
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
            out.flush()
            run = subprocess.run([program, out.name], stdout=subprocess.PIPE, text=True, errors="replace")
            lines = run.stdout.splitlines()
            failed += run.returncode != 0
            shown = [x for x in lines if x.startswith("FAIL")][:3] if run.returncode else []
            print(os.path.basename(file), lines[-2].split("jsonl: ")[-1] if len(lines) > 1 else run.returncode)
            if os.environ.get("SHOW") and run.returncode:
                print("\n".join(lines[:int(os.environ["SHOW"])]))
            else:
                for x in shown:
                    print("    " + x[:300])
    print(len(files), "templates,", failed, "differ")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
