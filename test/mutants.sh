#!/usr/bin/env bash
# The test of the tests. `make FOLDER` writes FOLDER/train_lora.cu with a switch at every barrier, every wait for asynchronous copies and every bounds check or tail predicate of the kernels: with
# MUTANT=k in the environment site k is as if it had been deleted. One compilation serves all. `run PROGRAM` runs the kernel tests with each in turn and demands that one of them fails, hangs or crashes.
set -u
case $1 in
make)
    mkdir -p "$2"
    perl -e '
        use strict;
        local $/; open my $in, "<", "train_lora.cu" or die; my $text = <$in>;
        my ($from, $to) = (index($text, "/* ---- tiles"), index($text, "#endif /* LORA_CUDA */"));
        my ($head, $kernels, $tail) = (substr($text, 0, $from), substr($text, $from, $to - $from), substr($text, $to));
        my @sites; my $first_line = ($head =~ tr/\n//) + 1;
        # Conditions that keep a thread within its rows and columns: deleted means always true; "!": always false. Each must be found, so that the list cannot go stale.
        my @checks = ("row0 + row < m.rows", "column0 + column < m.columns", "column0 + column + j < m.columns",
            "r < left", "!row >= ROWS", "!row0 + row >= row_end", "column0 + column < column_end",
            "column0 + column + j < column_end", "at + j < end", "n < columns", "n + 1 < columns", "row < g.rows",
            "column < s[i].width", "r < s[i].width", "n < x.columns", "!n0 >= x.columns", "number < heads", "d < half",
            "at + j + k < end", "!number * KEYS + j * 8 + lane % 4 * 2 + e % 2 > row + e / 2 * 8",
            "row + half * 8 < s.length", "query < s.length", "key + e / 2 * 8 <= q0 + column", "key <= row + half * 8",
            "!s.first >= s.length", "!i >= rows", "!i >= chunks", "c + j < V", "(int)threadIdx.x < width",
            "i < width * p.in", "i < width * p.out", "i < p.rank * p.in", "r < p.rank", "i < p.rank * p.columns",
            "i < count", "n0 + c < p.columns", "r < g.rows", "!part >= g.count", "key + j < length",
            "!key + j >= length", "d < D");
        my %found;
        my $alternatives = join "|", map { my $c = $_; $c =~ s/^!//; quotemeta $c } sort { length $b <=> length $a } @checks;
        my %negative = map { my $c = $_; ($c =~ s/^!// ? 1 : 0) ? ($c => 1) : ($c => 0) } @checks;
        $kernels =~ s{(__syncthreads\(\);|__syncwarp\(\);|cp_async_wait<[^>]*>\(\);)|(?<![\w.)] )(?<![\w.\]+])($alternatives)(?![\w.\[])}{
            my $line = $first_line + (substr($kernels, 0, $-[0]) =~ tr/\n//);
            my $what = defined $1 ? $1 : $2;
            push @sites, "$line: $what"; $found{$what} = 1; my $k = @sites;
            defined $1 ? "do { if (mutant != $k) $1 } while (0);" : $negative{$2} ? "(mutant != $k && $2)" : "(mutant == $k || $2)";
        }ge;
        for (keys %negative) { die "mutants.sh: the kernels have no \"$_\" any more\n" unless $found{$_} }
        open my $out, ">", "$ARGV[0]/train_lora.cu" or die;
        print $out $head, "static int mutant = getenv(\"MUTANT\") ? atoi(getenv(\"MUTANT\")) : 0;\n", $kernels, $tail;
        open my $list, ">", "$ARGV[0]/sites" or die;
        print $list map { "$_\n" } @sites;
    ' "$2"
    ;;
run)
    program=$2 sites=build/mutated/sites passed=0 failed=0
    export ASAN_OPTIONS=detect_leaks=0
    # Survivors that are argued: a block that has nothing to do leaves at once. Without the test it would multiply the zeros that tile_load gives outside of a matrix and store none of them.
    saves_work=$'n0 >= x.columns\ns.first >= s.length'
    runs="232448,2 232448,3 65536,2 232448,0 232448,1 232448,7 65536,3"       # on a big card and on a Turing card, in several thread orders
    passes() { MUTANT=$1 EMULATED_SHARED=${3%,*} EMULATOR_ORDER=${3#*,} timeout 100 "$2" quick >/dev/null 2>&1; }
    try() {     # mutant: caught when one of the runs fails
        local run
        for run in $runs; do passes "$1" "$2" "$run" || { echo "$1 caught"; return; }; done
        echo "$1 survived"
    }
    export runs
    export -f passes try
    if ! tr ' ' '\n' <<<"$runs" | xargs -P "$(nproc)" -I{} bash -c "passes 0 $program {}"; then echo "FAIL  the kernels fail their tests without any mutation"; echo "0 passed, 1 failed"; exit 1; fi
    while read -r k verdict; do
        site=$(sed -n "${k}p" "$sites")
        if [ "$verdict" = caught ]; then passed=$((passed + 1)); echo "ok    mutant $k caught: line $site"
        elif grep -qxF "${site#*: }" <<<"$saves_work"; then passed=$((passed + 1)); echo "ok    mutant $k survived, it only saves work: line $site"
        else failed=$((failed + 1)); echo "FAIL  mutant $k survived: line $site"; fi
    done < <(seq "$(wc -l <"$sites")" | xargs -P "$(nproc)" -I{} bash -c 'try {} '"$program")
    echo "$passed passed, $failed failed"
    [ "$failed" = 0 ]
    ;;
esac
