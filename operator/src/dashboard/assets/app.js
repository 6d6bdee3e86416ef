const $ = (id) => document.getElementById(id);
const main = $('main');
let token = '';                 // Of this page only: no cookie, no storage.
let about = null;
let rows = new Map();           // "namespace/name" -> row
let running = null;             // AbortController of the stream
let page = { draw: () => {} };
let charts = null;              // Module chart.js, once it is here

// ── Elements ───────────────────────────────────────────────────────────────────────────────────────────────────────────
const SVG = 'http://www.w3.org/2000/svg';

/// An element with attributes and children; text is always text, never markup.
export function make(tag, attributes = {}, ...children) {
  const svg = ['svg', 'path', 'line', 'rect', 'g', 'text', 'title'].includes(tag);
  const node = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === 'on') for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    else node.setAttribute(name, value === true ? '' : value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) node.append(child);
  return node;
}

// ── Requests ────────────────────────────────────────────────────────────────────────────────────────────────────────
function headers(more = {}) { return token ? { ...more, Authorization: `Bearer ${token}` } : more; }

class Refused extends Error { constructor(status, text) { super(text); this.status = status; } }

async function ask(path, options = {}) {
  let answer;
  try { answer = await fetch(path, { ...options, headers: headers(options.headers), cache: 'no-store' }); }
  catch (error) { if (error.name === 'AbortError') throw error; throw new Refused(0, 'The operator cannot be reached.'); }
  if (answer.ok) return answer;
  let text = `The operator answered ${answer.status}.`;
  try { text = (await answer.json()).error ?? text; } catch { /* no JSON: the status says it */ }
  throw new Refused(answer.status, text);
}

/// Follows a stream of events until it is aborted; comes again when it ends.
async function follow(path, on, stop) {
  let wait = 1000;
  while (!stop.signal.aborted) {
    try {
      const answer = await ask(path, { signal: stop.signal });
      link('live', 'good'); wait = 1000; on.opened?.();
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = '';
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        rest += value;
        const parts = rest.split('\n\n'); rest = parts.pop();
        for (const part of parts) {
          let name = 'message', data = '';
          for (const line of part.split('\n')) {
            if (line.startsWith('event:')) name = line.slice(6).trim();
            else if (line.startsWith('data:')) data += line.slice(5).trimStart();
          }
          if (data && on[name]) on[name](JSON.parse(data));
        }
      }
    } catch (error) {
      if (error.name === 'AbortError') return;
      link(error.status ? `not live: ${error.message}` : 'not live: the operator cannot be reached', 'bad');
      if (on.refused?.(error)) return;
      await new Promise((go) => setTimeout(go, wait));
      wait = Math.min(wait * 2, 15000);
    }
  }
}

function link(text, kind) { const node = $('link'); if (node.textContent !== text) node.textContent = text; node.className = `link ${kind}`; }
function say(text) { $('say').textContent = text; }

// ── Words ───────────────────────────────────────────────────────────────────────────────────────────────────────────
const TONE = { Serving: 'good', Promoting: 'good', Progressing: '', Pending: '', Paused: 'warn', Holding: 'warn', RollingBack: 'bad', RolledBack: 'bad', Degraded: 'bad', Malformed: 'bad' };
const MARK = { good: '✓ ', warn: '‖ ', bad: '✕ ', '': '● ' };
const tone = (phase) => TONE[phase] ?? 'warn';
const chip = (phase) => make('span', { class: `chip ${tone(phase)}` }, phase ? MARK[tone(phase)] + phase : 'no status yet');
const key = (row) => `${row.namespace}/${row.name}`;
const when = (text) => { const at = new Date(text); return isNaN(at) ? text : at.toLocaleString(); };
const time = (text) => make('time', { datetime: text }, when(text));
const attention = (row) => tone(row.phase) === 'bad' || tone(row.phase) === 'warn' || row.current === false;
const number = (value) => (value === null || value === undefined || value === '' ? '–' : String(value));
const figures = (value) => (value >= 1000 ? String(Math.round(value)) : value.toPrecision(3));
const milliseconds = (value) => (value === null ? 'above 125 s' : value >= 1 ? `${value.toFixed(1)} s` : value >= 0.01 ? `${Math.round(value * 1000)} ms` : `${(value * 1000).toFixed(2)} ms`);

function failure(error, what) {
  const box = make('div', { class: 'message bad', role: 'alert' }, make('strong', {}, what), make('br'), error.message);
  if (error.status === 401) box.append(make('p', {}, make('button', { type: 'button', class: 'main', on: { click: login } }, 'Sign in')));
  return box;
}

function table(caption, head, body, kind = '') {
  const cells = (row) => row.map((cell, i) => i === 0 ? make('th', { scope: 'row' }, cell)
    : make('td', { 'data-label': head[i], class: cell === '–' ? 'empty' : null }, cell));
  return make('table', { class: `fold ${kind}` }, make('caption', {}, caption),
    make('thead', {}, make('tr', {}, head.map((name) => make('th', { scope: 'col' }, name)))),
    make('tbody', {}, body.map((row) => make('tr', {}, cells(row)))));
}

// ── The list ────────────────────────────────────────────────────────────────────────────────────────────────────────
function list() {
  document.title = 'BitNet Rollouts';
  const search = make('input', { type: 'search', id: 'search', placeholder: 'Name or namespace ( / )', 'aria-label': 'Filter by name or namespace' });
  const only = make('input', { type: 'checkbox', id: 'only' });
  const count = make('p', { class: 'dim', role: 'status' });
  const HEAD = ['Rollout', 'Phase', 'Step', 'Weight', 'Verdict', 'Cosine', 'Latency', 'Errors', 'Message'];
  const body = make('tbody');
  const grid = make('table', { class: 'fold list' }, make('caption', { class: 'hidden' }, 'Rollouts'),
    make('thead', {}, make('tr', {}, HEAD.map((name) => make('th', { scope: 'col' }, name)))), body);
  const space = make('div');
  const shown = new Map();
  main.replaceChildren(make('h1', {}, 'Rollouts'), make('div', { class: 'row filters' }, search,
    make('label', { class: 'row', for: 'only' }, only, 'needs attention')), count, space, grid);
  grid.hidden = true;

  const line = (row) => {
    const signal = (name) => number(row.signals?.find(([known]) => known === name)?.[1]);
    const cells = [chip(row.phase), number(row.step), row.weight === null || row.weight === undefined ? '–' : `${row.weight} %`, number(row.verdict),
      signal('cosine'), signal('latency'), signal('errors'), number(row.message)];
    return make('tr', {}, make('th', { scope: 'row' }, make('a', { href: `#/${encodeURIComponent(row.namespace)}/${encodeURIComponent(row.name)}` }, row.name), ' ', make('span', { class: 'dim' }, row.namespace)),
      cells.map((cell, i) => make('td', { 'data-label': HEAD[i + 1], class: cell === '–' ? 'empty' : null }, cell)));
  };
  let loaded = false, waiting = false;
  const draw = () => {
    waiting = false;
    const text = search.value.trim().toLowerCase();
    const wanted = [...rows.values()].filter((row) => key(row).toLowerCase().includes(text) && (!only.checked || attention(row)))
      .sort((a, b) => key(a) < key(b) ? -1 : 1);
    const keep = new Set(wanted.map(key));
    for (const [name, old] of shown) if (!keep.has(name)) { old.node.remove(); shown.delete(name); }
    let before = body.firstChild;
    for (const row of wanted) {
      const name = key(row), stamp = JSON.stringify(row);
      let old = shown.get(name);
      if (!old || old.stamp !== stamp) {
        const node = line(row);
        if (old) { if (before === old.node) before = node; old.node.replaceWith(node); }
        shown.set(name, old = { node, stamp });
      }
      if (old.node === before) before = before.nextSibling; else body.insertBefore(old.node, before);
    }
    grid.hidden = wanted.length === 0;
    const troubled = [...rows.values()].filter(attention).length;
    count.textContent = loaded ? `${rows.size} rollouts, ${troubled} need attention${wanted.length === rows.size ? '' : `, ${wanted.length} shown`}` : 'reading…';
    if (!loaded) return;
    if (rows.size === 0) space.replaceChildren(make('div', { class: 'message' }, 'There is no ModelRollout that you may see. ', make('code', {}, 'kubectl bitnet create NAME'), ' writes one to begin with.'));
    else if (wanted.length === 0) space.replaceChildren(make('p', {}, 'No rollout fits the filter.'));
    else space.replaceChildren();
  };
  const soon = () => { if (!waiting) { waiting = true; requestAnimationFrame(draw); } };
  search.addEventListener('input', soon); only.addEventListener('change', soon);
  draw();
  running = new AbortController();
  follow('/api/v1/stream', {
    rows: (all) => { loaded = true; rows = new Map(all.map((row) => [key(row), row])); soon(); },
    row: (row) => {
      const before = rows.get(key(row));
      if (before && before.phase !== row.phase) say(`${row.name} is ${row.phase}`);
      rows.set(key(row), row); soon();
    },
    gone: (row) => { rows.delete(key(row)); say(`${row.name} is gone`); soon(); },
    refused: (error) => {
      space.replaceChildren(failure(error, 'The rollouts cannot be shown.')); count.textContent = '';
      return error.status === 401 || error.status === 403;
    },
  }, running);
  page = { search };
}

// ── One rollout ─────────────────────────────────────────────────────────────────────────────────────────────────────
const VERBS = [
  ['promote', 'Promote', '', 'End the pause of the current step.'],
  ['promote-full', 'Promote to 100 %', 'danger', 'Go to 100 % now, without the evidence that is missing. Your name is recorded.'],
  ['pause', 'Pause', '', 'Stop at the current weight. A rollback still happens when the evidence calls for one.'],
  ['resume', 'Resume', '', 'Go on after a pause.'],
  ['retry', 'Retry', '', 'Begin a new attempt with fresh evidence.'],
  ['abort', 'Abort', 'danger', 'All traffic back to the stable revision, now.'],
  ['rollback', 'Roll back to fp16', 'danger', 'All traffic back to the fp16 baseline, now, also after a promotion.'],
];

function detail(namespace, name) {
  document.title = `${name} – BitNet Rollouts`;
  const place = make('div'); const past = make('div'); const space = make('div');
  main.replaceChildren(make('p', {}, make('a', { href: '#/' }, '← all rollouts')), space, place, past);
  let object = null, watched = null, decided = null, phase = null;
  const path = `${encodeURIComponent(namespace)}/${encodeURIComponent(name)}`;

  const decisions = async () => {
    try {
      const found = (await (await ask(`/api/v1/rollouts/${path}/decisions`)).json()).decisions;
      past.replaceChildren(make('h2', {}, 'Decisions'), found.length ? table('The last 20, newest first', ['When', 'Verdict', 'Reason', 'Candidate', 'At', 'By', 'In words'],
        found.map(({ id, spec }) => [time(spec.decidedAt), spec.verdict, spec.reason, spec.candidate, `attempt ${spec.attempt}, ${spec.weight} %`, spec.by,
          make('span', {}, spec.message || '–', make('br'), make('code', {}, `kubectl bitnet explain ${id} -n ${namespace}`))])) : make('p', {}, 'Nothing was decided yet.'));
    } catch (error) { past.replaceChildren(make('h2', {}, 'Decisions'), failure(error, 'The decisions cannot be shown.')); }
  };
  // Of this page only, as the token.
  const texts = { known: {}, error: '' };
  texts.read = async (of) => {
    if (!token) { login(); return; }
    try { texts.known = (await (await ask(`/api/v1/rollouts/${path}/probes?of=${of.join(',')}`)).json()).texts; texts.error = ''; }
    catch (error) { texts.known = {}; texts.error = error.message; }
    soon();
  };
  let waiting = false;
  const draw = () => {
    waiting = false;
    if (!object) return;
    const status = object.status ?? {};
    if (phase !== null && phase !== status.phase) say(`${name} is ${status.phase}: ${status.message ?? ''}`);
    phase = status.phase;
    const open = [...place.querySelectorAll('details')].map((node) => node.open);
    const focus = document.activeElement?.dataset?.verb, reading = document.activeElement?.dataset?.texts !== undefined;
    place.replaceChildren(...[head(object, status), arms(status, watched), evidence(status, watched, texts), conditions(status), asked(status)].flat());
    place.querySelectorAll('details').forEach((node, i) => { if (open[i]) node.open = true; });
    if (focus) place.querySelector(`[data-verb="${focus}"]`)?.focus();
    if (reading) place.querySelector('[data-texts]')?.focus();
    const latest = status.decision?.id ?? '';
    if (decided !== latest) { decided = latest; decisions(); }
  };
  const soon = () => { if (!waiting) { waiting = true; requestAnimationFrame(draw); } };
  if (!charts) import('/chart.js').then((module) => { charts = module; soon(); }, () => say('The charts could not be loaded: reload the page.'));
  running = new AbortController();
  follow(`/api/v1/stream/${path}`, {
    opened: () => space.replaceChildren(),
    detail: (value) => { object = value; soon(); },
    watched: (value) => { watched = value; soon(); },
    gone: () => { object = null; place.replaceChildren(make('div', { class: 'message warn', role: 'alert' }, `ModelRollout ${name} was deleted.`)); say(`${name} is gone`); },
    refused: (error) => {
      // What was seen last stays: the line above says that it is not live.
      if (!object || error.status === 401 || error.status === 403) space.replaceChildren(failure(error, `${namespace}/${name} cannot be shown.`));
      return error.status === 401 || error.status === 403;
    },
  }, running);
  page = {};
}

function head(object, status) {
  const step = status.step;
  const kind = object.spec.strategy ? Object.keys(object.spec.strategy)[0] : 'canary (default)';
  const facts = [kind, step && step.index > 0 ? `step ${step.position}` : null, step ? `${step.weight} % to the candidate` : null,
    step?.since ? `since ${when(step.since)}` : null, status.attempt ? `attempt ${status.attempt}` : null, status.tick ? `tick ${status.tick}` : null,
    object.spec.gate ? `gate ${object.spec.gate}` : 'gate in the spec', object.spec.paused ? 'paused in the spec' : null].filter(Boolean);
  const out = [make('h1', {}, `${object.name} `, chip(status.phase)), make('p', { class: 'dim' }, `${object.namespace} · ${facts.join(' · ')}`)];
  out.push(make('div', { class: `message ${tone(status.phase)}` }, status.message || (status.phase ? 'Nothing to say.' : 'No status yet: does the operator run, and does it watch this namespace?')));
  if (object.deleting) out.push(make('div', { class: 'message warn' }, 'It is being deleted.'));
  if (status.observedGeneration !== object.generation) out.push(make('div', { class: 'message warn' }, 'The spec was edited, and the operator has not looked at it yet.'));
  const about = status.candidate ?? status.stable;
  out.push(make('div', { class: 'row', role: 'group', 'aria-label': 'Steer this rollout' }, VERBS.map(([verb, label, danger, text]) =>
    make('button', { type: 'button', class: danger, 'data-verb': verb, disabled: !about, on: { click: () => steer(object, status, verb, label, text) } }, label))));
  return out;
}

function arms(status, watched) {
  const roles = [];
  for (const [role, arm] of [['baseline (fp16)', status.baseline], ['stable', status.stable], ['candidate', status.candidate]]) {
    if (!arm) continue;
    const known = roles.find((one) => one.arm.revision === arm.revision);
    if (known) known.role += `, ${role}`; else roles.push({ role, arm });
  }
  if (roles.length === 0) return [make('h2', {}, 'Arms'), make('p', {}, 'No revision exists yet.')];
  const of = (field) => (watched ? watched.candidate[field] + watched.stable[field] : 0);
  const share = (seen, field) => (of(field) > 0 ? make('div', { class: 'whole' }, `${(100 * seen[field] / of(field)).toFixed(1)} % of ${field}`) : null);
  const spent = (seen) => {
    const lines = [seen.energyPer1kTokens === null ? null : `${figures(seen.energyPer1kTokens)} J`, seen.costPer1kTokens === null ? null : `cost ${figures(seen.costPer1kTokens)}`].filter(Boolean);
    return lines.length ? make('div', {}, lines.map((line) => make('div', { class: 'whole' }, line))) : '–';
  };
  const live = (arm) => !watched ? null : arm.revision === status.candidate?.revision ? watched.candidate : arm.revision === status.stable?.revision ? watched.stable : null;
  const one = (value, name) => make('div', {}, `${name} ${milliseconds(value.at)} `, make('span', { class: 'dim whole' }, `[${milliseconds(value.low)}, ${milliseconds(value.high)}]`));
  const pair = (value) => (value ? make('div', {}, one(value[0], 'p50'), one(value[1], 'p95')) : '–');
  const body = roles.map(({ role, arm }) => {
    const seen = live(arm), weight = status.weights?.[arm.revision];
    return [role, make('span', {}, arm.revision, make('br'), make('span', { class: 'dim', title: arm.image }, arm.image.replace(/(@sha256:[0-9a-f]{12})[0-9a-f]+$/, '$1…'))), weight === undefined ? '–' : `${weight} %`,
      seen && of('requests') > 0 ? make('div', {}, share(seen, 'requests'), share(seen, 'tokens')) : '–', seen ? String(seen.requests) : '–', seen && seen.requests > 0 ? `${seen.errors} (${(100 * seen.errors / seen.requests).toFixed(2)} %)` : '–',
      seen ? pair(seen.ttft) : '–', seen ? pair(seen.tpot) : '–', seen ? spent(seen) : '–', `${arm.ready} of ${arm.replicas}`];
  });
  const note = watched ? `Requests, errors and latencies: as this operator process counted them in this attempt, all weights together, since ${when(watched.since)}. Quantiles are upper edges of buckets of 9.5 %; in brackets their intervals of 95 %, for one look. Energy is what the hosts used, other pods on them included; cost is the price of the engines’ working time; comparisons with fp16 are in both.`
    : 'This operator process has counted no live requests of this attempt: shares, errors and latencies appear with the first tick.';
  return [make('h2', {}, 'Arms'), table('Side by side', ['Arm', 'Revision', 'Weight set', 'Share seen', 'Requests', 'Errors', 'To the first token', 'Per token', 'Per 1,000 tokens', 'Pods ready'], body), make('p', { class: 'dim' }, note)];
}

function evidence(status, watched, texts) {
  const out = [make('h2', {}, 'Evidence')];
  const signals = status.signals ?? [];
  if (signals.length === 0) return [...out, make('p', {}, 'No attempt has brought evidence yet.')];
  const mood = { Proven: 'good', Failed: 'bad' };
  out.push(table(`Verdict now: ${status.verdict ?? '–'}; live requests that the candidate answered: ${number(status.exposedRequests)}`,
    ['Signal', 'State', 'Estimate', '95 % interval', 'Samples', 'ln e against', 'ln e for', 'Detail'], signals.map((signal) => [signal.name,
      make('span', { class: mood[signal.verdict] ?? '' }, signal.verdict), number(signal.estimate), signal.interval?.length === 2 ? `${signal.interval[0]} … ${signal.interval[1]}` : '–',
      signal.required ? make('span', {}, `${signal.samples} of about ${signal.required} `, make('progress', { max: signal.required, value: Math.min(signal.samples, signal.required), 'aria-label': `${signal.name}: samples` })) : String(signal.samples),
      number(signal.evidence), number(signal.evidenceFor), number(signal.detail)])));
  if (status.missing?.length && !['RolledBack', 'RollingBack', 'Serving'].includes(status.phase)) {
    out.push(make('h3', {}, 'A promotion still waits for'), make('ul', {}, status.missing.map((line) => make('li', {}, line))));
  }
  const expected = outlook(status, watched);
  if (expected) out.push(make('p', {}, expected));
  if (watched?.comparisons && charts) out.push(...compared(watched.comparisons, texts));
  if (!watched || watched.points.length === 0) {
    out.push(make('p', { class: 'dim' }, about && !about.leading ? `Charts: this process (${about.process}) does not lead and takes no ticks; the leading one has them.`
      : 'Charts: this process has taken no tick of this attempt (they are kept in memory, not in the cluster).'));
    return [...out, ...absent(watched)];
  }
  if (!charts) return [...out, make('p', { class: 'dim' }, 'The charts are on their way…')];
  const points = watched.points, end = points.at(-1);
  const card = (options) => make('section', { class: 'card' }, make('h3', {}, options.title), charts.chart(options));
  const cards = [card({ title: 'Against the candidate, all signals', unit: 'ln of the combined e-value', bounds: [{ at: end.rollbackAt, name: 'rolled back at' }],
    lines: [{ name: 'against', kind: 'against', points: points.map((point) => [point.tick, point.against]) }] })];
  for (const { name } of end.signals) {
    const of = (field) => points.map((point) => [point.tick, point.signals.find((signal) => signal.name === name)?.[field]]);
    cards.push(card({ title: `${name}: for and against`, unit: 'ln of e-values', bounds: [{ at: end.promoteAt, name: 'proven at' }],
      lines: [{ name: 'for', kind: 'for', points: of('support') }, { name: 'against', kind: 'against', points: of('against') }] }));
  }
  cards.push(card({ title: 'Weight and share of requests', unit: 'percent of the candidate', floor: 0, lines: [
    { name: 'set', kind: 'for', points: points.map((point) => [point.tick, point.weight]) },
    { name: 'seen', kind: 'stable', points: points.map((point) => { const live = point.live, sum = live ? live.candidate + live.stable : 0; return [point.tick, sum > 0 ? 100 * live.candidate / sum : NaN]; }) }] }));
  out.push(make('div', { class: 'charts' }, cards));
  out.push(make('p', { class: 'dim' }, `Ticks ${points[0].tick} to ${end.tick} of attempt ${end.attempt} as this process took them; of a long attempt the older half is thinned.`));
  return [...out, ...absent(watched)];
}

function outlook(status, watched) {
  const forecast = watched?.forecast;
  if (!forecast || status.phase !== 'Progressing') return null;
  if (forecast === 'proven') return 'Every signal is proven: only steps, pauses and pods are waited for.';
  if (forecast.unknown) return `No forecast: ${forecast.unknown} lies on its margin, or gets no samples.`;
  return `At the pace of the last ticks the evidence is expected to be complete in ${length(forecast.seconds)}; steps and pauses take their own time.`;
}

function length(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

function compared(of, texts) {
  const lines = [{ at: of.margins.mean, name: `mean must be over ${of.margins.mean}`, kind: 'bound' }, { at: of.mean, name: `mean ${of.mean.toFixed(4)}`, kind: 'for' }];
  if (of.floor) lines.push({ at: of.floor.cosine, name: `A/A floor ${of.floor.cosine.toFixed(4)}`, kind: 'stable' });
  const floor = of.floor ? `A/A floor: 95 % of the last ${of.floor.count} comparisons of this baseline with itself were at least ${of.floor.cosine.toFixed(4)} (${when(of.floor.at)}).`
    : 'No A/A floor: this process has watched no trial of this baseline against itself.';
  const card = make('section', { class: 'card' }, make('h3', {}, 'Cosine, prompt by prompt'),
    charts.bars({ title: 'Cosine, prompt by prompt', from: of.from, to: 1, counts: of.bars, lines }),
    make('p', {}, `The last ${of.count} comparisons with fp16, since ${when(of.since)}. At most ${(100 * of.margins.tailShare).toFixed(0)} % may lie under ${of.margins.tail} at a random position. ${floor}`));
  const shown = Object.keys(texts.known).length > 0;
  const worst = of.worst.length ? table('Worst prompts of these', ['Probe', 'Lowest cosine', 'Times compared', 'When', ...(shown ? ['Prompt'] : [])],
    of.worst.map((one) => [`#${one.probe + 1}`, one.cosine.toFixed(4), String(one.times), time(new Date(one.at).toISOString()), ...(shown ? [texts.known[one.probe] ?? '–'] : [])]))
    : make('p', { class: 'dim' }, 'The workers do not say which prompts these were.');
  const more = of.worst.length === 0 ? [] : [make('p', {}, make('button', { type: 'button', 'data-texts': true, on: { click: () => texts.read(of.worst.map((one) => one.probe)) } }, shown ? 'Read the texts again' : 'Show their texts'),
    texts.error ? make('span', { class: 'bad', role: 'alert' }, ` ${texts.error}`) : null)];
  const note = '#1 is the first prompt of the probe set. Texts are read as you, from the gate’s ConfigMap as it is now; the operator itself may not read them.';
  return [make('h2', {}, 'Comparisons'), make('div', { class: 'pair' }, card, make('div', {}, worst, more, make('p', { class: 'dim' }, note)))];
}

function absent(watched) {
  const arms = watched ? [watched.candidate, watched.stable] : [];
  const missing = [];
  if (!arms.some((arm) => arm.energyPer1kTokens !== null)) missing.push('energy: the hosts of these workers show no counter (RAPL, or an NVIDIA GPU), or no token was generated yet');
  if (!arms.some((arm) => arm.costPer1kTokens !== null)) missing.push('cost: their pools have no price (the chart’s pools.NAME.pricePerPodHour), or no token was generated yet');
  return missing.length === 0 ? [] : [make('details', {}, make('summary', {}, 'What is not shown, because nothing measures it here'), make('ul', {}, missing.map((text) => make('li', {}, text))))];
}

function conditions(status) {
  const all = status.conditions ?? [];
  if (all.length === 0) return [];
  return [make('h2', {}, 'Conditions'), table('As in the status of the object', ['Condition', 'Status', 'Reason', 'Since', 'Message'],
    all.map((one) => [one.type, make('span', { class: one.status === 'Unknown' || one.type === 'Progressing' || (one.type === 'Ready' && tone(status.phase) === '') ? '' : (one.status === 'True') === (one.type !== 'RolledBack') ? 'good' : 'bad' }, one.status), one.reason, time(one.lastTransitionTime), one.message]))];
}

function asked(status) {
  const verbs = status.verbs ?? [], history = status.history ?? [];
  return [make('h2', {}, 'Asked by people'), verbs.length ? table('The last ten', ['When', 'Verb', 'By', 'Answer'], verbs.map((one) => [time(one.at), one.verb, one.by, one.answer])) : make('p', {}, 'Nobody has asked for anything.'),
    make('h2', {}, 'Revisions'), history.length ? table('Decided last', ['When', 'Revision', 'Verdict'], history.map((one) => [time(one.at), one.revision, one.verdict])) : make('p', {}, 'No revision was decided yet.')];
}

// ── Steering and login ──────────────────────────────────────────────────────────────────────────────────────────────
function steer(object, status, verb, label, text) {
  const revision = (status.candidate ?? status.stable).revision, attempt = status.attempt ?? 0;
  const command = `kubectl bitnet ${verb === 'promote-full' ? 'promote --full' : verb} ${object.name} -n ${object.namespace}`;
  $('ask-title').textContent = `${label}: ${object.name}`;
  $('ask-text').replaceChildren(text, make('br'), make('br'), `It is about ${revision}, attempt ${attempt}. The same on the command line: `, make('code', {}, command));
  $('ask-error').textContent = token ? '' : 'Verbs are written as you: sign in first, or use the command.';
  $('ask-ok').textContent = token ? label : 'Sign in';
  $('ask-ok').onclick = async () => {
    if (!token) { $('ask').close(); login(); return; }
    $('ask-ok').disabled = true;
    try {
      await ask(`/api/v1/rollouts/${encodeURIComponent(object.namespace)}/${encodeURIComponent(object.name)}/${verb}`, {
        method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify({ revision, attempt }) });
      say(`${label} was asked for: the answer appears under “Asked by people”.`);
      $('ask').close();
    } catch (error) { $('ask-error').textContent = error.message; }
    $('ask-ok').disabled = false;
  };
  $('ask').showModal();
}
$('ask-no').onclick = () => $('ask').close();

function login() { $('token').value = ''; $('login-error').textContent = ''; $('login').showModal(); }
async function hello() {
  try { about = await (await ask('/api/v1/about')).json(); } catch (error) { about = null; if (error.status !== 401) throw error; }
  $('who').textContent = about?.user ? `${about.user} · ` : token ? '' : 'read only · ';
  if (about) $('who').append(`${about.version}${about.leading ? '' : ' · this replica does not lead'}`);
  $('sign').textContent = token ? 'Sign out' : 'Sign in';
}
$('sign').onclick = () => { if (token) { token = ''; hello().catch(() => {}); go(); } else login(); };
$('login-no').onclick = () => $('login').close();
$('login-ok').onclick = async () => {
  token = $('token').value.trim(); $('token').value = '';
  if (!token) { $('login-error').textContent = 'Give a token.'; return; }
  try { about = await (await ask('/api/v1/about')).json(); }
  catch (error) { token = ''; $('login-error').textContent = error.message; return; }
  $('login').close(); await hello(); go();
};
$('token').addEventListener('keydown', (event) => { if (event.key === 'Enter') { event.preventDefault(); $('login-ok').click(); } });

// ── Ways ────────────────────────────────────────────────────────────────────────────────────────────────────────────
function go() {
  running?.abort();
  const [, namespace, name] = location.hash.match(/^#\/([^/]+)\/([^/]+)$/) ?? [];
  if (namespace) detail(decodeURIComponent(namespace), decodeURIComponent(name)); else list();
}
addEventListener('hashchange', () => { go(); main.focus(); window.scrollTo(0, 0); });
document.querySelector('.skip').addEventListener('click', (event) => { event.preventDefault(); main.focus(); });
addEventListener('keydown', (event) => {
  if (event.target.matches?.('input, textarea, select') || event.ctrlKey || event.metaKey || event.altKey || document.querySelector('dialog[open]')) return;
  if (event.key === '/' && page.search) { event.preventDefault(); page.search.focus(); }
  if (event.key === 'Escape' && location.hash.length > 2) location.hash = '#/';
});
hello().catch(() => {}); go();
