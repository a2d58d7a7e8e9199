/** A response as tokens, each colored by one quantity, and what is known of the one that is looked at. */

import { memo } from "preact/compat";
import { number, percent, signed } from "./format";
import { applied, LEVELS, type Quantity, shade } from "./quantities";
import type { TurnTokens } from "./types";

interface ResponseProps {
  number: number;
  turn: TurnTokens;
  quantity: Quantity;
  most: number;
  at: number | null; // the token that is looked at
  look: (turn: number, at: number) => void;
}

const tokenOf = (event: Event) => {
  const element = (event.target as HTMLElement).closest<HTMLElement>("[data-at]");
  return element ? Number(element.dataset.at) : null;
};

export const Response = memo(function Response({ number: turnNumber, turn, quantity, most, at, look }: ResponseProps) {
  const values = quantity.of(turn);
  const [start, end] = turn.action ?? [0, 0];
  const see = (event: Event) => {
    const token = tokenOf(event);
    if (token !== null) look(turnNumber, token);
  };
  return (
    <div
      class="response tokens"
      tabIndex={0}
      role="group"
      aria-label={`Response of turn ${turnNumber + 1}, ${turn.tokens.length} tokens colored by ${quantity.title}; arrow keys move`}
      onMouseOver={see}
      onClick={see}
      onFocus={() => at === null && look(turnNumber, start)}
    >
      {turn.tokens.map((piece, token) => (
        <span
          key={token}
          data-at={token}
          class={`token ${shade(quantity, values?.[token], most)}${token >= start && token < end ? " action" : ""}${token === at ? " looked" : ""}`}
        >
          {visible(piece)}
        </span>
      ))}
    </div>
  );
});

/** A piece that would be invisible gets a sign; a line's end also breaks the line. */
function visible(piece: string): string {
  if (piece === "") return "∅";
  return piece.replace(/\n/g, "⏎\n").replace(/\t/g, "⇥");
}

export function Legend({ quantity, most }: { quantity: Quantity; most: number }) {
  const levels = Array.from({ length: 2 * LEVELS + 1 }, (_, at) => at - LEVELS);
  const up = quantity.scale === "up";
  const end = (level: number) => {
    const value = (level * most) / LEVELS;
    if (quantity.scale === "ratio") return `×${number(2 ** value)}`;
    return quantity.name === "share" ? percent(value, 2) : up && quantity.name !== "lag" ? number(-value) : signed(value);
  };
  const shown = up ? levels.filter((level) => level >= 0) : levels;
  return (
    <span class="legend">
      <span>{end(shown[0]!)}</span>
      <span class="scale" aria-hidden="true">
        {shown.map((level) => <span key={level} class={`token ${up ? `u${level}` : `d${level}`}`}>{" "}</span>)}
      </span>
      <span>{end(LEVELS)}</span>
      <span class="quiet">{quantity.meaning}; underlined: the action; dotted: no value</span>
    </span>
  );
}

/** Everything known about a token, and in a sentence why it counts as much as it does. */
export function Inspector({ number: turnNumber, turn, at }: { number: number; turn: TurnTokens; at: number }) {
  const value = (name: keyof TurnTokens) => (turn[name] as (number | null)[] | undefined)?.[at] ?? null;
  const [student, teacher] = [value("rollout_logprob"), value("teacher_logprob")];
  const [advantage, weight, raw] = [value("advantage"), value("weight"), value("raw_weight")];
  const used = applied(turn)?.[at] ?? null;
  const delta = student !== null && teacher !== null ? teacher - student : null;
  const rows: [string, string][] = [
    ["advantage A", signed(advantage)],
    ["weight", weight === null ? "–" : `×${number(weight)}${raw !== null && raw !== weight ? ` (before clip and λ: ×${number(raw)})` : ""}`],
    ["advantage used A′", signed(used)],
    ["share of the step's loss", percent(value("share"), 3)],
    ["student log-prob", logprob(student)],
    ["teacher log-prob", logprob(teacher)],
    ["Δ, teacher − student", signed(delta)],
  ];
  for (const name of ["value", "return"] as const) if (turn[name]) rows.push([name, signed(value(name))]);
  if (value("lag")) rows.push(["weight versions behind", number(value("lag"))]);
  return (
    <div class="inspector">
      <p class="piece"><code>{JSON.stringify(turn.tokens[at] ?? "")}</code></p>
      <p class="quiet">turn {turnNumber + 1}, token {at + 1} of {turn.tokens.length}</p>
      <dl>{rows.map(([name, shown]) => <div key={name}><dt>{name}</dt><dd>{shown}</dd></div>)}</dl>
      <p class="why">{why(turn.share ? advantage : null, delta, weight, used)}</p>
    </div>
  );
}

const logprob = (value: number | null) => (value === null ? "–" : `${number(value)} (p ${number(Math.exp(value), 3)})`);

function why(advantage: number | null, delta: number | null, weight: number | null, used: number | null): string {
  const parts: string[] = [];
  if (advantage !== null)
    parts.push(
      advantage > 0 ? "Its advantage is positive: the policy loss makes it more probable."
      : advantage < 0 ? "Its advantage is negative: the policy loss makes it less probable."
      : "Its advantage is 0: the policy loss does not move it.",
    );
  if (delta === null) parts.push("The teacher did not score it.");
  else {
    const factor = Math.exp(Math.abs(delta));
    parts.push(
      factor < 1.05 ? "With the hint, the teacher finds it as probable as the student did."
      : `With the hint, the teacher finds it ${number(factor, 2)} times ${delta > 0 ? "more" : "less"} probable than the student did.`,
    );
  }
  if (weight !== null && used !== null && Math.abs(weight - 1) > 1e-3 && advantage)
    parts.push(`So its advantage is ${weight > 1 ? "strengthened" : "weakened"} from ${signed(advantage)} to ${signed(used)}.`);
  return parts.join(" ");
}
