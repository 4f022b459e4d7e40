#!/usr/bin/env python3
"""Writes the Unicode tables of tokenizer.h, between its two "generated" markers.

    pip install unicodedata2==16.0.0 tokenizers==0.23.3
    python3 dev/make_unicode.py            # rewrites ./tokenizer.h
    python3 dev/make_unicode.py --check    # exit status 1 if ./tokenizer.h would change
    python3 dev/make_unicode.py --lower    # rewrites ./test/golden/lower.txt, what str.lower makes of some texts

Letters and numbers are those of Unicode 16.0, which is what the library's regular expressions use (checked here against the library
for every code point). The library's NFC is older: its tables stop at Unicode 9.0, so characters that came later neither compose nor
reorder there. To give the same ids, the tables hold what the library does: 16.0 data, less what the library leaves alone.
Lower case is that of the Python which runs this file (3.13: Unicode 15.1), asked through str.lower alone.
"""
import sys
import unicodedata
import unicodedata2 as U
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers

assert U.unidata_version == "16.0.0" and unicodedata.unidata_version == "15.1.0"
CPS = [c for c in range(1, 0x110000) if not 0xD800 <= c < 0xE000 and c != 0x10FFFF]
nfc = normalizers.NFC().normalize_str


def by_library(pattern):
    """Code points that match a one-character pattern in the library."""
    out, n = set(), normalizers.Replace(Regex(pattern), "\U0010FFFF")
    for i in range(0, len(CPS), 4096):
        part = CPS[i:i + 4096]
        out |= {c for c, x in zip(part, n.normalize_str("".join(map(chr, part)))) if x == "\U0010FFFF"}
    return out


def word_by_library():
    r"""\w as "single_word" sees it: a character that keeps an added token from being recognised."""
    t = Tokenizer(models.BPE(vocab={"?": 0}, merges=[], unk_token="?"))
    t.add_tokens([AddedToken("<x>", single_word=True, normalized=False)])
    out = set()
    for i in range(0, len(CPS), 4096):
        part = CPS[i:i + 4096]
        out |= {c for c, e in zip(part, t.encode_batch([chr(c) + "<x>" for c in part])) if 1 not in e.ids}
    return out


def ranges(points):
    """Alternating gap, length."""
    out, at, points = [], 0, sorted(points)
    i = 0
    while i < len(points):
        k = i
        while k + 1 < len(points) and points[k + 1] == points[k] + 1:
            k += 1
        out += [points[i] - at, k - i + 1]
        at = points[k] + 1
        i = k + 1
    return out


def lower_runs():
    """First, last, step, difference to the lower-case letter. U+0130 alone becomes two characters; C code knows it."""
    out = []
    for c in CPS:
        low = chr(c).lower()
        if low == chr(c) or c == 0x130:
            continue
        assert len(low) == 1 and 2 * len(low.encode()) <= 3 * len(chr(c).encode())   # as utf8_lower promises
        d = ord(low) - c
        first, last, step, same = out[-1] if out else (0, 0, 0, None)
        if same == d and c - last <= 2 and (first == last or c - last == step):
            out[-1][1:3] = c, c - out[-1][1]
        else:
            out.append([c, c, 1, d])
    assert "\u0130".lower() == "i\u0307"
    return [x for run in out for x in run]


def sigma_sees(before):
    """Characters that, put between these and a capital sigma, let it be a final one."""
    return {c for c in CPS if (before + chr(c) + "\u03a3").lower()[-1] == "\u03c2"}


LOWER = ["ASCII Az", "ÄÖÜ ÀÉÎÕÞ ×", "ĀĂĄ ĶĹĻ ŸŹŽ Ƀ Ɓ Ǆ ǅ ǆ", "ȺȾ ẞ K Å Ω Ⱡ ⱯⱭⱮⱰ", "İSTANBUL I İİ", "ΟΔΥΣΣΕΥΣ",
         "ΣΑΣ Σ ΑΣ. ΑΣ'Α Σ̈Σ",
         "A\u0301Σ AΣ\u0301 AΣ\u0301B 1Σ", "ΆΈΉΊΌΎΏ ΪΫ ᾼ ᾈ", "ЁЖЙ Ѐ Ӂ Ԁ Ꙁ", "ԱԲԳՖ և", "ႠჅ Ꭰ Ᏼ Აჰ",
         "ＡＢＺ ａ", "𐐀𐐧 𐒰 𑢠 𖹀 𞤀", "ⅠⅫ Ⓐ ⒶⓏ",
         "漢字 ไทย हिन्दी \u0e01\u0904", "\U0001f600 Z"]
if "--lower" in sys.argv:
    with open("test/golden/lower.txt", "w", encoding="utf-8") as f:
        f.write("".join(x + "\n" + x.lower() + "\n" for x in LOWER))
    sys.exit()

letters = {c for c in CPS if U.category(chr(c))[0] == "L"}
numbers = {c for c in CPS if U.category(chr(c))[0] == "N"}
assert letters == by_library(r"\p{L}") and numbers == by_library(r"\p{N}")
assert by_library(r"\s") == {*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
words = word_by_library()

# Combining classes, less the characters the library does not know.
probes = ["\u0301", "\u0334", "\u0323", "\u0345"]
ccc = {c: U.combining(chr(c)) for c in CPS if U.combining(chr(c))}
ccc = {c: k for c, k in ccc.items() if all(
    nfc(t) == U.normalize("NFC", t) for x in probes for t in ("q" + chr(c) + x, "q" + x + chr(c)))}
runs, at = [], 0
for c in sorted(ccc):
    if runs and c == at and runs[-1][2] == ccc[c]:
        runs[-1][1] += 1
    else:
        runs.append([c - at, 1, ccc[c]])
    at = c + 1
ccc_flat = [x for r in runs for x in r]
assert max(ccc_flat) < 65536

decomp, excluded, at, last = [], [], 0, 0
for c in CPS:
    d = U.decomposition(chr(c))
    if not d or "<" in d:
        continue
    parts = [int(x, 16) for x in d.split()]
    text = "".join(map(chr, parts))
    if nfc(text) != U.normalize("NFC", text) or nfc(chr(c)) != U.normalize("NFC", chr(c)):
        assert len(parts) == 2 and nfc(chr(c)) == chr(c)   # newer than the library: left alone
        continue
    decomp += [(c - at) * 2 + (len(parts) == 2)] + parts
    if len(parts) == 2 and U.normalize("NFC", text) != chr(c):
        excluded.append(c - last)
        last = c
    at = c


def table(ctype, name, comment, numbers):
    """Lines of at most 120 columns."""
    assert max(numbers) < (65536 if ctype == "uint16_t" else 0x110000 * 2)
    out, line = ["/* %s */" % comment, "static const %s %s[%d] = {" % (ctype, name, len(numbers))], ""
    for n in numbers:
        if len(line) + len(str(n)) + 1 > 120:
            out.append(line)
            line = ""
        line += "%d," % n
    return out + [line, "};"]


text = ["/* ---- generated by dev/make_unicode.py: begin ---- */"]
text += table("uint16_t", "uni_letters", r"\p{L}: alternating gap, length", ranges(letters))
text += table("uint16_t", "uni_numbers", r"\p{N}: alternating gap, length", ranges(numbers))
text += table("uint32_t", "uni_words", r"\w differs from \p{L} or \p{N} here: alternating gap, length", ranges(words ^ (letters | numbers)))
text += table("uint16_t", "uni_ccc", "combining classes: gap, length, class", ccc_flat)
text += table("uint32_t", "uni_decomp", "canonical decompositions: 2 * gap + (two parts?), first part, second part if two", decomp)
text += table("uint32_t", "uni_excluded", "decompositions of two parts that must not compose: gaps", excluded)
cased = sigma_sees("")
text += table("int32_t", "uni_lower", "lower case: first, last, step, difference", lower_runs())
text += table("uint32_t", "uni_cased", "a final sigma follows one of these: alternating gap, length", ranges(cased))
text += table("uint32_t", "uni_ignored", "... with any of these between: gap, length", ranges(sigma_sees("A") - cased))
text += ["/* ---- generated by dev/make_unicode.py: end ---- */"]

path = "tokenizer.h"
old = open(path, encoding="utf-8").read()
head, rest = old.split(text[0] + "\n", 1)
tail = rest.split(text[-1] + "\n", 1)[1]
new = head + "\n".join(text) + "\n" + tail
print("%d lines, %d letters ranges, %d decompositions" % (len(text), len(ranges(letters)) // 2, len(decomp)))
if "--check" in sys.argv:
    sys.exit(new != old)
open(path, "w", encoding="utf-8").write(new)
