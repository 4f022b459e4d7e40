#!/usr/bin/env python3
"""Writes test/golden/chat.jsonl: what published chat templates make of conversations, as transformers renders them.

    pip install jinja2
    python3 dev/make_chat_golden.py TEMPLATES    # a folder of NAME.jinja, NAME as --chat-template knows it: the model
                                                 # folders' texts, which are not kept here

The first line holds the conversations and the tools. Every other line is one template and one conversation:
    want      the rendered conversation, or null where the template raises
    prompt    where it ends with an answer, what add_generation_prompt makes of all before it, or null
    begin     where in want, in bytes, the tokens of the two part: in that token the loss begins, as TRL has it
    lost      thoughts that are not in want
"""
import json
import os
import re
import sys
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


def raise_exception(message):
    raise ValueError(message)


env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
env.globals["raise_exception"] = raise_exception
env.filters["tojson"] = lambda x, indent=None, **kw: json.dumps(x, ensure_ascii=False, indent=indent)

S, U, A, T = ([dict(role=role, content=c) for c in (one, two)] for role, one, two in (
    ("system", "Be \u00fcber kind.\n", " two "), ("user", " What is 1+1?\n", "And \u0e01\U0001f600?"),
    ("assistant", " It is 2. ", "\nFine"), ("tool", "{\"a\": 1}", "two\n")))
THOUGHTS = [dict(role="assistant", content="<think>\n%s and\n\none.\n</think>\n\nTwo." % x) for x in ("One", "Un")]
ASIDES = [dict(role="assistant", content="\n\nTwo.", reasoning_content="\n%s\n" % x) for x in ("Aside", "Apart")]
BLANK = dict(role="assistant", content="Two.", reasoning_content="\n")
TWICE = dict(role="assistant", content="hmm</think>y</think>\nz")
DISGUISE = dict(role="user", content="<tool_response>\nok\n</tool_response>")
CHATS = [[U[0], A[0]], [S[0], U[0], A[0], U[1], A[1]], [S[1], U[0]], [U[0], THOUGHTS[0], U[1], THOUGHTS[1]],
         [U[0], ASIDES[0], U[1], ASIDES[1]], [U[0], BLANK], [S[0], U[1], TWICE], 
         [U[0], THOUGHTS[0], T[0], T[1], THOUGHTS[1]], [U[0], BLANK, DISGUISE, A[1]],
         [U[0], A[0], S[1], U[1], A[1]], [A[0], U[0], A[1]], [U[0], U[1], A[0]], [S[0], S[1], U[0], A[0]], [S[0]]]
FUNCTION = {"name": "f", "description": "say \"\u00e9\"", "parameters": {"a": [1, 2.5, None, True]}, "return": 1}
TOOLS = [dict(type="function", function=FUNCTION), dict(type="function", function=dict(name="g"))]
TOKENS = dict(bos_token="<s>", eos_token="</s>")
WITH_TOOLS = {"qwen3", "qwen3-instruct-2507", "qwen3-thinking-2507", "qwen2.5", "llama3.1", "llama3.2",
              "mistral-v0.3", "mistral-nemo"}


def render(template, chat, gen, **kw):
    try:
        return template.render(messages=chat, add_generation_prompt=gen, **TOKENS, **kw)
    except Exception:
        return None


def begin(prompt, want):
    """First and last byte, as far as they are equal, of the first token of want that prompt has not: there TRL begins.
    Line breaks in a row are one token, <...> and [...] are one."""
    pieces = [re.findall(r"<[^<>]*>|\[[^][]*\]|\n+|[^][<\n]+|.", x) for x in (prompt, want)]
    n = 0
    for a, b in zip(*pieces):
        if a != b:
            break
        n += len(b.encode())
    else:
        return [n, n]
    same = len(os.path.commonprefix([a.encode(), b.encode()]))
    return [n, n + min(same, len(b.encode()) - 1)] if b[0] == "\n" else [n, n]


def lost(chat, want):
    """How many thoughts are not in want."""
    n = 0
    for m in chat:
        inside = m["content"].split("</think>")[0].split("<think>")[-1] if "</think>" in m["content"] else ""
        n += m["role"] == "assistant" and m.get("reasoning_content", inside).strip("\n") not in want
    return n


out = [json.dumps(dict(chats=CHATS, tools=TOOLS), ensure_ascii=False)]
for file in sorted(os.listdir(sys.argv[1])):
    name = file[:-len(".jinja")]
    template = env.from_string(open(os.path.join(sys.argv[1], file), encoding="utf-8").read())
    for i, chat in enumerate(CHATS):
        for thinking in [None, False] if name == "qwen3" else [None]:
            for tools in [None, TOOLS] if name in WITH_TOOLS and i in (0, 1, 2) else [None]:
                kw = {} if thinking is None else dict(enable_thinking=thinking)
                if tools:
                    kw["tools"] = tools
                last = chat[-1]["role"] == "assistant"
                row = dict(template=name, chat=i, thinking=thinking, tools=tools is not None)
                row = {k: v for k, v in row.items() if v is not None and (k != "tools" or v)}
                row["want"] = render(template, chat, not last, **kw)
                if row["want"] is not None:
                    row["lost"] = lost(chat, row["want"])
                if last:
                    row["prompt"] = render(template, chat[:-1], True, **kw)
                    moved = name in ("mistral-v0.3", "mistral-nemo") and chat[0]["role"] == "system"    # out of want
                    if row["prompt"] is not None and row["want"] is not None and not moved:
                        row["begin"] = begin(row["prompt"], row["want"])
                out.append(json.dumps(row, ensure_ascii=False))
with open("test/golden/chat.jsonl", "w", encoding="utf-8") as f:
    f.write("\n".join(out) + "\n")
print("%d lines" % len(out))
