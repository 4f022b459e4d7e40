#!/usr/bin/env python3
"""Writes test/golden/scores.json: what sacrebleu, nltk, rouge_score, scikit-learn and SQuAD's script say about pairs of texts, for data/score.h to agree with.

    python dev/make_score_golden.py        needs sacrebleu 2.6.0, nltk 3.10.4, rouge_score 0.1.2, scikit-learn 1.9.1
"""
import collections
import json
import random
import re
import string
from importlib.metadata import version
from pathlib import Path

from nltk.tokenize import NLTKWordTokenizer
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

for name, want in {"sacrebleu": "2.6.0", "nltk": "3.10.4", "rouge_score": "0.1.2", "scikit-learn": "1.9.1"}.items():
    assert version(name) == want, f"{name} {version(name)}, needs {want}"


def squad(text):
    """The normalisation that evaluate-v1.1.py defines: lower case, no punctuation, no articles, single spaces."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def squad_f1(answer, reference):
    a, b = squad(answer), squad(reference)
    same = sum((collections.Counter(a) & collections.Counter(b)).values())
    return 2 * same / (len(a) + len(b)) if same else 0.0


TITLES = {"mr", "mrs", "ms", "dr", "prof", "st", "vs", "jr", "sr"}


def treebank(text):
    """word_tokenize, but for its trained model of sentences: score.h says where they end here."""
    words, begin = [], 0
    for m in re.finditer(r"\s+", text):
        head = text[:m.start()].rstrip("])}>\"'»”’")
        word = re.search(r"\w*$", head[:-1]).group().lower() if head else ""
        ends = head[-1:] in (".", "?", "!") and m.end() < len(text) and not "a" <= text[m.end()] <= "z" and m.start() > begin
        if ends and not (head[-1] == "." and (word in TITLES or len(word) == 1 and not word.isdigit())):
            words += NLTKWordTokenizer().tokenize(text[begin:m.start()])
            begin = m.end()
    return words + NLTKWordTokenizer().tokenize(text[begin:])


class Characters:
    """For rouge_score: every character but white space is a token."""

    def tokenize(self, text):
        return [c for c in text if not c.isspace()]


PAIRS = [
    ("The hotel has free parking.", "Yes, the hotel has free parking for its guests."), ("", "Something was expected here."), ("No.", "No."), ("no", "No!"), ("The", "a the an"), ("The cat", "cat"), ("theatre", "the atre"),
    ("It costs 1,000.50 euros (about $1,100) - per night.", "It costs 1,000.5 euros, about $1,100, per night."), ("He said: \"don't\", didn't he?", "He said, 'do not', did he not?"),
    ("well-known state-of-the-art 3-star hotel", "a well known, state of the art, 3-star hotel"), ("a a a a a b", "a a b b b"), ("one two three four five", "one two three four five"), ("one two three", "one two three four five six seven"),
    ("Das Zimmer ist schön, groß und ÜBERRASCHEND günstig.", "Das Zimmer ist groß und überraschend günstig."), ("Отель находится в центре ГОРОДА.", "отель находится в центре города"), ("Το Ξενοδοχείο είναι καλό", "το ξενοδοχείο είναι ΚΑΛΟ"),
    ("学而时习之,不亦说乎?", "学习并且按时温习,不也是很快乐吗?"), ("有朋自远方来,不亦乐乎。", "有朋友从远方来,不也很快乐吗?"), ("我住在Hotel California, 房间号是302。", "我住在 Hotel California,302 号房间。"), ("人々は東京へ行く", "人々は京都へ行く"),
    ("Book it &amp; pay &lt;later&gt; &quot;today&quot;", "Book it & pay <later> \"today\""), ("line one\nline two-\nbroken <skipped> end", "line one line twobroken end"), ("tabs\tand   spaces\u00a0here", "tabs and spaces here"),
    ("emoji 😀😀 here 👍🏽", "emoji 😀 here 👍"), ("“The” ‘best’ — an answer…", "the best answer"), ("naïve café", "naïve café"), ("co-operate; re-enter / exit", "cooperate; reenter/exit"), ("U.S.A. and e.g. 3.14, 2,5.", "USA and eg 3.14 2,5"),
    ("A reply that shares nothing", "completely different words everywhere"), ("Yes", "Yes, of course"), ("x", "x"), ("ab", "ba"), ("12-13 May, 5-star, 7--8", "12 - 13 May 5 star 7 8"), ("[brackets] {braces} `ticks` ^caret_ ~tilde", "brackets braces ticks caret tilde"),
    ("The the THE an AN a answer", "answer"), ("Istanbul K 5", "istanbul k 5"), ("  leading and trailing  ", "leading and trailing"), ("same same same same", "same"), ("①②③ ½ cup", "123 half cup"), ("and, so. on, 3,4 a.b ,c", "and , so . on , 3,4 a . b , c"),
    ("full－width ！signs？ ＡＢＣ", "full width! signs? ABC"), ("ㄅㄆㄇ ㊀ ㌀ ☃ ✂", "ㄅㄆ ㊀ ☃"), ("w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12", "w1 w2 w3 w4 x w6 w7 w8 w9 y w11 w12"),
]
CORPORA = [list(range(len(PAIRS))), [0, 7, 8, 13], [16, 17, 18, 19], [1], [2, 3], [11, 12], [28], [1, 28, 30], list(range(0, len(PAIRS), 3))]


# Lower case beyond Latin-1, Greek and Cyrillic; and several references.
CASES = [
    ("I can't believe it's \"quoted\" -- isn't it? Dr. Who said so. 'Twas (nice), 'tis: it cannot be; gonna wanna gimme more'n that!", "You can't believe that it's \"quoted\", is it? Dr. Who said: 'Twas nice. 'Tis not gonna be, cannot be. They'll've won't; John's dogs' toys."),
    ("\"Good muffins\" cost $3.88 in New York. Please buy me two of them.\nThanks... a lot.", "\"Good muffins\" cost $3.88 (roughly 3,36 euros) in New York. Please buy me\ntwo of them.\nThanks."),
    ("He said 'hello there', then left. U.S. prices: 50% off! \u201cReally?\u201d he asked. 'cause", "He said 'hello', and left. The U.S. prices are 50% off! \u201cReally?\u201d she asked: 'cause. \u2014 Yes."),
    ("ŁÓDŹ Şahin ĞÜZEL", "łódź şahin ğüzel"), ("ԵՐԵՎԱՆ", "երևան երեվան"), ("ＦＵＬＬ Width", "ｆｕｌｌ width"), ("ΟΔΟΣ ΣΑΣ", "οδος σας"), ("İstanbul", "istanbul i̇stanbul"), ("ΑΣ. Σ", "ας. σ"), ("ⅧAB Ǆ ẞ", "ⅷab ǆ ß"), ("𐐀𐐁", "𐐨𐐩"), ("Ꮳ ᲀ Ა", "ꮳ ᲀ ა"),
]
SEVERAL = [
    ("Denver Broncos", ["The Denver Broncos", "Broncos", "Denver"]), ("in the year 1895", ["1895", "the year 1895 it was", "in 1895"]), ("", ["no", "none at all"]), ("a b c d e f", ["a b c x y", "d e f a b", "a b c d"]),
    ("the the the cat sat", ["the cat sat", "the the dog sat down here"]), ("one two three", ["one", "one two three four five"]), ("学而时习之", ["学习", "时习之", "学而"]), ("nothing shared", ["x", "y z"]), ("tie here", ["a b c", "a"]),
]


def main():
    rng = random.Random(5)
    vocabulary = "the a of room hotel is , . to and we have been not 12 3.5 don't breakfast - at booking you your in".split()
    pairs = PAIRS + CASES
    for _ in range(24):                     # word salad with much in common
        reference = [rng.choice(vocabulary) for _ in range(rng.randrange(1, 30))]
        answer = [w if rng.random() < 0.7 else rng.choice(vocabulary) for w in reference if rng.random() < 0.9]
        pairs.append((" ".join(answer), " ".join(reference)))
    corpora = CORPORA + [list(range(len(PAIRS) + len(CASES), len(pairs)))]
    rouge, rouge_c = RougeScorer(["rougeL"], use_stemmer=False), RougeScorer(["rougeL"], tokenizer=Characters())
    smooth = SmoothingFunction().method4
    out = {"pairs": [], "corpora": [], "several": [], "labels": []}
    for answer, references in SEVERAL:
        chars = lambda t: [c for c in t if not c.isspace()]
        out["several"].append({
            "answer": answer, "references": references, "em": max(float(squad(answer) == squad(r)) for r in references), "f1": max(squad_f1(answer, r) for r in references),
            "bleu4": float(sentence_bleu([r.split() for r in references], answer.split(), smoothing_function=smooth)), "bleu4_c": float(sentence_bleu([chars(r) for r in references], chars(answer), smoothing_function=smooth)),
            "rouge": max(rouge.score(r, answer)["rougeL"].fmeasure for r in references), "chrf": CHRF().corpus_score([answer], [[r] for r in references]).score,
            "bleu": BLEU().corpus_score([answer], [[r] for r in references]).score})
    most = max(len(r) for _, r in SEVERAL)
    columns = [[r[k] if k < len(r) else None for _, r in SEVERAL] for k in range(most)]
    out["several_corpus"] = {"bleu": BLEU().corpus_score([a for a, _ in SEVERAL], columns).score, "chrf": CHRF().corpus_score([a for a, _ in SEVERAL], columns).score}
    for answer, reference in pairs:
        chars = lambda t: [c for c in t if not c.isspace()]
        out["pairs"].append({
            "answer": answer, "reference": reference, "em": float(squad(answer) == squad(reference)), "f1": squad_f1(answer, reference),
            "bleu4": float(sentence_bleu([reference.split()], answer.split(), smoothing_function=smooth)), "bleu4_c": float(sentence_bleu([chars(reference)], chars(answer), smoothing_function=smooth)),
            "bleu4_w": float(sentence_bleu([treebank(reference)], treebank(answer), smoothing_function=smooth)), "words_w": len(treebank(answer)), "rouge": rouge.score(reference, answer)["rougeL"].fmeasure, "rouge_c": rouge_c.score(reference, answer)["rougeL"].fmeasure, "words": len(answer.split()), "characters": len(answer)})
    for members in corpora:
        answers, references = [pairs[i][0] for i in members], [[pairs[i][1] for i in members]]
        entry = {"members": members, "chrf": CHRF().corpus_score(answers, references).score}
        for how in ("13a", "zh", "char", "none"):
            entry[how] = BLEU(tokenize=how).corpus_score(answers, references).score
        out["corpora"].append(entry)
    for n in (2, 3, 5):
        for size in (1, 8, 60):
            want = [rng.randrange(n) for _ in range(size)]
            got = [w if rng.random() < 0.6 else rng.randrange(-1, n) for w in want]
            p, r, f, s = precision_recall_fscore_support(want, got, labels=range(n), zero_division=0)
            matrix = confusion_matrix(want, [n if g < 0 else g for g in got], labels=range(n + 1))[:n].tolist()
            entry = {"n": n, "expected": want, "answered": got, "accuracy": accuracy_score(want, got), "matrix": matrix, "each": [list(map(float, row)) for row in zip(p, r, f)], "support": s.tolist()}
            for average in ("macro", "weighted"):
                entry[average] = [float(v) for v in precision_recall_fscore_support(want, got, labels=range(n), average=average, zero_division=0)[:3]]
            out["labels"].append(entry)
    text = json.dumps(out, ensure_ascii=False, separators=(",", ":"))
    (Path(__file__).resolve().parent.parent / "test/golden/scores.json").write_text(text.replace('},{"', '},\n{"') + "\n", encoding="utf-8")


main()
