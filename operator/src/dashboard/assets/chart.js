// Small charts as SVG, each with its numbers as a table for those who cannot see it. Loaded once somebody looks at a rollout.
import { make } from '/app.js';

const W = 320, H = 150, LEFT = 34, RIGHT = 8, TOP = 8, BOTTOM = 20;

const short = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : Math.abs(value) >= 10 ? value.toFixed(1) : value.toFixed(2));

/// `lines`: [{name, kind, points: [[x, y]]}]; `bounds`: [{at, name}]. Points that are no numbers are left out.
export function chart({ title, unit, lines, bounds = [], floor }) {
  lines = lines.map((line) => ({ ...line, points: line.points.filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y)) }));
  const all = lines.flatMap((line) => line.points);
  if (all.length === 0) return make('p', {}, 'No numbers yet.');
  const xs = all.map(([x]) => x), ys = all.map(([, y]) => y).concat(bounds.map((bound) => bound.at));
  const x0 = Math.min(...xs), x1 = Math.max(...xs, x0 + 1);
  let y0 = Math.min(...ys, ...(floor === undefined ? [] : [floor])), y1 = Math.max(...ys);
  if (y1 - y0 < 1e-9) { y0 -= 1; y1 += 1; }
  const pad = (y1 - y0) * 0.06; y1 += pad; if (floor === undefined) y0 -= pad;
  const px = (x) => LEFT + ((x - x0) / (x1 - x0)) * (W - LEFT - RIGHT);
  const py = (y) => TOP + (1 - (y - y0) / (y1 - y0)) * (H - TOP - BOTTOM);
  const last = lines.map((line) => line.points.length ? `${line.name} ${short(line.points.at(-1)[1])}` : '').filter(Boolean).join(', ');
  const limit = bounds.map((bound) => `${bound.name} ${short(bound.at)}`).join(', ');
  const svg = make('svg', { viewBox: `0 0 ${W} ${H}`, role: 'img', 'aria-label': `${title}: now ${last}${limit ? '; ' + limit : ''}` });
  svg.append(make('line', { class: 'axis', x1: LEFT, x2: LEFT, y1: TOP, y2: H - BOTTOM }));
  svg.append(make('line', { class: 'axis', x1: LEFT, x2: W - RIGHT, y1: H - BOTTOM, y2: H - BOTTOM }));
  for (const y of [y0 + (floor === undefined ? pad : 0), y1 - pad]) {
    svg.append(make('text', { x: LEFT - 4, y: py(y) + 3, 'text-anchor': 'end' }, short(y)));
  }
  svg.append(make('text', { x: LEFT, y: H - 6 }, `tick ${x0}`), make('text', { x: W - RIGHT, y: H - 6, 'text-anchor': 'end' }, String(Math.max(...xs))));
  for (const bound of bounds) {
    svg.append(make('line', { class: 'bound', x1: LEFT, x2: W - RIGHT, y1: py(bound.at), y2: py(bound.at) }));
    svg.append(make('text', { x: LEFT + 4, y: py(bound.at) - 3 }, bound.name));
  }
  for (const line of lines) {
    if (line.points.length === 0) continue;
    const path = line.points.map(([x, y], i) => `${i ? 'L' : 'M'}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join('');
    const dot = line.points.length === 1 ? `h.1` : '';
    svg.append(make('path', { class: `curve ${line.kind}`, d: path + dot, 'stroke-linecap': 'round' }));
  }
  const byTick = new Map();
  lines.forEach((line, i) => line.points.forEach(([x, y]) => { if (!byTick.has(x)) byTick.set(x, []); byTick.get(x)[i] = y; }));
  const rows = () => [...byTick].sort((a, b) => b[0] - a[0]).map(([x, values]) => make('tr', {}, make('th', { scope: 'row' }, String(x)),
    lines.map((_, i) => make('td', {}, values[i] === undefined ? '–' : short(values[i])))));
  const body = make('tbody');
  const details = make('details', { on: { toggle: () => { if (details.open && !body.firstChild) body.append(...rows()); } } },
    make('summary', {}, 'As a table'),
    make('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': `${title} as a table` }, make('table', {}, make('caption', {}, `${title}, ${unit}`),
      make('thead', {}, make('tr', {}, make('th', { scope: 'col' }, 'Tick'), lines.map((line) => make('th', { scope: 'col' }, line.name)))), body)));
  return [svg, make('p', {}, `${last}${limit ? ' · ' + limit : ''} (${unit})`), details];
}

/// A histogram: `counts` over equal bars from `from` to `to`; `lines`: [{at, name, kind}] upright. Its numbers as a table, too.
export function bars({ title, from, to, counts, lines = [] }) {
  const most = Math.max(1, ...counts), width = (to - from) / counts.length, head = TOP + 12 * lines.length;
  const px = (x) => LEFT + ((x - from) / (to - from)) * (W - LEFT - RIGHT);
  const py = (y) => head + (1 - y / most) * (H + 24 - head - BOTTOM);
  const base = py(0), exact = (value) => String(Number(value.toFixed(4)));
  const svg = make('svg', { viewBox: `0 0 ${W} ${H + 24}`, role: 'img', 'aria-label': `${title}: ${lines.map((line) => line.name).join(', ')}` });
  svg.append(make('line', { class: 'axis', x1: LEFT, x2: W - RIGHT, y1: base, y2: base }), make('text', { x: LEFT - 4, y: head + 8, 'text-anchor': 'end' }, String(most)));
  counts.forEach((count, i) => { if (count) svg.append(make('rect', { class: 'bar', x: px(from + i * width), y: py(count), width: Math.max(1, px(width) - px(0) - 1), height: base - py(count) })); });
  const names = make('g', { class: 'names' });
  lines.forEach((line, i) => {
    const x = px(line.at), left = x > W / 2, y = TOP + 12 * i + 6;
    svg.append(make('line', { class: line.kind, x1: x, x2: x, y1: y - 6, y2: base }));
    names.append(make('text', { x: left ? x - 4 : x + 4, y, 'text-anchor': left ? 'end' : 'start' }, line.name));
  });
  svg.append(names);
  svg.append(make('text', { x: LEFT, y: H + 18 }, exact(from)), make('text', { x: W - RIGHT, y: H + 18, 'text-anchor': 'end' }, exact(to)));
  const rows = counts.map((count, i) => [i, count]).filter(([, count]) => count).map(([i, count]) => make('tr', {},
    make('th', { scope: 'row' }, `${exact(from + i * width)} to ${exact(from + (i + 1) * width)}`), make('td', {}, String(count))));
  return [svg, make('details', {}, make('summary', {}, 'As a table'), make('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': `${title} as a table` },
    make('table', {}, make('caption', {}, title), make('thead', {}, make('tr', {}, make('th', { scope: 'col' }, 'Cosine'), make('th', { scope: 'col' }, 'Comparisons'))), make('tbody', {}, rows))))];
}
