/** Who worked when in a step, and who waited. */

import { useDocument } from "./data";
import { percent, plural, seconds } from "./format";
import { useKeys } from "./keys";
import { go, link, type Route } from "./route";
import type { Stage, Timeline } from "./types";

type Span = Timeline["spans"][number];

const ORDER = ["rollout", "judge", "teacher", "reference", "critic", "learner", "weight_sync", "evaluation", "checkpoint", "engine"];
const LINE = 14;
const LEFT = 130;
const WIDTH = 1100;

export function TimelinePage({ route, stages }: { route: Route; stages: Stage[] }) {
  const steps = [...new Set(stages.map((stage) => stage.step))];
  const step = Number(route.parts[0] ?? steps.at(-1) ?? 0);
  const { value, error } = useDocument<Timeline>(`${route.run}/timeline/${step}`);
  const at = steps.indexOf(step);
  const to = (by: number) => steps[at + by] !== undefined && go(link(route.run, "timeline", steps[at + by]!));
  useKeys({ j: () => to(1), k: () => to(-1), n: () => to(1), p: () => to(-1) });
  return (
    <div class="timeline">
      <h1>Timeline of step {step}</h1>
      <div class="controls">
        <label>step{" "}
          <select value={step} onChange={(event) => go(link(route.run, "timeline", event.currentTarget.value))}>
            {steps.map((one) => <option key={one} value={one}>{one}</option>)}
          </select>
        </label>
        <span class="quiet">j k next and previous step</span>
      </div>
      {error && <p class="problem" role="alert">{error}</p>}
      {value && value.episodes > 0 && (
        <p>
          {plural(value.episodes, "episode")}: {percent(value.engine_seconds / value.episode_seconds)} of their time they waited for
          an engine, and {percent(1 - value.engine_seconds / value.episode_seconds)} for their environment.{" "}
          <span class="quiet">Turn by turn: <code>hindsight trace RUN --step {step}</code></span>
        </p>
      )}
      {value && (value.spans.length ? <Drawing spans={value.spans} /> : <p class="quiet">No timeline was recorded for this step.</p>)}
    </div>
  );
}

function Drawing({ spans }: { spans: Span[] }) {
  const end = Math.max(...spans.map((span) => span.end), 1e-9);
  const roles = [...new Set(spans.map((span) => span.role))].sort((a, b) => rank(a) - rank(b));
  const lanes = roles.map((role) => ({ role, rows: pack(spans.filter((span) => span.role === role)) }));
  const x = (second: number) => LEFT + ((WIDTH - LEFT - 30) * second) / end;
  let top = 4;
  const placed = lanes.map((lane) => {
    const here = { ...lane, top };
    top += lane.rows.length * LINE + 8;
    return here;
  });
  const unit = nice(end / 6);
  const ticks = Array.from({ length: Math.floor(end / unit) + 1 }, (_, at) => at * unit);
  return (
    <>
      <figure>
        <svg viewBox={`0 0 ${WIDTH} ${top + 24}`} role="img" aria-label="Spans of the step by role over time; the table below has the sums">
          {ticks.map((second) => (
            <g key={second}>
              <line class="grid" x1={x(second)} x2={x(second)} y1="0" y2={top} />
              <text class="tick" x={x(second)} y={top + 16} text-anchor="middle">{seconds(Number(second.toPrecision(6)))}</text>
            </g>
          ))}
          {placed.map(({ role, rows, top: y }) => (
            <g key={role}>
              <text class="lane" x={LEFT - 8} y={y + 11} text-anchor="end">{role.replace("_", " ")}</text>
              {rows.map((row, line) => row.map((span, number) => (
                <rect
                  key={`${line}.${number}`} class={`span ${role}`} x={x(span.start)} y={y + line * LINE} rx="2"
                  width={Math.max(1.5, x(span.end) - x(span.start))} height={LINE - 2}
                >
                  <title>{`${role} ${span.name}: ${seconds(span.end - span.start)}, from ${seconds(span.start)} to ${seconds(span.end)}`}</title>
                </rect>
              )))}
              <line class="grid" x1="0" x2={WIDTH} y1={y + rows.length * LINE + 3} y2={y + rows.length * LINE + 3} />
            </g>
          ))}
        </svg>
      </figure>
      <table>
        <thead><tr><th scope="col">role</th><th scope="col">busy</th><th scope="col">of the step</th><th scope="col">first start</th><th scope="col">last end</th><th scope="col">idle while</th></tr></thead>
        <tbody>
          {roles.map((role) => {
            const own = union(spans.filter((span) => span.role === role));
            const busy = own.reduce((sum, [from, until]) => sum + until - from, 0);
            return (
              <tr key={role}>
                <th scope="row">{role.replace("_", " ")}</th>
                <td class="figure">{seconds(busy)}</td><td class="figure">{percent(busy / end)}</td>
                <td class="figure">{seconds(own[0]![0])}</td><td class="figure">{seconds(own.at(-1)![1])}</td>
                <td>{waits(own, spans.filter((span) => span.role !== role), end)}</td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </>
  );
}

const rank = (role: string) => (ORDER.includes(role) ? ORDER.indexOf(role) : ORDER.length);

/** Spans in as few rows as they fit without overlap. */
function pack(spans: Span[]): Span[][] {
  const rows: Span[][] = [];
  for (const span of [...spans].sort((a, b) => a.start - b.start)) {
    const row = rows.find((one) => one.at(-1)!.end <= span.start);
    if (row) row.push(span);
    else rows.push([span]);
  }
  return rows;
}

function union(spans: Span[]): [number, number][] {
  const merged: [number, number][] = [];
  for (const { start, end } of [...spans].sort((a, b) => a.start - b.start)) {
    const last = merged.at(-1);
    if (last && start <= last[1]) last[1] = Math.max(last[1], end);
    else merged.push([start, end]);
  }
  return merged;
}

/** Which role worked longest while this one did not. */
function waits(own: [number, number][], others: Span[], end: number): string {
  const gaps: [number, number][] = [];
  let from = 0;
  for (const [start, until] of [...own, [end, end] as [number, number]]) {
    if (start > from) gaps.push([from, start]);
    from = Math.max(from, until);
  }
  const overlap = new Map<string, number>();
  for (const role of new Set(others.map((span) => span.role)))
    for (const [start, until] of union(others.filter((span) => span.role === role)))
      for (const [a, b] of gaps) {
        const both = Math.min(b, until) - Math.max(a, start);
        if (both > 0) overlap.set(role, (overlap.get(role) ?? 0) + both);
      }
  const found = [...overlap].sort((a, b) => b[1] - a[1]).slice(0, 2);
  return found.map(([role, time]) => `${role.replace("_", " ")} worked for ${seconds(time)}`).join(", ") || "–";
}

function nice(value: number): number {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * ([1, 2, 5, 10].find((one) => one * power >= value) ?? 10);
}
