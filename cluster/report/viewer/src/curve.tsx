/** Success by training step: of one run in detail, or of several on the same axes. */

import { mean, percent } from "./format";
import type { Overview } from "./types";

const COLORS = 6; // of runs; after that they come again
const WIDTH = 760;
const HEIGHT = 230;
const LEFT = 44;
const BOTTOM = 28;
const APART = 5; // px between the evaluations of two runs at the same step

export interface Shown {
  name: string;
  at: number; // among the runs that are shown: its color
  overview: Overview;
}

/** Every second run is dashed, so that one below it stays in sight. */
export const colorOf = (at: number) => `run-${at % COLORS}${at % 2 ? " dashed" : ""}`;

export function Curve({ shown }: { shown: Shown[] }) {
  const last = ({ overview }: Shown) => [
    overview.steps ?? 0, ...(overview.train.step ?? []).map((step) => step ?? 0), ...overview.evaluations.map((one) => one.step),
  ];
  const most = Math.max(1, ...shown.flatMap(last));
  const x = (step: number) => LEFT + ((WIDTH - LEFT - 16) * step) / most;
  const y = (rate: number) => 10 + (HEIGHT - BOTTOM - 10) * (1 - rate);
  const ticks = [...new Set([0, 0.25, 0.5, 0.75, 1].map((part) => Math.round(part * most)))];
  const alone = shown.length === 1;
  return (
    <figure>
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label="Success by training step: training rollouts as a line, evaluations as points with 95 % intervals">
        {[0, 0.25, 0.5, 0.75, 1].map((rate) => (
          <g key={rate}>
            <line class="grid" x1={LEFT} x2={WIDTH - 16} y1={y(rate)} y2={y(rate)} />
            <text class="tick" x={LEFT - 6} y={y(rate) + 4} text-anchor="end">{percent(rate)}</text>
          </g>
        ))}
        {ticks.map((step) => <text key={step} class="tick" x={x(step)} y={HEIGHT - 8} text-anchor="middle">{step}</text>)}
        {shown.map((one, place) => (
          <Line key={one.at} {...{ one, x, y, alone }} aside={(place - (shown.length - 1) / 2) * Math.min(APART, 24 / shown.length)} />
        ))}
      </svg>
      <figcaption class="quiet">
        {alone ? (
          <>
            <span class="swatch line-swatch" /> training rollouts (thin: each step; thick: mean of {width(shown[0]!) + 1})
            <span class="swatch dot-swatch" /> evaluation, with its 95 % interval
          </>
        ) : (
          <>
            {shown.map((one) => (
              <span key={one.at} class="legend-run">
                <svg class={colorOf(one.at)} viewBox="0 0 26 10" aria-hidden="true"><path class="line" d="M0 5L26 5" /></svg> {one.name}
              </span>
            ))}
            <span class="legend-run">lines: training rollouts, running means; points: evaluations, with 95 % intervals</span>
          </>
        )}
      </figcaption>
    </figure>
  );
}

const width = ({ overview }: Shown) => Math.max(1, Math.floor((overview.train.step ?? []).length / 15));

interface LineProps {
  one: Shown;
  x: (step: number) => number;
  y: (rate: number) => number;
  alone: boolean;
  aside: number;
}

function Line({ one, x, y, alone, aside }: LineProps) {
  const { train, evaluations } = one.overview;
  const success = train["rollout/success"] ?? [];
  const points = (train.step ?? []).map((step, at) => [step ?? 0, success[at] ?? null] as const).filter(([, rate]) => rate !== null);
  const smooth = points.map(([step], at) => [step, mean(points.slice(Math.max(0, at - width(one)), at + 1).map(([, rate]) => rate))!] as const);
  const path = (line: readonly (readonly [number, number | null])[]) =>
    line.map(([step, rate], at) => `${at ? "L" : "M"}${x(step).toFixed(1)} ${y(rate!).toFixed(1)}`).join("");
  const held = evaluations.filter((each) => each.success !== null && (alone || each.stage !== BEFORE));
  return (
    <g class={alone ? "" : colorOf(one.at)}>
      {alone && <path class="line thin" d={path(points)} />}
      <path class="line" d={path(smooth)}><title>{one.name}</title></path>
      {points.length === 1 && <circle class="dot" cx={x(points[0]![0])} cy={y(points[0]![1]!)} r="3" />}
      {held.map((each, at) => (
        <g key={at} class="evaluation">
          <title>{`${alone ? "" : `${one.name}, `}${each.stage ?? "evaluation"}, step ${each.step}: ${percent(each.success, 1)}`}</title>
          {each.low !== null && each.high !== null && <line x1={x(each.step) + aside} x2={x(each.step) + aside} y1={y(each.low)} y2={y(each.high)} />}
          <circle cx={x(each.step) + aside} cy={y(each.success!)} r="4" />
        </g>
      ))}
    </g>
  );
}

const BEFORE = "before warm start"; // at the step of the evaluation after it, and no part of the curve
