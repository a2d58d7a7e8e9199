/** What tokens can be colored by, and the scale of each. */

import type { Tokens, TurnTokens, Values } from "./types";

export interface Quantity {
  name: string;
  title: string;
  meaning: string;
  /** "diverging" around zero, "ratio" around 1 on a logarithmic scale, "up" from zero. */
  scale: "diverging" | "ratio" | "up";
  of: (turn: TurnTokens) => Values | undefined;
}

const column = (name: keyof TurnTokens) => (turn: TurnTokens) => turn[name] as Values | undefined;

function zip(one: Values | undefined, two: Values | undefined, join: (a: number, b: number) => number): Values | undefined {
  return one && two && one.map((a, at) => (a === null || two[at] == null ? null : join(a, two[at])));
}

/** A′: the advantage that the policy loss used. A token that the teacher did not score keeps its own. */
export function applied(turn: TurnTokens): Values | undefined {
  return turn.advantage?.map((a, at) => (a === null ? null : a * (turn.weight?.[at] ?? 1)));
}

export const QUANTITIES: Quantity[] = [
  {
    name: "applied", title: "advantage used, A′", scale: "diverging", of: applied,
    meaning: "the advantage times the teacher's weight: what the policy loss used",
  },
  {
    name: "advantage", title: "advantage, A", scale: "diverging", of: column("advantage"),
    meaning: "the advantage before the teacher",
  },
  {
    name: "delta", title: "Δ, teacher − student", scale: "diverging",
    of: (turn) => zip(turn.teacher_logprob, turn.rollout_logprob, (teacher, student) => teacher - student),
    meaning: "how much more probable the token is to the teacher, who sees the hint (in nats)",
  },
  {
    name: "weight", title: "weight", scale: "ratio", of: column("weight"),
    meaning: "the factor that the teacher puts on the advantage",
  },
  {
    name: "share", title: "share of the step's loss", scale: "up", of: column("share"),
    meaning: "|A′| times the token's weight in the loss, as a share of the whole step",
  },
  {
    name: "student", title: "student log-prob", scale: "up",
    of: (turn) => turn.rollout_logprob?.map((value) => (value === null ? null : value)),
    meaning: "log-probability under the student when it sampled; darker is less probable",
  },
  {
    name: "teacher", title: "teacher log-prob", scale: "up", of: column("teacher_logprob"),
    meaning: "log-probability under the teacher, who sees the hint; darker is less probable",
  },
  { name: "value", title: "value", scale: "diverging", of: column("value"), meaning: "the critic's estimate" },
  { name: "return", title: "return", scale: "diverging", of: column("return"), meaning: "the critic's target" },
  { name: "lag", title: "weight versions behind", scale: "up", of: column("lag"), meaning: "how old the weights were" },
];

const any = (values: Values | undefined) => values?.some((value) => value !== null) ?? false;

/** Those that some turn of an episode has. */
export function available(tokens: Tokens): Quantity[] {
  const turns = Object.values(tokens.turns);
  const has = (one: Quantity) => turns.some((turn) => any(one.of(turn)));
  const lags = turns.some((turn) => turn.lag?.some((lag) => lag));
  const weighed = turns.some((turn) => any(turn.weight));
  return QUANTITIES.filter((one) => has(one) && (one.name !== "lag" || lags) && (one.name !== "applied" || weighed));
}

const position = (quantity: Quantity, value: number) =>
  quantity.scale === "ratio" ? Math.log2(Math.max(value, 1e-3)) : value;

/** The magnitude that gets the strongest color: the 98th percentile of the episode, so that turns compare. */
export function limit(quantity: Quantity, tokens: Tokens): number {
  const sizes = Object.values(tokens.turns)
    .flatMap((turn) => quantity.of(turn) ?? [])
    .filter((value): value is number => value !== null)
    .map((value) => Math.abs(position(quantity, value)))
    .sort((a, b) => a - b);
  return sizes[Math.floor(0.98 * (sizes.length - 1))] || sizes.at(-1) || 1;
}

export const LEVELS = 5;

/** The class of a token's color: d-5 … d5 or u0 … u5; none where there is no value. */
export function shade(quantity: Quantity, value: number | null | undefined, most: number): string {
  if (value === null || value === undefined) return "none";
  const level = Math.max(-LEVELS, Math.min(LEVELS, Math.round((LEVELS * position(quantity, value)) / most)));
  return quantity.scale === "up" ? `u${Math.abs(level)}` : `d${level}`;
}
