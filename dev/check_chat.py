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
