#!/usr/bin/env bash
# The pages of data/ in a real browser, tested by test/pages.js: filled with test/golden/pages, driven by DOM events, 400 and 1400 pixels wide, light and dark; then with no data, odd data and much data.
# bash test/test_pages.sh [REPORT.html [COMPARE.html]]      (from the repository root; the pages named are ones the program wrote, and are looked at in addition)
set -u
browser=
for name in chromium chromium-browser google-chrome google-chrome-stable; do command -v $name >/dev/null && browser=$name && break; done
if [ -z "$browser" ]; then
    echo "skipped: no chromium on this machine (apt-get install chromium)"
    echo "0 passed, 0 failed"
    exit 0
fi
mkdir -p build
work=$(mktemp -d "$PWD/build/pages_XXXXXX")             # below the repository, for a browser that may not read /tmp
trap 'rm -rf "$work"' EXIT
passed=0 failed=0

fill() {        # template json output: what the program does
    sed 's/</\\u003c/g' "$2" >"$work/json"
    awk -v json="$work/json" '{ i = index($0, "{{DATA}}") } i { printf "%s", substr($0, 1, i - 1); while ((getline line < json) > 0) print line; print substr($0, i + 8); next } { print }' "$1" >"$3"
}
inject() {      # page script output: the page with what listens for errors before its own scripts, and the test after them
    awk -v early="$work/early.js" -v common="$work/common.js" -v test="$2" '
        function paste(file,  line) { while ((getline line < file) > 0) print line; close(file) }
        NR == 1 && (i = index($0, "<meta charset=\"utf-8\">")) { print substr($0, 1, i + 21); print "<script>"; paste(early); print "</script>"; print substr($0, i + 22); next }
        $0 == "</body></html>" { print "<script>"; paste(common); paste(test); print "</script>" }
        { print }' "$1" >"$3"
}
look() {        # name page test width scheme [more for the address]: one run of the browser; the page is in a frame, for a window is never narrower than 500 pixels
    local name=$1 dark=1 got
    [ "$5" = dark ] && dark=0
    inject "$2" "$3" "$work/page.html"
    cat >"$work/frame.html" <<END
<!DOCTYPE html><meta charset="utf-8"><body style="margin:0"><pre id="result"></pre>
<script>window.shelves = {localStorage: new Map(), sessionStorage: new Map()}; addEventListener('message', e => { document.getElementById('result').textContent += String(e.data).replace(/\s+/g, ' ') + '\n'; });</script>
<iframe src="page.html#width=$4&scheme=$5${6:-}" style="border:0;display:block;width:$4px;height:900px"></iframe></body>
END
    timeout 120 "$browser" --headless --no-sandbox --disable-gpu --allow-file-access-from-files --force-prefers-reduced-motion --user-data-dir="$work/profile" --blink-settings=preferredColorScheme=$dark --window-size=1500,1000 \
        --virtual-time-budget=90000 --dump-dom "file://$work/frame.html" >"$work/dump.html" 2>"$work/stderr"
    rm -rf "$work/profile"
    got=$(sed -n '/<pre id="result">/,/<\/pre>/p' "$work/dump.html" | sed -e 's/.*<pre id="result">//' -e 's/<\/pre>.*//' -e 's/&lt;/</g; s/&gt;/>/g; s/&amp;/\&/g' | sed '/^DONE$/q')
    while IFS= read -r line; do
        case $line in
            PASS*) echo "ok    $name, $4 $5: ${line#PASS }"; passed=$((passed + 1)) ;;
            FAIL*) echo "FAIL  $name, $4 $5: ${line#FAIL }"; failed=$((failed + 1)) ;;
        esac
    done <<<"$got"
    grep -q '^DONE$' <<<"$got" || { echo "FAIL  $name, $4 $5: the page's test did not come to its end; $(tail -n 1 "$work/stderr" | cut -c1-200)"; failed=$((failed + 1)); }
}

# The tests of test/pages.js, a file each.
awk -v work="$work" '/^\/\* ==== / { file = $3; sub(/:$/, "", file); next } file { print >(work "/" file) }' test/pages.js

# ---- the runs ----------------------------------------------------------------------------------------------------------------------------------------------
golden=test/golden/pages
for page in report compare; do
    fill data/$page.html $golden/$page.json "$work/$page.html"
    for scheme in light dark; do for width in 400 1400; do look $page "$work/$page.html" "$work/$page.js" $width $scheme; done; done
    echo '{}' >"$work/data.json"
    fill data/$page.html "$work/data.json" "$work/case.html"
    look "$page of nothing" "$work/case.html" "$work/empty.js" 400 light
    look "$page template" data/$page.html "$work/empty.js" 400 dark
done

fill data/sweep.html $golden/sweep.json "$work/sweep.html"
for scheme in light dark; do for width in 400 1400; do look sweep "$work/sweep.html" "$work/sweep.js" $width $scheme; done; done

cat >"$work/data.json" <<'END'
{"title": "t", "status": "running", "progress": {"step": 0, "max_steps": 18, "epoch": 0, "elapsed_seconds": 3, "eta_seconds": 0, "tokens_per_second": 0, "ceiling_share": 0},
 "best": {"metric": "mean_example_perplexity", "step": 0, "value": 3.5}}
END
fill data/report.html "$work/data.json" "$work/case.html"
look "report before the first step" "$work/case.html" "$work/begins.js" 400 light

cat >"$work/data.json" <<'END'
{"title": null, "status": "constructor", "message": 7, "updated": null, "device": null, "model": {"a": 1}, "adapter": [], "progress": {"step": null, "max_steps": 0, "epoch": null}, "best": {"metric": null, "value": null},
 "log_history": [null, 3, {}, {"step": null, "loss": 1}, {"step": 10, "loss": null, "learning_rate": null, "grad_norm": null}, {"step": 20, "loss": null, "eval_loss": null, "eval_perplexity": null}, {"step": 5, "loss": -1, "grad_norm": 0, "learning_rate": 0}, {"step": 5, "loss": 1e300, "grad_norm": 1e-300}],
 "data": {"examples": null, "tokens": 0, "labelled_tokens": 5, "lengths": [null, {"from": 0}, {"from": 0, "to": 1, "count": 0}]}, "memory": [null, {"name": null, "bytes": null}, {"name": null, "bytes": 0}], "memory_peak_bytes": null, "options": {"__proto__": 1, "constructor": null, "a": {"b": [1, null]}},
 "warnings": [null, "", 3], "samples": [null, {}, {"prompt": 3, "adapter": false}], "commands": [null, {"command": ""}, {"command": 5}]}
END
fill data/report.html "$work/data.json" "$work/case.html"
look "report of odd data" "$work/case.html" "$work/plain.js" 400 light
look "report of odd data" "$work/case.html" "$work/plain.js" 1400 dark

awk 'BEGIN { printf "{\"title\": \"a\", \"status\": \"finished\", \"progress\": {\"step\": 40, \"max_steps\": 40, \"elapsed_seconds\": 4000, \"eta_seconds\": 0}, \"log_history\": [";
    for (i = 1; i <= 40; i++) printf "{\"step\": %d, \"loss\": %g, \"learning_rate\": 2e-4, \"grad_norm\": %g},", i, 3 / i, (i == 20 ? 900 : (i == 3 ? 0.012 : 1)); print "{\"step\": 40, \"train_loss\": 0.75, \"train_runtime\": 4000}], \"data\": {\"lengths\": ["; for (i = 0; i < 40; i++) printf "%s{\"from\": %d, \"to\": %d, \"count\": %d}", (i ? "," : ""), i * 1000, i * 1000 + 1000, i * i; print "]}}" }' >"$work/data.json"
fill data/report.html "$work/data.json" "$work/case.html"
look "report without evaluation" "$work/case.html" "$work/finished.js" 400 light
echo '{"title": "a", "status": "failed", "message": "out of memory", "log_history": [{"step": 1, "loss": 2.5, "learning_rate": 1e-5, "grad_norm": 3}]}' >"$work/data.json"
fill data/report.html "$work/data.json" "$work/case.html"
look "report of one record" "$work/case.html" "$work/one.js" 400 dark
awk 'BEGIN { srand(3); printf "{\"title\": \"long\", \"status\": \"finished\", \"log_history\": [";
    for (i = 1; i <= 20000; i++) printf "%s{\"step\": %d, \"epoch\": %.4f, \"loss\": %.4f, \"grad_norm\": %.3f, \"learning_rate\": %.6g, \"mean_token_accuracy\": %.3f, \"entropy\": %.3f, \"num_tokens\": %d}%s", (i > 1 ? "," : ""), i * 10, i / 2000, (i == 7777 ? 50 : 2 + rand()), 1 + rand(), 2e-4 * (1 - i / 20001), rand(), rand(), i * 8000, (i % 100 ? "" : sprintf(",{\"step\": %d, \"epoch\": %.4f, \"eval_loss\": 2.4}", i * 10, i / 2000)); print "]}" }' >"$work/data.json"
fill data/report.html "$work/data.json" "$work/case.html"
look "report of 20,000 records" "$work/case.html" "$work/long.js" 1400 light

cat >"$work/data.json" <<'END'
{"title": 3, "columns": ["a", null, "a"], "summary": [null, {"loss": null}, {"__proto__": 1, "constructor": 2}], "rows": [null, 7, {}, {"id": {"x": 1}, "label": 4, "messages": [null, {"role": null, "content": null}, {"role": "tool", "content": {"a": 1}}], "reference": "", "answers": [null, 5, "five", "a fourth"], "scores": [null, {"f1": null, "x": "y"}]}, {"answers": "none", "scores": 3, "messages": "x"}]}
END
fill data/compare.html "$work/data.json" "$work/case.html"
look "compare of odd data" "$work/case.html" "$work/plain.js" 400 light
look "compare of odd data" "$work/case.html" "$work/plain.js" 1400 dark
look "compare without storage" "$work/compare.html" "$work/nostorage.js" 400 light "&nostorage"
look "compare with the browser's storage" "$work/compare.html" "$work/storage.js" 400 light "&realstorage"
awk 'BEGIN { long = ""; for (i = 0; i < 1400; i++) long = long " word" (i * 7919 % 1009); other = ""; for (i = 0; i < 1400; i++) other = other " word" (i * 104729 % 1013);
    printf "{\"title\": \"many\", \"columns\": [\"base\", \"out/a-rather-long-name-of-an-adapter-folder-with-r-16-and-alpha-32\", \"c\", \"d\", \"e\"], \"summary\": [{\"loss\": 1}, {\"loss\": 2}], \"rows\": [";
    for (i = 1; i <= 2000; i++) printf "%s{\"id\": %d, \"label\": \"group %d\", \"messages\": [{\"role\": \"user\", \"content\": \"Question number %d about the hotel\"}], \"reference\": \"The answer number %d%s\", \"answers\": [\"The reply number %d%s\", \"b %d\", \"c\", \"d\", \"e\"], \"scores\": [{\"f1\": 0}, {\"f1\": %.4f}]}", (i > 1 ? "," : ""), i, i % 7, i, i, (i < 4 ? long : ""), i, (i < 4 ? other : ""), i, (i == 1000 ? 1 : i / 3000); print "]}" }' >"$work/data.json"
fill data/compare.html "$work/data.json" "$work/case.html"
look "compare of 2,000 rows" "$work/case.html" "$work/many.js" 1400 dark
look "compare of 2,000 rows" "$work/case.html" "$work/many.js" 400 light

[ -n "${1:-}" ] && look "$1" "$1" "$work/real_report.js" 400 light && look "$1" "$1" "$work/real_report.js" 1400 dark
[ -n "${2:-}" ] && look "$2" "$2" "$work/real_compare.js" 400 light && look "$2" "$2" "$work/real_compare.js" 1400 dark
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
