#!/usr/bin/env python3
"""How much of the C code do the tests hold? Random mutants: one operator, constant, condition or statement in a random
place is changed, and some test must fail.

    make mutate                                     # 300 mutants of everything, seed 1 (hours on two cores)
    dev/mutate.py --count 40 --seed 7 --files lora.h --lines 2800-3700

All mutants are compiled at once, each behind a switch (MUTANT=k in the environment turns mutant k on), so that a test
program is built once. A first run of every test notes which mutants it reaches: only those tests are run with a mutant,
the quickest first, until one fails, crashes or takes ten times as long. What no test notices is listed with its line:
kill it with a test, or argue that it changes nothing. The kernels (the LORA_CUDA half of train_lora.cu) have mutants of
their own: test/mutants.h."""
import argparse, concurrent.futures, glob, os, random, re, shutil, subprocess, sys, time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TREE = os.path.join(ROOT, "build/mutate")
# Programs of build/ and scripts, each with its arguments.
PROGRAMS = ["test_tokenizer", "test_ops", "test_data", "test_model", "test_generate", "test_train", "test_score",
            "test_options"]
SCRIPTS = {"test_cli": ["test/test_cli.sh", "./train_lora"], "test_run": ["test/test_run.sh", "./train_lora"],
           "test_generate_cli": ["test/test_generate.sh", "./train_lora"],
           "test_convert": ["test/test_convert.sh", "data/convert", "./train_lora"]}
# As make test does: a buffer that is too small, or is never freed, shows under the sanitizers alone.
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all"
# The switch. M is 1 for the mutant that is on; S is its sign.
SWITCH = """#ifndef MUTATE_H
#define MUTATE_H
#include <stdlib.h>
#include <stdio.h>
static int mutant_on;
static unsigned char mutant_reached[%d];
__attribute__((constructor)) static void mutant_begin(void) {
    const char *m = getenv("MUTANT");
    mutant_on = m ? atoi(m) : 0;
}
__attribute__((destructor)) static void mutant_end(void) {
    const char *path = getenv("MUTANT_REACHED");
    FILE *f = path ? fopen(path, "a") : NULL;
    if (!f) return;
    for (int k = 1; k < (int)sizeof mutant_reached; k++) if (mutant_reached[k]) fprintf(f, "%%d\\n", k);
    fclose(f);
}
static inline int M(int k) { if (!mutant_reached[k]) mutant_reached[k] = 1; return mutant_on == k; }
static inline int S(int k) { return M(k) ? -1 : 1; }
#endif
"""
TOKEN = re.compile(r"""/\*.*?\*/|//[^\n]*|^[ \t]*\#(?:[^\n]*\\\n)*[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|0[xX][0-9a-fA-F]+[uUlL]*|(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?[fF]?
    |\d+(?:[eE][-+]?\d+)?[uUlLfF]*|[A-Za-z_]\w*|<<=|>>=|->|\+\+|--|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^]=|.""", re.S | re.M | re.X)
STATEMENT = re.compile(r"^ +(?:[a-z_][\w\->.\[\]]* (?:=|\+=|-=|\|=) [^;{}]+|[a-z_]\w*\([^;{}]*\)|[a-z_][\w\->.\[\]]*(?:\+\+|--));(?=\s*(?:/\*.*\*/)?\s*$)", re.M)
NOT_A_CALL = re.compile(r"^ +(?:return|goto|static|const|enum|else|case|do|while|for|if|sizeof)\b")


def spans(text):
    """[(start, token)] without comments, strings and preprocessor lines."""
    return [(m.start(), m.group()) for m in TOKEN.finditer(text) if not m.group().isspace() and not re.match(r"/\*|//|[ \t]*#|\"|'", m.group())]


def closing(tokens, i):
    """Index of the ')' that closes the '(' at i."""
    depth = 0
    for j in range(i, len(tokens)):
        depth += {"(": 1, ")": -1}.get(tokens[j][1], 0)
        if not depth:
            return j


def candidates(text):
    """[(position, length, replacement with @ for the number, what)]: every place that could be another program."""
    out, tokens = [], spans(text)
    for i, (at, t) in enumerate(tokens[1:-1], 1):
        before, after = tokens[i - 1][1], tokens[i + 1][1]
        value = bool(re.match(r"[\w)\]]", before)) and before not in ("return", "case", "sizeof")
        if re.fullmatch(r"\d+[uUlL]*|0[xX]\w+", t) and before not in ("case", "#") and after != ":":
            other = "0" if t == "1" else t + " + 1"
            out.append((at, len(t), f"(M(@) ? {other} : {t})", f"{t} -> {other}"))
        elif re.fullmatch(r"(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?[fF]?", t):
            out.append((at, len(t), f"(M(@) ? {t} * 1.25f + 0.5f : {t})", f"{t} -> another"))
        elif t in ("<", ">=") and value:
            out.append((at, len(t), t + " M(@) +", {"<": "< -> <=", ">=": ">= -> >"}[t]))
        elif t in ("<=", ">") and value:
            out.append((at, len(t), t + " -M(@) +", {"<=": "<= -> <", ">": "> -> >="}[t]))
        elif t in ("==", "!=") and value:
            out.append((at, len(t), t + " M(@) +", t + " 1 +"))
        elif t in ("+", "-", "+=", "-=") and value and after not in "+-":
            out.append((at, len(t), t + " S(@) *", f"{t} -> {'-' if t[0] == '+' else '+'}{t[1:]}"))
        elif t == "*" and value and after != ")" and re.match(r"[\w(]", after):
            out.append((at, len(t), "/ (M(@) ? 2 : 1) *", "half the product"))
        elif t == "&&":
            out.append((at, len(t), "&& M(@) |", "right side of && dropped"))
        elif t == "||":
            out.append((at, len(t), "|| !M(@) &&", "right side of || dropped"))
        elif t == "if" and after == "(":
            j = closing(tokens, i + 1)
            if j:
                begin, end = tokens[i + 1][0] + 1, tokens[j][0]
                out.append((begin, end - begin, f"M(@) ^ !!({text[begin:end]})", "if the other way round"))
    for m in STATEMENT.finditer(text):
        following = text[m.end():].lstrip().split("\n", 2)
        if NOT_A_CALL.match(m.group()) or any(line.lstrip().startswith("else") for line in following[:2]):
            continue
        at = m.start() + len(m.group()) - len(m.group().lstrip())
        out.append((at, 0, "if (!M(@)) ", "deleted: " + m.group().strip()))
    return out


def run(command, environment, seconds, log=None):
    process = subprocess.Popen(command, cwd=TREE, env=dict(os.environ, **environment), stdout=log or subprocess.DEVNULL, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        return -9


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--count", type=int, default=300)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--files", nargs="*", help="default: lora.h, tokenizer.h, the program and data/")
    p.add_argument("--lines", help="FIRST-LAST: only there")
    p.add_argument("--programs-only", action="store_true", help="leave the test scripts out")
    p.add_argument("--programs", nargs="*", default=PROGRAMS, help="the test programs that are run")
    p.add_argument("--no-sanitizers", action="store_true", help="builds and runs in less time; sees less")
    p.add_argument("--only", nargs="*", metavar="FILE:LINE", help="of the mutants that the seed chooses (survivors again)")
    p.add_argument("--jobs", type=int, default=os.cpu_count())
    o = p.parse_args()
    files = o.files or ["lora.h", "tokenizer.h", "train_lora.cu"] + [os.path.relpath(f, ROOT) for f in sorted(glob.glob(ROOT + "/data/*.[hc]"))]

    texts, sites = {}, []
    for f in files:
        texts[f] = text = open(os.path.join(ROOT, f)).read()
        kernels = [(m.start(), m.end()) for m in re.finditer(r"^#ifdef LORA_CUDA\n.*?^#endif /\* LORA_CUDA \*/", text, re.S | re.M)]
        first, last = map(int, o.lines.split("-")) if o.lines else (1, 10 ** 9)
        for c in candidates(text):
            line = text.count("\n", 0, c[0]) + 1
            if first <= line <= last and not any(a <= c[0] < b for a, b in kernels):
                sites.append((f, line) + c)
    rng = random.Random(o.seed)
    rng.shuffle(sites)
    chosen, taken = [], set()
    for s in sites:                                 # one mutant a line at most; more than asked for, as some do not compile
        if len(chosen) < o.count * 5 // 2 and (s[0], s[1]) not in taken:
            taken.add((s[0], s[1]))
            chosen.append(s)
    if o.only:
        chosen = [s for s in chosen if f"{s[0]}:{s[1]}" in o.only]

    # A copy of the project with all of them in it; mutants on lines that do not compile (constants of a declaration) are dropped.
    shutil.rmtree(TREE, ignore_errors=True)
    for path in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split():
        os.makedirs(os.path.dirname(os.path.join(TREE, path)), exist_ok=True)
        shutil.copy(os.path.join(ROOT, path), os.path.join(TREE, path))
    shared = os.path.realpath(os.path.join(ROOT, "../shared"))
    if os.path.isdir(shared):
        os.path.lexists(os.path.join(TREE, "../shared")) or os.symlink(shared, os.path.join(TREE, "../shared"))
    scripts = {} if o.programs_only else SCRIPTS
    targets = ["build/" + t for t in o.programs] + ([] if o.programs_only else ["train_lora", "data/convert", "build/crash.so"])
    make = ["make", "-k", "-j", str(o.jobs), "CUDA=0", "STRICT=-std=gnu11 -w -fmax-errors=0", f"CFLAGS=-O1 -march=native {'' if o.no_sanitizers else SANITIZE} -include {TREE}/build/mutate.h"] + targets
    os.makedirs(TREE + "/build", exist_ok=True)
    open(TREE + "/build/mutate.h", "w").write(SWITCH % (len(chosen) + 1))
    dropped = set()
    while True:
        for f in files:
            text = texts[f]
            for k, (_, _, at, length, replacement, _) in sorted(((k, s) for k, s in enumerate(chosen, 1) if s[0] == f and k not in dropped), key=lambda ks: -ks[1][2]):
                text = text[:at] + replacement.replace("@", str(k)) + text[at + length:]
            open(os.path.join(TREE, f), "w").write(text)
        built = subprocess.run(make, cwd=TREE, capture_output=True, text=True)
        if not built.returncode:
            break
        wrong = {(os.path.normpath(m[1]), int(m[2])) for m in re.finditer(r"^(\S+?):(\d+):\d+: error", built.stderr, re.M)}
        bad = {k for k, s in enumerate(chosen, 1) if k not in dropped and any(s[0] == f and line - 1 <= s[1] <= line for f, line in wrong)}
        if not bad:
            sys.exit("error: the mutated sources do not build; dev/mutate.py; " + built.stderr[-2000:])
        dropped |= bad
    chosen = {k: s for k, s in enumerate(chosen, 1) if k not in dropped}
    chosen = dict(list(chosen.items())[:o.count])
    print(f"{len(chosen)} mutants ({len(dropped)} more did not compile)", flush=True)

    # What each test takes and reaches without any mutant.
    commands = {t: ["build/" + t] for t in o.programs} | {name: ["bash"] + c for name, c in scripts.items()}
    reached, seconds = {}, {}
    # crash.so stands before the sanitizers' library, which asks for the first place
    quiet = {"ASAN_OPTIONS": "verify_asan_link_order=0", "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2" if o.jobs == 1 else "1")}
    for name, command in commands.items():
        record = f"{TREE}/build/{name}.reached"
        begin = time.time()
        with open(f"{TREE}/build/{name}.log", "w") as log:
            status = run(command, dict(quiet, MUTANT_REACHED=record), 3600, log)
        seconds[name] = time.time() - begin
        if status:
            sys.exit(f"error: {name} fails without any mutant; {TREE}/build/{name}.log; is `make test` green?")
        reached[name] = {int(k) for k in open(record).read().split()}
        print(f"  {name}: {seconds[name]:.0f} s, reaches {len(reached[name] & set(chosen))}", flush=True)

    def verdict(k):
        for name in sorted((n for n in commands if k in reached[n]), key=seconds.get):
            status = run(commands[name], dict(quiet, MUTANT=str(k)), 10 + 10 * seconds[name])
            if status:
                return k, f"killed by {name}" + (" (too slow)" if status == -9 else "")
        return k, "survived" if any(k in r for r in reached.values()) else "not reached"

    killed, survivors = 0, []
    with concurrent.futures.ThreadPoolExecutor(o.jobs) as pool:
        for k, how in pool.map(verdict, chosen):
            f, line, at, _, _, what = chosen[k]
            what = f"column {at - texts[f].rfind(chr(10), 0, at)}: {what}"
            print(f"{'ok   ' if how.startswith('killed') else 'ALIVE'} {f}:{line}: {what}: {how}", flush=True)
            killed += how.startswith("killed")
            how.startswith("killed") or survivors.append((f, line, what, how))
    print(f"\n{killed} of {len(chosen)} mutants killed; alive:")
    for f, line, what, how in sorted(survivors):
        print(f"{f}:{line}: {what}: {how}\n    {texts[f].splitlines()[line - 1].strip()}")


main()
