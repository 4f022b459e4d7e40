#!/usr/bin/env python3
"""Writes test/golden/tokenizer: eight small tokenizers, one of each kind we read, and what the library does.

    pip install tokenizers==0.23.3
    python3 dev/make_tokenizer_golden.py        # from the repository root

Each folder has tokenizer.json, tokenizer_config.json and vectors.jsonl with, per line: text, ids (no special tokens), ids_special, decoded (of ids),
decoded_skip (of ids_special, special tokens skipped), covered: [[begin byte, end byte, first token, last token]] by char_to_token in ids_special.
texts.txt is the training text, our own words, and also serves as a file to encode.
bytes and bytes_bos beside them are not written here: no merges, token id = byte, for test/test_data.c and make fuzz.
"""
import json
import os
import random
import unicodedata
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

assert tokenizers.__version__ == "0.23.3"
OUT = "test/golden/tokenizer"
HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

TEXT = """The quick brown fox jumps over the lazy dog. It's what they're saying; we'll see, I'd say, that you've 12345 things to do.
A tokenizer cuts text into pieces, and the pieces into smaller ones, until every piece is in the vocabulary.
The café at the corner serves crème brûlée to naïve visitors; Zoë and Ångström were there in 2024, at 10:30.
Übergrößenträger, Straße, Mädchen, schön; el niño comió jalapeños; ça va très bien, merci. Žluťoučký kůň.
Привет, мир! Как дела? Сегодня хорошая погода. Γειά σου Κόσμε. שלום עולם. مرحبا بالعالم.
你好，世界。今天天气很好，我们去公园散步吧。こんにちは世界。안녕하세요 세계.
for (int i = 0; i < n; i++) {\n    sum += x[i] * y[i];\n}\n    return sum;
the the the and and of of to to in in that that is is was was for for it it with with as as his his on on be be at at by by
"""

# Where the kinds differ: white space, contractions, digits, marks, controls, added tokens, unknown characters.
TEXTS = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r\n\r\n", " \n", "\n ", " \n \n  x", "a\n", "a \n", "a  \n\n b", "x\t\ty", "a\u00a0b", "a\u3000b", "\u2028x\u2029",
    "a   b", "a    ", "   a", " a b  c   d    e", "\t\t\tx", " \t x", "x \u2003\u2003y", "\x85x", "\x0b\x0c", "\x00", "a\x00b", "\x1b[0m", "\x7f\x1c\x1d", "\ufeffx",
    "Hello world", " Hello world", "Hello, world!", "HELLO WORLD", "hello\u200bworld", "hello\u200dworld", "soft\u00adhyphen",
    "it's IT'S it'S we'll WE'LL we'Ll they'Re I'M I'd you'VE 's 't '' 'x 'ſ x'ſy 'RE' ''s", "don't can't 'll", "'", "''", "'re", " 's", "\u2019s",
    "1 12 123 1234 12345 123456 1234567", "3.14159", "1,000,000", "x1y22z333", "٣٤٥ ½ ² Ⅷ ①②③", "１２３４", "1a2b3c", "0x1F", "²³",
    "caf\u00e9", "cafe\u0301", "e\u0301\u0323", "e\u0323\u0301", "\u0301", " \u0301", "a\u0301\u0301\u0301b", "\u0344x", "\u212b \u2126 \u2329", "q\u0307\u0323", "\u1e9b\u0323", "ﬁ ﬀ",
    "\u1100\u1161\u11a8", "\uac00\u11a8", "한글 \u1112\u1161\u11ab\u1100\u1173\u11af", "\u09c7\u09be \u0dd9\u0dcf\u0dca", "\u0b47\u0b3e", "\uf900\ufa0e\U0002f800", "\u0958\u0959", "\u0f43\u0f71\u0f72", "\U0001d15e",
    "Z\u0351\u036b\u0343\u036aA\u0336\u0322\u0321L\u0334GO", "\U000105d2\u0307", "\u1df6\u0301a\u1df6\u0334", "\u1100\u1161\u11a7", "a\u0345\u0301", "a\u0313\u0301", "e\u0351\u0301\u0323", "a\u0301\u0313\u0301",
    "😀", "😀😃", "👨‍👩‍👧‍👦", "👍🏽", "🇩🇪🇫🇷", "❤️", "a😀b", "1️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "\U0010fffd", "\U000e0100", "\ufffd",
    "Привет, мир!", "ПРИВЕТ 123", "שלום", "مرحبا", "नमस्ते दुनिया", "สวัสดีชาวโลก", "你好，世界。", "今天 天气", "こんにちは世界", "안녕하세요", "ᚠᛇᚻ", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𐍈", "ꙮ", "ǅ ǆ", "İıſK",
    "...", "!!!", "?!?!", " ...", " !\n\n", "!\r\n\r\nx", "a,b;c", "(x)[y]{z}", "<a href='b'>", "$100", "€5", "a_b", "__init__", "x=y+1;", "\\n", "#include <stdio.h>\nint main() {\n\treturn 0;\n}\n",
    "https://example.org/a?b=c&d=%20", "user@example.org", "C:\\Users\\x", "2024-07-26T10:30:00Z", "    indented\n        more\n", "a-b--c---d", "—–-", "„Zitat“ «citation»", "※→←↑",
    "▁", "▁▁", " ▁ ", "a▁b", "▁a", "<0x41>", "<0x0A>", "Ġ", "ĠHello", "Ċ",
    "<s>", "</s>", "<s>a</s>", "<s> a </s> b", "a<s>b", " <s> ", "<unk>", "<|im_start|>user\nHi<|im_end|>\n", "<|im_end|><|im_end|>", "<|im_end", "<|im_end|", "<|im_start|><|im_star", "<<s>>", "<s",
    "a<mask>b", "a <mask> b", "a  <mask>  b", "<mask> <mask>", "  <mask>  <mask>  ", "\u00a0<mask>\n", "word", "a word b", "awordb", "word.", "_word", "word1", "éword", "²word", "word²", "word\u0301", "wordword", "word word",
    "<caf\u00e9>", "<cafe\u0301>", "x<caf\u00e9>y", "x <caf\u00e9> y", "<caf\u00e9><mask>word", "<t><tt><ttt>", "<tt", "<think>\n\n</think>\n\nx", "x<s>\u0301y", "e<s>\u0301",
    "The quick brown fox jumps over the lazy dog.", "the the the", "thethethe", "tttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttt", "the" * 40, "ab" * 60, " the" * 30, "你好" * 40,
    "Mixed 混合 смешанный خليط 😀 text\twith\neverything 123!",
]


def random_texts(count):
    rng = random.Random(20240726)
    parts = [" ", " ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "the", "and", "Hello", "é", "e\u0301", "\u0323", "\u0301", "ß", "1", "23", "456", "Ж", "你", "の", "한", "\u1112\u1161", "\u11ab", "😀", "\u200d",
             ".", ",", "!?", "(", "-", "_", "▁", "<s>", "</s>", "<mask>", "word", "<|im_end|>", "<|im_start|>", "<caf\u00e9>", "\u00a0", "\u3000", "\x00", "\x85", "ſ", "²", "\u09be", "\u09c7", "ǅ", "א", "\u05bc", "\U0001d165"]
    return ["".join(rng.choice(parts) for _ in range(rng.randint(2, 14))) for _ in range(count)]


def byte_level(regex, digits=None, ignore_merges=False, nfc=False, bos=None, size=460, alone=None):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if nfc:
        t.normalizer = normalizers.NFC()
    if regex:
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(HEAD + digits + TAIL), "isolated"),
                                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    elif alone is not None:      # SmolLM2, StarCoder2: numbers stand alone, every digit or runs of them
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=alone),
                                                   pre_tokenizers.ByteLevel(add_prefix_space=False)])
    else:
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    t.add_special_tokens([bos or "<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    processor = processors.ByteLevel(trim_offsets=False)
    if bos:
        i = t.token_to_id(bos)
        processor = processors.Sequence([processor, processors.TemplateProcessing(single=bos + " $A", pair=bos + " $A " + bos + " $B:1", special_tokens=[(bos, i)])])
    t.post_processor = processor
    return t


def sentencepiece(form, size=560):
    """Trained with the new form, then dressed; 256 byte tokens come right after the special ones, as in Llama 2."""
    alphabet = sorted({c for c in TEXT if ord(c) < 0x250} - {"\n", " "})
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Replace(" ", "▁")
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    t.train_from_iterator(TEXT.replace("\n", " ").split("."), trainers.BpeTrainer(
        vocab_size=size, limit_alphabet=len(alphabet) + 10, initial_alphabet=alphabet, show_progress=False,
        special_tokens=["<unk>", "<s>", "</s>"] + ["<0x%02X>" % b for b in range(256)]))
    j = json.loads(t.to_str())
    j["added_tokens"] = j["added_tokens"][:3]
    j["normalizer"] = None
    strip = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
                                              {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    j["pre_tokenizer"], j["decoder"] = None, strip
    if form == "legacy":
        j["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
    elif form == "first":
        j["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    else:          # no byte fallback, not all characters known: unknown tokens, fused
        j["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
        j["decoder"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
        j["model"]["byte_fallback"] = False
    j["post_processor"] = None
    t = Tokenizer.from_str(json.dumps(j))
    bos = t.token_to_id("<s>")
    if form == "split":
        eos = t.token_to_id("</s>")
        t.post_processor = processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", bos), ("</s>", eos)])
    else:
        t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", bos)])
    return t


def covered(t, text, rng):
    """Ranges of characters and the tokens the library finds at their ends; those whose end characters belong to no token are left out."""
    e, out = t.encode(text), []
    for _ in range(3 if len(text) > 2 else 0):
        a = rng.randrange(len(text))
        b = rng.randrange(a, len(text))
        first, last = e.char_to_token(a), e.char_to_token(b)
        # inside a sequence of marks the library's offsets are positional, ours follow the characters: not comparable
        if first is None or last is None or any(unicodedata.combining(c) for c in text[a] + text[b + 1:b + 2]):
            continue
        # a character in several tokens: the library's answer is the first, ours all that hold a byte of it
        while last + 1 < len(e.ids) and e.offsets[last + 1][0] <= b < e.offsets[last + 1][1]:
            last += 1
        while first > 0 and e.offsets[first - 1][0] <= a < e.offsets[first - 1][1]:
            first -= 1
        out.append([len(text[:a].encode()), len(text[:b + 1].encode()), first, last])
    return out


def write(name, t, config, normalized_tokens=True, texts=TEXTS):
    t.add_tokens([AddedToken("<mask>", lstrip=True, rstrip=True, normalized=False), AddedToken("word", single_word=True, normalized=False)])
    if normalized_tokens:
        t.add_tokens([AddedToken("<caf\u00e9>", normalized=True)])
    t.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False), AddedToken("<t>", normalized=False), AddedToken("<tt>", normalized=False, special=True)])
    folder, rng = os.path.join(OUT, name), random.Random(1)
    os.makedirs(folder, exist_ok=True)
    json.dump(json.loads(t.to_str()), open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8"), ensure_ascii=False, separators=(",", ":"))
    json.dump(config, open(os.path.join(folder, "tokenizer_config.json"), "w"))
    spans = 0
    with open(os.path.join(folder, "vectors.jsonl"), "w", encoding="utf-8") as f:
        for text in texts + random_texts(50):
            ids, special = t.encode(text, add_special_tokens=False).ids, t.encode(text).ids
            row = {"text": text, "ids": ids, "ids_special": special, "decoded": t.decode(ids, skip_special_tokens=False), "decoded_skip": t.decode(special)}
            row["covered"] = covered(t, text, rng) if text.isascii() or len(text) % 2 else []
            spans += len(row["covered"])
            f.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(name, t.get_vocab_size(), "tokens,", spans, "spans")


os.makedirs(OUT, exist_ok=True)
open(os.path.join(OUT, "texts.txt"), "w", encoding="utf-8").write(TEXT)
write("qwen2", byte_level(True, r"\p{N}", nfc=True), {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
write("llama3", byte_level(True, r"\p{N}{1,3}", ignore_merges=True, bos="<|begin_of_text|>"), {"bos_token": "<|begin_of_text|>", "eos_token": {"content": "<|im_end|>"}})
write("gpt2", byte_level(False), {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"})
write("llama2_legacy", sentencepiece("legacy"), {"bos_token": "<s>", "eos_token": "</s>"})
write("llama2_metaspace", sentencepiece("first"), {"bos_token": "<s>", "eos_token": "</s>"})
write("metaspace_split", sentencepiece("split"), {"bos_token": "<s>", "eos_token": "</s>"})
numbers = [x for x in TEXTS if any(c.isnumeric() for c in x)]
numbers += ["  12  3 \n4\n\n5 ", "x 1", "1 x", " 1", "1 ", "a1's", "٣ x٤ ", "1\u0301", "12'll", "Ⅷ9½ ²"]
for alone in True, False:
    write("digits" if alone else "digit_runs", byte_level(False, alone=alone),
          {"bos_token": None, "eos_token": "<|im_end|>"}, texts=numbers)
