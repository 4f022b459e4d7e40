/* pages.js - the tests of data/*.html, as they run in the page: test/test_pages.sh cuts this file at its titles, puts
   early.js in front of the page's own scripts and common.js with one of the others behind them, and opens the page in a
   browser. */

/* ==== early.js: before its own scripts ==== */
'use strict';
const say = line => parent.postMessage(line, '*');
const wrong = (what, e) => say('FAIL ' + what + ': ' + e);
addEventListener('error', e => wrong('an error in the page', e.message ? e.message + ' line ' + e.lineno : e.target.outerHTML), true);
addEventListener('unhandledrejection', e => wrong('a rejection nobody handled', e.reason));
document.addEventListener('securitypolicyviolation', e => wrong('the page wanted something from outside', e.violatedDirective + ' ' + e.blockedURI));
for (const level of ['error', 'warn']) console[level] = (...a) => wrong('console.' + level, a.join(' '));
for (const name of ['alert', 'confirm', 'prompt']) window[name] = t => wrong('a dialog of the data\'s own', t);
/* Over a reload the browser's own storage may lag behind the virtual clock: the frame around the page keeps what the page stores, except where the test asks for the real one. */
const shelf = name => { const m = parent.shelves[name]; return {getItem: k => m.has(k) ? m.get(k) : null, setItem: (k, v) => { m.set(k, String(v)); }}; };
if (!/storage/.test(location.hash)) for (const name of ['localStorage', 'sessionStorage']) Object.defineProperty(window, name, {value: shelf(name)});
if (location.hash.includes('nostorage')) for (const name of ['localStorage', 'sessionStorage']) Object.defineProperty(window, name, {get() { throw new Error('storage is off'); }});

/* ==== common.js: after them: what every page must pass ==== */
'use strict';
const id = name => document.getElementById(name), all = (selector, from = document) => [...from.querySelectorAll(selector)], one = (selector, from = document) => from.querySelector(selector);
const asked = new URLSearchParams(location.hash.slice(1)), wide = +asked.get('width') >= 700;
const check = (name, ok, why = '') => say(ok ? 'PASS ' + name : 'FAIL ' + name + ' | ' + why);
const same = (name, got, wanted) => check(name, JSON.stringify(got) === JSON.stringify(wanted), 'got ' + JSON.stringify(got) + ', wanted ' + JSON.stringify(wanted));
const sleep = ms => new Promise(r => setTimeout(r, ms));
const press = (key, target = document.activeElement) => target.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));
const type = (input, text) => { input.focus(); input.value = text; input.dispatchEvent(new Event('input', {bubbles: true})); };
const choose = (select, text) => { select.value = all('option', select).find(o => o.textContent.startsWith(text)).value; select.dispatchEvent(new Event('change', {bubbles: true})); };
const seen = e => e.checkVisibility({visibilityProperty: true}) && !e.closest('.hide');
const run = async body => { try { await body(); } catch (e) { wrong('the test itself', e.stack); } say('DONE'); };
const texts = () => {                                   /* every visible piece of text with its element and its boxes */
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
    for (let n; (n = walk.nextNode());) {
        if (!n.data.trim() || n.parentElement.closest('script, noscript, style, option, pre#result') || !seen(n.parentElement)) continue;
        const range = document.createRange();
        range.selectNodeContents(n);
        found.push({node: n, e: n.parentElement, boxes: [...range.getClientRects()].filter(b => b.width > 0)});
    }
    return found;
};
const colour = s => { const v = s.match(/[\d.]+/g).map(Number); return {r: v[0], g: v[1], b: v[2], a: v[3] ?? 1}; };
const light = c => { const f = v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; return .2126 * f(c.r) + .7152 * f(c.g) + .0722 * f(c.b); };
const behind = e => { for (; e; e = e.parentElement) { const c = colour(getComputedStyle(e).backgroundColor); if (c.a === 1) return c; } return {r: 255, g: 255, b: 255}; };
const general = () => {
    const found = texts(), quote = t => '"' + t.node.data.trim().slice(0, 40) + '"';
    same('the frame is as wide as asked', innerWidth, +asked.get('width'));
    check('nothing is wider than the window', document.documentElement.scrollWidth <= innerWidth, document.documentElement.scrollWidth + ' > ' + innerWidth + ' ' + all('body *').filter(e => seen(e) && !e.closest('.scroll') && e.getBoundingClientRect().right > innerWidth + 1).slice(0, 3).map(e => e.tagName + '.' + e.getAttribute('class')));
    const out = found.filter(t => !t.e.closest('.scroll') && t.boxes.some(b => b.left < -1 || b.right > innerWidth + 1));
    check('no text leaves the window', !out.length, out.slice(0, 3).map(quote));
    const cut = all('body *').filter(e => seen(e) && !(e instanceof SVGElement) && !e.matches('input, select') && getComputedStyle(e).overflowX !== 'visible' && !e.matches('.scroll') && e.scrollWidth > e.clientWidth + 1);
    check('no text is cut', !cut.length, cut.slice(0, 3).map(e => e.outerHTML.slice(0, 80)));
    const boxes = found.flatMap((t, i) => t.boxes.map(b => ({i, l: b.left + 2, r: b.right - 2, t: b.top + 2.5, b: b.bottom - 2.5}))), over = [];
    boxes.sort((a, b) => a.t - b.t);
    for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length && boxes[j].t < boxes[i].b; j++) if (boxes[i].i !== boxes[j].i && boxes[i].l < boxes[j].r && boxes[j].l < boxes[i].r) over.push(quote(found[boxes[i].i]) + ' on ' + quote(found[boxes[j].i]));
    check('no text lies on another', !over.length, over.slice(0, 3));
    const faint = found.filter(t => !t.e.closest(':disabled')).map(t => {
        const style = getComputedStyle(t.e), a = light(colour(t.e instanceof SVGElement ? style.fill : style.color)), b = light(behind(t.e));
        return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), t];
    }).filter(([ratio]) => ratio < 4.5);
    check('every text has a contrast of 4.5 and more', !faint.length, faint.slice(0, 3).map(([ratio, t]) => ratio.toFixed(2) + ' ' + quote(t)));
    check('the paper is ' + asked.get('scheme'), light(behind(document.body)) > .5 === (asked.get('scheme') === 'light'), getComputedStyle(document.body).backgroundColor);
    const controls = all('button, input, select, summary, a, [tabindex="0"]').filter(e => e.checkVisibility());
    const nameless = controls.filter(e => !(e.getAttribute('aria-label') || e.labels && [...e.labels].map(l => l.textContent).join('').trim() || e.textContent.trim()));
    check('every control has a name', !nameless.length, nameless.map(e => e.outerHTML.slice(0, 80)));
    check('nobody jumps the queue of Tab', !all('[tabindex]').some(e => e.tabIndex > 0));
    const blind = controls.filter(e => !e.disabled && e.tabIndex === 0).filter(e => { e.focus({preventScroll: true}); const s = getComputedStyle(e.closest('.button') || e); return document.activeElement !== e || s.outlineStyle === 'none' || parseFloat(s.outlineWidth) < 1; });
    check('every control shows its focus', !blind.length, blind.slice(0, 3).map(e => e.outerHTML.slice(0, 80)));
    document.activeElement.blur();
    const small = controls.filter(e => e.matches('button') && (e.offsetWidth < 24 || e.offsetHeight < 24));
    check('every button can be hit', !small.length, small.slice(0, 3).map(e => e.outerHTML.slice(0, 80) + e.offsetWidth + 'x' + e.offsetHeight));
    const ids = all('[id]').map(e => e.id);
    check('every id once', new Set(ids).size === ids.length);
    check('nothing is fetched', !performance.getEntriesByType('resource').length && !all('link, img, iframe, object, embed, script[src]').length, performance.getEntriesByType('resource').map(e => e.name));
    same('no script but the page\'s own', all('script').length, 4);
    const empty = all('main section, main p, main dl, main ol, main ul, h2, h3').filter(e => seen(e) && !e.textContent.trim() && e.id !== 'said');
    check('nothing is shown empty', !empty.length, empty.slice(0, 3).map(e => e.outerHTML.slice(0, 80)));
    check('no undefined, NaN or [object', !/undefined|\bNaN\b|Infinity|\[object/.test(document.body.innerText), (document.body.innerText.match(/.{0,30}(undefined|\bNaN\b|Infinity|\[object).{0,20}/) || [''])[0]);
};
let D = {};
try { D = JSON.parse(id('data').textContent) || {}; } catch (e) { /* the case of the page that was not filled */ }

/* ==== report.js: the page of a run ==== */
const chartOf = name => all('.chart').find(c => one('h3', c).textContent === name), svgOf = name => one('svg', chartOf(name)), legendOf = name => one('.legend', chartOf(name)).textContent;
const dOf = name => all('path:not(.lost)', svgOf(name)).map(p => p.getAttribute('d'));
const at = (svg, share, what = 'pointermove') => { const b = svg.getBoundingClientRect(); svg.dispatchEvent(new PointerEvent(what, {clientX: b.left + share * b.width, clientY: b.top + 20, bubbles: true, pointerType: 'mouse'})); };
const steps = D.log_history.filter(e => 'learning_rate' in e), stage = sessionStorage.getItem('stage');
const first = async () => {
    general();
    check('title, status and progress', document.title.startsWith('66 %') && one('h1').textContent === D.title && id('state').textContent === 'Running' && id('bar').getAttribute('aria-valuenow') === '67' && id('far').textContent === 'Step 300 of 450, epoch 4.00 of 6' && id('left').textContent === '1:01 elapsed, about 0:30 left', document.title + id('far').textContent + id('left').textContent);
    same('numbers', all('.figures .value').map(e => e.textContent), ['0.2206', '0.2321', '1.2612', '0.2318', '21,321 tokens/s', '1:01'].map((v, i) => i ? v : steps[steps.length - 1].loss.toFixed(4)));
    check('the way down', one('.figures').textContent.includes('from 7.1351, −97 %') && one('.figures').textContent.includes('61 % of what the machine could do'), one('.figures').textContent);
    same('warnings are texts', all('#warnings li').map(e => e.textContent), D.warnings);
    same('charts', all('.chart h3').map(e => e.textContent), ['Loss', 'Perplexity', 'Mean perplexity of an example', 'Learning rate', 'Gradient norm', 'Tokens predicted right', 'Entropy', 'Tokens seen', 'Tokens per second', 'Tokens of an example']);
    check('every chart has a curve', all('#curves svg').every(s => all('path:not(.lost)', s).some(p => p.getAttribute('d').length > 50)));
    const written = []; window.Blob = class extends Blob { constructor(parts, o) { super(parts, o); written.push([o.type, parts.join('')]); } };
    let saved = ''; document.addEventListener('click', e => { const a = e.target.closest('a[download]'); if (a) { saved = a.download; e.preventDefault(); } }, true);
    one('.save', chartOf('Loss')).click();
    const [kind, image] = written.pop(), drawn = new DOMParser().parseFromString(image, 'image/svg+xml'), curve = one('path', drawn);
    check('save SVG', kind === 'image/svg+xml' && saved.endsWith('-Loss.svg') && !one('parsererror', drawn) && drawn.documentElement.getAttribute('width') > 200 && curve.getAttribute('stroke').startsWith('rgb') && curve.getAttribute('fill') === 'none' && all('text', drawn)[0].textContent === 'Loss' && !one('[class], [visibility=hidden]', drawn) && all('path', drawn).length >= all('path', svgOf('Loss')).length - 1, image.slice(0, 400));
    id('csv').click();
    const table = written.pop()[1].slice(1).trimEnd().split('\r\n').map(l => l.split(',')), evaluation = D.log_history.filter(e => 'eval_loss' in e), column = table[0].indexOf('eval_mean_example_perplexity');
    check('save CSV', table.length === D.log_history.filter(e => e && e.step != null).length + 1 && table[0][0] === 'step' && saved.endsWith('-log.csv') && table.map(r => r[column]).filter(Boolean).slice(1).join() === evaluation.map(e => e.eval_mean_example_perplexity).join(), table[0]);
    check('perplexity of the examples', /mean of the examples 1\.51/.test(one('.figures').textContent), one('.figures').textContent);
    same('one dot for each evaluation', all('circle.eval:not([visibility])', svgOf('Loss')).length, D.log_history.filter(e => 'eval_loss' in e).length);
    check('a loss that is not finite is a gap and a cross', dOf('Loss')[0].split('M').length === 3 && all('path.lost', svgOf('Loss')).length === 1 && legendOf('Loss').includes('× not finite: 1'), dOf('Loss')[0].split('M').length);
    const ticks = all('text[text-anchor=middle]', svgOf('Loss')).map(e => e.textContent);
    check('nice ticks', ticks.filter(t => !t.startsWith('epoch')).join() === (wide ? '0,50,100,150,200,250,300' : '0,100,200,300') && ticks.filter(t => t.startsWith('epoch')).length === 4, ticks);
    at(svgOf('Loss'), .62);
    const step = +svgOf('Loss').getAttribute('aria-valuenow'), record = steps.find(e => e.step === step);
    check('hover: a step in the middle', step > 150 && step < 230, step);
    check('hover: the values of that step, in every chart', record && legendOf('Loss').includes('training ' + record.loss.toFixed(4)) && legendOf('Gradient norm').includes(record.grad_norm.toFixed(4)) && legendOf('Learning rate').includes(record.learning_rate.toPrecision(4)) && legendOf('Tokens seen').includes(record.num_tokens.toLocaleString('en')) && all('#curves svg').every(s => +s.getAttribute('aria-valuenow') === step || /^(Loss|.*erplexity)/.test(s.getAttribute('aria-label'))), legendOf('Loss') + JSON.stringify(record));
    check('hover: the evaluation says its own step', legendOf('Loss').match(/evaluation [\d.]+\sat (150|225)/) || step === 225 || step === 150, legendOf('Loss'));
    check('hover: a line and dots', all('#curves svg').every(s => one('line.cursor', s).getAttribute('visibility') === 'visible'));
    const height = chartOf('Loss').offsetHeight;
    svgOf('Loss').dispatchEvent(new PointerEvent('pointerleave', {pointerType: 'mouse'}));
    check('hover ends: the latest values again', legendOf('Loss').includes('step 300') && one('line.cursor', svgOf('Loss')).getAttribute('visibility') === 'hidden', legendOf('Loss'));
    same('hover moves nothing', chartOf('Loss').offsetHeight, height);
    at(svgOf('Entropy'), .3, 'pointerdown');
    svgOf('Entropy').dispatchEvent(new PointerEvent('pointerleave', {pointerType: 'touch'}));
    check('touch: the values stay', one('line.cursor', svgOf('Loss')).getAttribute('visibility') === 'visible');
    const svg = svgOf('Gradient norm'), now = () => +svg.getAttribute('aria-valuenow');
    svg.focus(); press('End'); same('key End', now(), 300);
    press('ArrowLeft'); same('key arrow left', now(), 295);
    press('ArrowRight'); same('key arrow right', now(), 300);
    press('PageDown'); same('key page down', now(), 250);
    press('Home'); same('key Home', now(), 5);
    check('the values are read out', svg.getAttribute('aria-valuetext').startsWith('step 5, ') && svg.getAttribute('role') === 'slider', svg.getAttribute('aria-valuetext'));
    for (let i = 0; i < 8; i++) press('ArrowRight');
    check('a value that is not finite is said', all('output', chartOf('Gradient norm'))[1].textContent === 'not finite' && now() === 45, legendOf('Gradient norm'));
    press('Escape'); check('key Escape', one('line.cursor', svg).getAttribute('visibility') === 'hidden');
    const before = dOf('Loss')[1], ys = all('text[text-anchor=end]', svgOf('Loss')).map(e => e.textContent);
    id('smoothing').focus(); id('smoothing').value = 0; id('smoothing').dispatchEvent(new Event('input', {bubbles: true}));
    check('smoothing 0 is the curve itself', dOf('Loss')[1] === dOf('Loss')[0] && before !== dOf('Loss')[1]);
    id('logarithmic').click();
    const logs = all('text[text-anchor=end]', svgOf('Loss')).map(e => e.textContent);
    check('logarithmic', ys.join() === '0,2,4,6,8' && logs.includes('0.5') && logs.includes('5') && svgOf('Loss').getAttribute('aria-label').includes('logarithmic'), ys + ' ' + logs);
    id('logarithmic').click();
    const columns = all('rect.column'), hist = svgOf('Tokens of an example');
    same('histogram', columns.length, D.data.lengths.length);
    hist.focus(); press('Home'); press('ArrowRight'); check('histogram: keys', chartOf('Tokens of an example').textContent.includes('32 to 64: 163 examples') && columns[1].classList.contains('at'), chartOf('Tokens of an example').textContent);
    press('Escape');
    check('data', id('dataset').textContent.includes('56,498') && id('dataset').textContent.includes('48 % of the tokens are in the loss'), id('dataset').textContent);
    check('memory', all('#memory tr').length === 9 && id('memory').textContent.includes('26.04 MiB') && id('memory').textContent.includes('Peak, measured50.75 MiB'), id('memory').textContent);
    same('answers: one of each prompt', all('.samples > li').length, 4);
    const hostile = D.samples[5];
    check('answers are texts', all('.samples > li')[3].textContent.includes(hostile.prompt) && all('.samples > li')[3].textContent.includes(hostile.adapter), all('.samples > li')[3].textContent);
    check('answers: the newest first, the earlier folded', one('.pair .new').textContent.startsWith('With the adapter, step 300Breakfast') && one('.samples summary').textContent === 'Earlier answers (2)');
    check('answers: right to left', getComputedStyle(one('.prompt', all('.samples > li')[2])).unicodeBidi === 'plaintext');
    let copied = '';
    Object.defineProperty(navigator, 'clipboard', {configurable: true, value: {writeText: async t => { copied = t; }}});
    const copy = all('.commands button');
    same('commands', copy.length, 3);
    copy[2].click(); await sleep(10);
    check('copy', copied === D.commands[2].command && copy[2].textContent === 'Copied', copied);
    await sleep(2000); same('copy: the button again', copy[2].textContent, 'Copy');
    Object.defineProperty(navigator, 'clipboard', {configurable: true, value: undefined});
    document.execCommand = () => { copied = document.activeElement.value; return true; };
    copy[0].click(); await sleep(10);
    check('copy without the clipboard of today', copied === D.commands[0].command && !one('textarea'), copied);
    const rows = all('.options > div'), shown = () => rows.filter(r => !r.hidden).map(r => one('dt', r).textContent);
    same('options', rows.length, Object.keys(D.options).length);
    check('options are texts', rows.some(r => one('dd', r).textContent === D.options.prompt_template) && rows.some(r => one('dd', r).textContent === 'q, k, v, o, gate, up, down'));
    type(id('filter'), 'lora'); same('filter', shown(), ['lora_r', 'lora_alpha', 'lora_dropout', 'use_rslora']);
    check('filter: the count', id('count').textContent === '4 of ' + rows.length, id('count').textContent);
    type(id('filter'), '--save-st'.slice(2)); same('filter: dashes', shown(), ['save_strategy', 'save_steps']);
    await sleep(15000);
    check('no reload while one types', shown().length === 2 && sessionStorage.getItem('stage') === null);
    id('filter').blur();
    id('pause').click(); same('pause', id('pause').textContent, 'Resume');
    await sleep(25000);
    sessionStorage.setItem('stage', 'second');
    one('details').open = true;
    id('pause').click(); window.scrollTo(0, 700);
    await sleep(15000);
    check('a running run is loaded again', false, 'no reload');
};
const second = async () => {
    check('a running run is loaded again', true);
    same('reload: the same place', scrollY, 700);
    check('reload: filter, smoothing and folds are kept', id('filter').value === 'save-st' && all('.options > div').filter(r => !r.hidden).length === 2 && id('smoothing').value === '0' && one('details').open, id('filter').value);
    check('reload: not paused', id('pause').textContent === 'Pause');
    id('pause').click();
};
if (!stage) first().catch(e => { wrong('the test itself', e.stack); say('DONE'); });
else if (stage === 'second') { sessionStorage.setItem('stage', 'third'); run(second); }

/* ==== plain.js ==== */
run(async () => { general(); await sleep(25000); general(); });

/* ==== empty.js ==== */
run(async () => {
    general();
    check('a page without data says so or stays empty', !all('main section').some(s => seen(s) && s.id !== 'curves') && one('h1').textContent.length > 3 && !all('article, svg').length, document.body.innerText);
    check('nothing to pause', !id('pause') || id('pause').hidden);
});

/* ==== real_report.js ==== */
run(async () => { general(); check('curves', all('#curves svg path').some(p => p.getAttribute('d').length > 10), all('svg').length); check('status and title', id('state').textContent !== 'Status unknown' && one('h1').textContent.length > 0); });

/* ==== real_compare.js ==== */
run(async () => { general(); check('rows', all('article').length > 0); check('answers', all('article .answer').length >= all('article').length); check('summary', all('#measured tr').length > 0); });

/* ==== finished.js ==== */
run(async () => {
    let left = false;
    addEventListener('pagehide', () => { left = true; });
    general();
    check('finished: no pause, no time left, mean loss', id('pause').hidden && !id('left').textContent.includes('left') && one('.figures').textContent.includes('mean of the run 0.75') && id('state').textContent === 'Finished', one('.figures').textContent);
    check('no evaluation: no dots, no number', !all('circle.eval').length && !one('.figures').textContent.includes('Evaluation') && !one('.legend').textContent.includes('evaluation'));
    const norm = all('svg').find(s => s.getAttribute('aria-label').startsWith('Gradient norm'));
    same('a range of more than 100: logarithmic', all('text[text-anchor=end]', norm).map(e => e.textContent), ['0.1', '1', '10', '100']);
    const rate = all('svg').find(s => s.getAttribute('aria-label').startsWith('Learning rate'));
    check('a constant has an axis too', all('text[text-anchor=end]', rate).length >= 2 && one('path', rate).getAttribute('d').startsWith('M'), rate.outerHTML.slice(0, 300));
    await sleep(30000);
    check('finished: no reload', !left);
});

/* ==== one.js ==== */
run(async () => { general(); check('one record: dots', all('#curves svg').length === 3 && all('#curves svg').every(s => all('circle:not([visibility])', s).length === 1), all('#curves svg').map(s => s.outerHTML.length)); });

/* ==== long.js ==== */
run(async () => {
    general();
    const svg = one('svg'), paths = all('path', svg).map(p => p.getAttribute('d')), points = paths.map(d => d.split(/[ML]/).length), high = Math.min(...paths[0].match(/ [\d.]+/g).map(Number));
    check('20,000 records: at most five points a pixel column', Math.max(...points) <= 5 * svg.clientWidth && points[0] > svg.clientWidth, points);
    check('20,000 records: the one spike is drawn', high < 60, high);
    svg.focus(); press('End'); for (let i = 0; i < 200; i++) press(i % 2 ? 'ArrowLeft' : 'PageDown');
    check('20,000 records: keys', +svg.getAttribute('aria-valuenow') < 199000, svg.getAttribute('aria-valuenow'));
});

/* ==== compare.js: the page of a comparison ==== */
const cards = () => all('article'), card = name => cards().find(c => one('.margin b', c).textContent === name), ids = () => cards().map(c => one('.margin b', c).textContent);
const answer = (row, k) => all('.answer', card(row))[k], marks = (e, tag) => all(tag, e).map(m => m.textContent), groupsOf = e => all('.criterion', e), valueOf = g => +(one('[aria-checked=true]', g) || {textContent: 0}).textContent;
const average = (name, k) => { const row = all('#rated tr').find(r => one('th', r).textContent === name); return row && all('td', row)[k].firstChild.textContent; };
const written = []; window.Blob = class extends Blob { constructor(parts, o) { super(parts, o); written.push(parts.join('')); } };
let saved = ''; document.addEventListener('click', e => { const a = e.target.closest('a[download]'); if (a) { saved = a.download; e.preventDefault(); } }, true);
const give = async text => { const t = new DataTransfer(); t.items.add(new File([text], 'r.json', {type: 'application/json'})); id('load').files = t.files; id('load').dispatchEvent(new Event('change', {bubbles: true})); for (let i = 0; i < 20000 && id('load').value; i++) await sleep(1); };
const stage = sessionStorage.getItem('stage');
const first = async () => {
    general();
    const table = all('#measured tr').map(r => [one('th', r).firstChild.textContent, all('td', r).map(d => d.classList.contains('best') ? 1 : 0).join('')]);
    same('summary: the best of each metric', table, [['loss', '010'], ['perplexity', '010'], ['bleu', '011'], ['rouge_l', '010'], ['f1', '010'], ['exact_match', '010'], ['tokens', '000']]);
    check('summary: the best is said, a missing one is a dash', all('#measured tr')[0].textContent.includes('0.180 (best)') && all('#measured tr')[4].textContent.endsWith('–'), all('#measured tr')[4].textContent);
    check('the settings of the answers, and what a score is', id('facts').textContent.includes('temperature 0, max_new_tokens 64, seed 42') && all('#measured th')[2].textContent === 'bleu0 to 100: sacrebleu', id('facts').textContent);
    check('what an answer must stand on is seen, in a folded dialogue too', seen(one('.turn.system', card('2'))) && !one('.turn.system', card('2')).closest('details') && seen(one('.turn.system', card('1'))));
    check('differences: what the marks mean, and why there are none', seen(id('marks')) && one('.apart', answer('1', 0)) && !one('.apart', answer('1', 2)) && !one('.apart', answer('1', 1)), answer('1', 0).innerHTML);
    same('rows, each under a name of its own', ids(), ['1', '2', '3', '4', '5', '6', '7', '8', '2 (2)']);
    check('texts stay texts', one('.turn .text', card('5')).textContent === D.rows[4].messages[0].content && one('.text', answer('5', 0)).textContent === D.rows[4].answers[0] && one('.reference .text', card('5')).textContent === D.rows[4].reference, card('5').textContent);
    check('messages in parts', card('6').textContent.includes('Which dish do you recommend'));
    check('missing and empty answers', answer('4', 2).textContent.includes('(no answer)') && answer('5', 2).textContent.includes('(empty)') && answer('8', 2).textContent.includes('(no answer)') && !one('.criteria', answer('4', 2)));
    check('a long dialogue is folded', one('summary', card('2')).textContent === '3 earlier messages' && !one('summary', card('1')));
    same('difference: words', [marks(answer('1', 2), 'ins'), marks(answer('1', 2), 'del')], [['kippers'], ['eggs']]);
    same('difference: Chinese by character', [marks(answer('3', 1), 'ins'), marks(answer('3', 1), 'del')], [['三', '3'], ['两', '2']]);
    check('difference: none for the same text, none for another text altogether', !one('ins, del', answer('1', 1)) && !one('ins, del', answer('1', 0)) && !one('ins, del', card('6')));
    check('difference: the first answer where there is no reference', !one('ins, del', answer('4', 0)) && marks(answer('4', 1), 'ins').length > 0, answer('4', 1).innerHTML);
    check('difference: what is not struck is the answer', all('.answer .text').every(p => { const c = p.cloneNode(true), k = +[...p.closest('.answers').children].indexOf(p.closest('.answer')), r = D.rows[cards().indexOf(p.closest('article'))]; all('del', c).forEach(d => d.remove()); return c.textContent.replace(/\s+/g, '') === r.answers[k].replace(/\s+/g, ''); }));
    check('difference: a gap between marks that touch, and only there', all('.beside', answer('3', 1)).length === 2 && !one('.beside', answer('1', 2)), answer('3', 1).innerHTML);
    id('diff').click(); check('difference: off', !one('ins, del', id('list')));
    id('diff').click(); check('difference: on', all('ins', id('list')).length > 3);
    check('scores', answer('1', 2).textContent.includes('f1 0.917') && answer('4', 0).textContent.includes('f1 –'), answer('1', 2).textContent);
    const tops = all('.answer', card('1')).map(a => a.getBoundingClientRect()[wide ? 'top' : 'left']);
    check(wide ? 'answers side by side' : 'answers one below the other', new Set(tops).size === 1, tops);
    type(id('search'), 'VEGETARIAN table'); await sleep(300); same('search: nothing', ids(), []); check('search: said', id('list').textContent === 'No row fits the filters.' && one('.pager').textContent === '0 of 9', id('list').textContent);
    type(id('search'), 'thyme Vegetarian'); await sleep(300); same('search', ids(), ['7']);
    type(id('search'), '恭候'); await sleep(300); same('search: Chinese', ids(), ['3']);
    type(id('search'), ''); await sleep(300); same('search: all again', ids().length, 9);
    id('differ').click(); same('answers differ', ids().includes('6') || ids().length, 8); id('differ').click();
    choose(id('group'), 'booking'); same('group', ids(), ['2', '3', '2 (2)']); check('group: its size', id('group').selectedOptions[0].textContent === 'booking (3)'); choose(id('group'), 'All');
    choose(id('sort'), 'f1: largest'); same('order: largest difference', ids(), ['1', '5', '2', '3', '7', '2 (2)', '4', '6', '8']);
    choose(id('sort'), 'f1: worst'); same('order: worst against the first', ids()[0], '5'); choose(id('sort'), 'In the');

    /* rating */
    const g = groupsOf(card('1'));
    same('rating: four criteria an answer', g.length, 12);
    all('button', g[0])[3].click(); check('rating: a click', valueOf(g[0]) === 4 && average('Helpfulness', 0) === undefined && average('helpfulness', 0) === '4.00' && card('1').textContent.includes('1 of 12 rated'), average('helpfulness', 0));
    all('button', g[0])[3].click(); check('rating: the same click takes it back', valueOf(g[0]) === 0 && !all('#rated tr').length);
    one('[tabindex="0"]', g[0]).focus();
    for (const k of '51432') press(k);
    same('rating: numbers rate and move on', g.slice(0, 6).map(valueOf), [5, 1, 4, 3, 2, 0]);
    check('rating: the focus is on the next one', g[5].contains(document.activeElement));
    press('ArrowRight'); press('ArrowRight'); press('ArrowRight'); press('ArrowLeft'); same('rating: arrows change', valueOf(g[5]), 2);
    press('ArrowUp'); check('rating: arrow up', g[4].contains(document.activeElement)); press('ArrowDown'); press('ArrowDown'); check('rating: arrow down', g[6].contains(document.activeElement));
    press('ArrowUp'); press('0'); same('rating: 0 takes it back', valueOf(g[5]), 0);
    check('rating: one stop of Tab each, the chosen one', g.every(x => all('[tabindex="0"]', x).length === 1) && one('[tabindex="0"]', g[0]).textContent === '5');
    for (let i = 0; i < 7; i++) press('4');
    check('rating: over the end of a row', groupsOf(card('2'))[0].contains(document.activeElement) && card('1').textContent.includes('rated') && !card('1').textContent.includes(' of 12'), document.activeElement.outerHTML);
    press('2'); same('rating: averages', ['helpfulness', 'harmlessness', 'relevance', 'quality'].map(c => [0, 1, 2].map(k => average(c, k)).join(' ')), ['3.50 2.00 4.00', '1.00 4.00 4.00', '4.00 4.00 4.00', '3.00 4.00 4.00']);
    same('rating: the total average', [0, 1, 2].map(k => average('total average', k)), ['2.88', '3.50', '4.00']);
    check('rating: a note of what was rated', average('answers rated', 0) === '2' && average('answers rated', 2) === '1');
    id('unrated').click(); check('unrated only', !ids().includes('1') && ids().includes('2')); id('unrated').click();
    id('form').click(); check('rating form off', !one('.criterion')); id('form').click(); check('rating form on', all('.criterion').length > 50 && valueOf(groupsOf(card('1'))[0]) === 5);

    /* moving */
    document.activeElement.blur(); press('j', document.body); check('j: the first row', document.activeElement === cards()[0]);
    press('j'); press('j'); press('k'); check('j j k: the second', document.activeElement === cards()[1] && Math.abs(cards()[1].getBoundingClientRect().top) < 30, cards()[1].getBoundingClientRect().top);
    press('3'); check('a number on a row: its first open criterion', valueOf(groupsOf(card('2'))[1]) === 3 && groupsOf(card('2'))[2].contains(document.activeElement));
    press('/'); check('/: search', document.activeElement === id('search')); press('j'); check('letters belong to the search field', document.activeElement === id('search')); id('search').blur();
    press('?', document.body); check('?: help', id('help').open); press('j', document.body); id('close').click(); check('help closes', !id('help').open);
    id('keys').click(); check('help by its button', id('help').open && id('help').getBoundingClientRect().right <= innerWidth); id('help').close();

    /* files */
    id('json').click();
    const file = JSON.parse(written.pop());
    check('save JSON', saved === 'data-base-against-2-adapters-ratings.json' && file.format === 'train_lora ratings' && file.ratings.length === 4 && file.ratings[0].id === 1 && file.ratings[0].column === 'base' && file.ratings[0].helpfulness === 5 && file.averages[0].helpfulness === 3.5, saved + JSON.stringify(file).slice(0, 400));
    for (const g of [groupsOf(card('5'))[0], groupsOf(card('5'))[4], groupsOf(card('8'))[0]]) all('button', g)[4].click();
    id('csv').click();
    const csv = written.pop(), lines = [], field = /("((?:[^"]|"")*)"|[^,\r\n]*)(,|\r\n|$)/gy; let line = [];
    for (let m; field.lastIndex < csv.length && (m = field.exec(csv));) { line.push(m[2] != null ? m[2].replaceAll('""', '"') : m[1]); if (m[3] !== ',') { lines.push(line); line = []; } }
    check('save CSV', lines.length === 8 && lines.every(l => l.length === 10) && lines[0].slice(1).join() === 'label,prompt,reference,column,answer,helpfulness,harmlessness,relevance,quality' && lines[1][6] === '5' && lines[1][2] === D.rows[0].messages.map(m => m.role + ': ' + m.content).join('\n') && lines[1][3] === D.rows[0].reference && lines[5][5] === D.rows[4].answers[0] && lines[6][5] === D.rows[4].answers[1] && lines[6][6] === '5' && lines[7][1] === "'=1+1", JSON.stringify(lines));
    file.ratings[0].helpfulness = 2; file.ratings[1].quality = 9; file.ratings.push({...file.ratings[0], id: 77}, {...file.ratings[0], answer: 'another'}, null, {...file.ratings[0], helpfulness: 'x', harmlessness: 0, relevance: null, quality: 2.5});
    await give(JSON.stringify(file));
    check('load JSON', valueOf(groupsOf(card('1'))[0]) === 2 && id('said').textContent.startsWith('4 ratings loaded; 4 left out'), id('said').textContent);
    await give('{"ratings": 3'); check('load: not JSON', id('said').textContent.includes('not JSON') && id('said').classList.contains('bad'), id('said').textContent);
    await give('[1]'); check('load: another file', id('said').textContent.includes('not a file of ratings'), id('said').textContent);

    /* blind */
    const names = e => [e.textContent, ...all('*', e).flatMap(x => [...x.attributes].map(a => a.value))].join('\n');
    id('blind').click();
    check('blind: no names, scores or averages', !/out\/hotel|\bbase\b/.test(names(id('list'))) && !names(id('list')).includes('f1') && all('#rated tr').length === 1 && /7 answers/.test(id('rated').textContent), id('rated').textContent);
    const orderOf = r => all('.answer', card(r)).map(a => one('.text', a) ? one('.text', a).textContent : ''), orders = ids().map(orderOf);
    same('blind: A, B, C', all('.answer h3', card('1')).map(h => h.textContent), ['Answer A', 'Answer B', 'Answer C']);
    id('diff').click();
    check('blind: shuffled, and not always alike', new Set(['1', '2', '3', '7', '2 (2)'].map(r => orderOf(r).map(t => D.rows.find((x, i) => x && ids()[i] === r).answers.indexOf(t)).join(''))).size > 1, JSON.stringify(orders));
    const where = orderOf('7').indexOf(D.rows[6].answers[1]);
    all('button', groupsOf(answer('7', where))[3])[0].click();
    id('blind').click(); same('blind: a rating goes to its answer', valueOf(groupsOf(answer('7', 1))[3]), 1);
    id('blind').click(); id('diff').click(); same('blind: the same order again', JSON.stringify(ids().map(orderOf)), JSON.stringify(orders));
    general();
    sessionStorage.setItem('stage', JSON.stringify(orders)); location.reload();
};
const second = async () => {
    check('reload: still blind, in the same order', id('blind').checked && JSON.stringify(ids().map(r => all('.answer', card(r)).map(a => one('.text', a) ? one('.text', a).textContent : ''))) === stage);
    id('blind').click();
    check('reload: the ratings are kept', valueOf(groupsOf(card('1'))[0]) === 2 && valueOf(groupsOf(answer('7', 1))[3]) === 1 && average('quality', 1) === '2.50', average('quality', 1));
    const key = 'train_lora ratings ' + JSON.stringify([D.title, D.data]), kept = JSON.parse(localStorage.getItem(key));
    kept.ratings[0][1].answer++; kept.ratings[1][1].quality = 17;
    localStorage.setItem(key, JSON.stringify(kept)); sessionStorage.setItem('stage', 'third'); location.reload();
};
const third = async () => check('the rating of an answer that has changed is dropped, and a value out of range', valueOf(groupsOf(card('1'))[0]) === 0 && valueOf(groupsOf(answer('1', 1))[3]) === 0 && valueOf(groupsOf(answer('7', 1))[3]) === 1);
const safely = f => f().catch(e => { wrong('the test itself', e.stack); say('DONE'); });
if (!stage) safely(first); else if (stage !== 'third') safely(second); else run(third);

/* ==== nostorage.js ==== */
run(async () => { const g = one('.criterion'); all('button', g)[2].click(); check('without storage it rates, and says that nothing is kept', one('[aria-checked=true]', g).textContent === '3' && id('said').textContent.includes('save your ratings as a file'), id('said').textContent); });

/* ==== storage.js ==== */
run(async () => { all('button', one('.criterion'))[2].click(); const kept = Object.entries(localStorage).map(([k, v]) => [k, JSON.parse(v).ratings.length]); same('the browser keeps the rating under the title and the data', kept, [['train_lora ratings ' + JSON.stringify([D.title, D.data]), 1]]); });

/* ==== many.js ==== */
run(async () => {
    general();
    const ids = () => all('article .margin b').map(b => b.textContent), button = text => all('.pager button').find(b => b.textContent === text);
    check('2,000 rows: fifty at a time', all('article').length === 50 && one('.pager').textContent.startsWith('1–50 of 2,000') && button('Previous').disabled, one('.pager').textContent);
    button('Next').click(); check('2,000 rows: the next page', ids()[0] === '51' && document.activeElement === one('article'));
    press('k'); check('2,000 rows: k over the page\'s edge', ids()[49] === '50' && document.activeElement === all('article')[49]);
    press('j'); check('2,000 rows: and j', ids()[0] === '51' && document.activeElement === one('article'));
    type(id('search'), 'number 1999'); await sleep(300); same('2,000 rows: search', ids(), ['1999']);
    type(id('search'), ''); await sleep(300); choose(id('sort'), 'f1: largest'); same('2,000 rows: order', ids()[0], '1000');
    for (let i = 0; i < 40; i++) press('5', i ? document.activeElement : (one('.criterion button').focus(), document.activeElement));
    check('2,000 rows: forty ratings', id('rated').textContent.includes('answers rated'), id('rated').textContent);
    check('five columns', one('.answers').children.length === 5);
});

/* ==== begins.js ==== */
run(async () => {
    check('before the first step: no speed, no share, no time left', !/tokens\/s|%|left/.test(document.body.innerText) && !/%/.test(document.title), document.body.innerText.slice(0, 300));
    const best = all('.figures .note').find(e => e.textContent.includes('mean example'));
    same('the name of a metric breaks between its words', best && best.textContent, 'mean example perplexity at step 0');
});

/* ==== sweep.js: the page of many runs ==== */
run(async () => {
    const column = i => all('tbody tr').map(tr => tr.children[i].textContent), heads = () => all('th').map(th => th.textContent);
    const press_head = name => all('th button').find(b => b.textContent === name).click();
    general();
    same('a column for each axis and each number there is', heads(),
        ['learning-rate', 'data', 'evaluation loss', 'token accuracy', 'steps', 'report']);
    same('the runs as they came', column(2), ['1.5000', '0.7500', '']);
    check('title and how many are done', one('h1').textContent === 'a <b> sweep' && one('p').textContent.startsWith('3 of 4 runs done'));
    same('the best of each number that has a best', all('td.best').map(td => td.textContent), ['0.9000', '0.7500']);
    press_head('learning-rate');
    same('numbers sort as numbers', column(0), ['2e-4', '1e-3', '1e-2']);
    check('the head says so', one('th[aria-sort="ascending"]').textContent === 'learning-rate');
    press_head('learning-rate');
    same('again: the other way', column(0), ['1e-2', '1e-3', '2e-4']);
    check('and so does the head', all('th[aria-sort]').length === 1 && one('th[aria-sort="descending"]').textContent === 'learning-rate');
    press_head('evaluation loss');
    same('a run without the number is last', column(2), ['0.7500', '1.5000', '']);
    press_head('data');
    same('texts sort as texts', column(1), ['a.jsonl', 'b&c.jsonl', '<i>.jsonl'].sort((a, b) => a.localeCompare(b)));
    same('a link to each report', all('tbody a').map(a => a.getAttribute('href')).sort(), ['r%201/report.html', 'r2/report.html', 'r3/report.html']);
    check('what stands in the data is text', !all('tbody i, h1 b').length);
    general();
});
