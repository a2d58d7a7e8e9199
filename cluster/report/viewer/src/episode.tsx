import { memo } from "preact/compat";
import { useCallback, useEffect, useMemo, useState } from "preact/hooks";
import { useDocument } from "./data";
import { mean, number, percent, signed } from "./format";
import { useKeys } from "./keys";
import { keep, recall } from "./memory";
import { Drawn, Outcome } from "./parts";
import { applied, available, limit, type Quantity } from "./quantities";
import { go, link, query, type Route } from "./route";
import { families, family, type Row, useRows } from "./rows";
import { besideLink } from "./episodes";
import { Inspector, Legend, Response } from "./tokens";
import type { Episode, Stage, Tokens, Turn, TurnTokens } from "./types";

export function EpisodePage({ route, stages }: { route: Route; stages: Stage[] }) {
  const [key = "", id = ""] = route.parts;
  const stage = stages.find((one) => one.key === key);
  const episode = useDocument<Episode>(`${route.run}/episode/${key}/${id}`);
  const tokens = useDocument<Tokens>(stage?.training ? `${route.run}/tokens/${key}/${id}` : null);
  const wanted = useMemo(() => stages.filter((one) => one.key === key), [key, stages]);
  const { rows } = useRows(route.run, wanted);
  if (episode.error) return <p class="problem" role="alert">{episode.error}</p>;
  if (!episode.value || !stage) return <p class="quiet">Loading…</p>;
  return <Shown {...{ run: route.run, stage, episode: episode.value, tokens: tokens.value, rows }} />;
}

interface ShownProps {
  run: number;
  stage: Stage;
  episode: Episode;
  tokens: Tokens | null;
  rows: Row[];
}

function useQuantity(tokens: Tokens | null) {
  const choices = useMemo(() => (tokens ? available(tokens) : []), [tokens]);
  const [name, choose] = useState(() => recall("quantity") ?? "");
  const quantity = choices.find((one) => one.name === name) ?? choices[0] ?? null;
  const most = useMemo(() => (quantity && tokens ? limit(quantity, tokens) : 1), [quantity, tokens]);
  const select = (to: string) => {
    choose(to);
    keep("quantity", to);
  };
  const turn = (by: number) => {
    if (quantity) select(choices[(choices.indexOf(quantity) + by + choices.length) % choices.length]!.name);
  };
  return { choices, quantity, most, select, turn };
}

function Shown({ run, stage, episode, tokens, rows }: ShownProps) {
  const { choices, quantity, most, select, turn: turnQuantity } = useQuantity(tokens);
  const [current, setCurrent] = useState(0);
  const [at, setAt] = useState<number | null>(null);
  const [exact, setExact] = useState(false);
  const place = rows.findIndex((row) => row.episode === episode.episode);
  const own = rows[place];
  const group = (own && families(rows).get(family(own))) ?? [];
  const of = (turn: number): TurnTokens | undefined => tokens?.turns[turn];
  const look = useCallback((turn: number, token: number) => {
    setCurrent(turn);
    setAt(token);
  }, []);
  const move = (to: number) => {
    const turn = Math.max(0, Math.min(episode.turns.length - 1, to));
    setCurrent(turn);
    setAt(of(turn)?.action?.[0] ?? (of(turn) ? 0 : null));
    const element = document.getElementById(`turn-${turn}`);
    element?.scrollIntoView({ block: "start" });
    (element?.querySelector<HTMLElement>(".tokens") ?? element)?.focus({ preventScroll: true });
  };
  const step = (by: number) => {
    const length = of(current)?.tokens.length ?? 0;
    if (length) setAt((last) => Math.max(0, Math.min(length - 1, (last ?? (by > 0 ? -1 : 0)) + by)));
  };
  const neighbor = (by: number) => {
    const row = place < 0 ? undefined : rows[place + by];
    if (row) go(link(run, "episode", stage.key, row.episode));
  };
  const sameTask = link(run, "episodes") + query({ stage: "all", q: episode.task });
  useKeys({
    j: () => move(current + 1), k: () => move(current - 1),
    ArrowRight: () => step(1), ArrowLeft: () => step(-1), Home: () => step(-1e9), End: () => step(1e9),
    n: () => neighbor(1), p: () => neighbor(-1),
    s: () => group.length > 1 && go(besideLink(run, group)),
    a: () => go(sameTask),
    c: () => turnQuantity(1), C: () => turnQuantity(-1),
    x: () => setExact(!exact),
  });
  useEffect(() => scrollTo(0, 0), []);
  const seen = of(current);
  return (
    <div class="episode">
      <div class="heading">
        <h1>{episode.task}</h1>
        <p>
          <Outcome success={episode.success} /> reward {number(episode.reward)} · {episode.ended} · {episode.turns.length} turns ·{" "}
          <a href={`${link(run, "episodes")}?stage=${stage.key}`}>{stage.name}</a>, episode {episode.episode}
          {episode.group !== undefined && `, group ${episode.group}`}{episode.kind && ` · ${episode.kind}`}
        </p>
        <p class="links">
          {place > 0 && <a href={link(run, "episode", stage.key, rows[place - 1]!.episode)}>previous <kbd>p</kbd></a>}
          {place >= 0 && place < rows.length - 1 && <a href={link(run, "episode", stage.key, rows[place + 1]!.episode)}>next <kbd>n</kbd></a>}
          {group.length > 1 && <a href={besideLink(run, group)}>{group.length} siblings side by side <kbd>s</kbd></a>}
          <a href={sameTask}>this task at every step <kbd>a</kbd></a>
        </p>
      </div>
      <div class="bar-top">
        {quantity ? (
          <>
            <label>color by{" "}
              <select value={quantity.name} onChange={(event) => select(event.currentTarget.value)}>
                {choices.map((one) => <option key={one.name} value={one.name}>{one.title}</option>)}
              </select>
            </label>
            <Legend quantity={quantity} most={most} />
          </>
        ) : <span class="quiet">{stage.training ? "No values of tokens were recorded for this step." : "Evaluations record no values of tokens."}</span>}
        <button type="button" aria-pressed={exact} onClick={() => setExact(!exact)} title="the prompt exactly as the student saw it (x)">exact prompt</button>
      </div>
      {tokens && <Credit tokens={tokens} turns={episode.turns.length} current={current} move={move} />}
      <div class="columns">
        <div class="turns">
          {episode.preamble && <details class="preamble"><summary>Rules and tools of the episode</summary><pre>{episode.preamble}</pre></details>}
          {episode.turns.map((turn, number_) => (
            <TurnView
              key={number_} number={number_} turn={turn} tokens={of(number_)} quantity={quantity} most={most}
              exact={exact} current={number_ === current} at={number_ === current ? at : null} look={look}
            />
          ))}
        </div>
        {seen && (
          <aside class="side" aria-label="The token that is looked at" aria-live="polite">
            {at !== null && at < seen.tokens.length ? <Inspector number={current} turn={seen} at={at} />
            : <p class="quiet">Point at a token, or press j and then → to walk through the tokens.</p>}
          </aside>
        )}
      </div>
    </div>
  );
}

/** The sum of a turn's shares, with the sign of what they do. */
export function creditOf(turn: TurnTokens | undefined): { up: number; down: number } {
  const used = turn && applied(turn);
  const sum = { up: 0, down: 0 };
  turn?.share?.forEach((share, at) => {
    if (share) sum[(used?.[at] ?? 0) < 0 ? "down" : "up"] += share;
  });
  return sum;
}

function Credit({ tokens, turns, current, move }: { tokens: Tokens; turns: number; current: number; move: (to: number) => void }) {
  const credit = Array.from({ length: turns }, (_, turn) => creditOf(tokens.turns[turn]));
  const total = credit.reduce((sum, { up, down }) => sum + up + down, 0);
  if (!Object.values(tokens.turns).some((turn) => turn.share)) return null;
  if (!total) return <p class="quiet">No token of this episode moves the policy: its advantages are 0.</p>;
  const most = Math.max(...credit.map(({ up, down }) => Math.max(up, down)));
  return (
    <div class="credit" role="group" aria-label="Share of the episode's credit by turn">
      <span class="quiet">credit by turn<br />up: more probable<br />down: less</span>
      {credit.map(({ up, down }, turn) => (
        <button
          key={turn} type="button" class={turn === current ? "looked" : ""} onClick={() => move(turn)}
          title={`turn ${turn + 1}: ${percent((up + down) / total)} of the episode's credit`}
          aria-label={`turn ${turn + 1}: ${percent((up + down) / total)} of the episode's credit, ${up >= down ? "made more probable" : "made less probable"}`}
        >
          <svg viewBox="0 0 10 40" preserveAspectRatio="none" aria-hidden="true">
            <rect class="up" x="1" width="8" y={20 - (19 * up) / most} height={(19 * up) / most} />
            <rect class="down" x="1" width="8" y="20" height={(19 * down) / most} />
            <line x1="0" x2="10" y1="20" y2="20" />
          </svg>
          <span>{turn + 1}</span>
        </button>
      ))}
      <span class="quiet">{percent(total, 2)} of<br />the step's loss</span>
    </div>
  );
}

interface TurnProps {
  number: number;
  turn: Turn;
  tokens: TurnTokens | undefined;
  quantity: Quantity | null;
  most: number;
  exact: boolean;
  current: boolean;
  at: number | null;
  look: (turn: number, at: number) => void;
}

const TurnView = memo(function TurnView({ number: n, turn, tokens, quantity, most, exact, current, at, look }: TurnProps) {
  const { up, down } = creditOf(tokens);
  return (
    <article id={`turn-${n}`} class={current ? "turn current" : "turn"} tabIndex={-1} aria-labelledby={`title-${n}`}>
      <header>
        <h2 id={`title-${n}`}>Turn {n + 1}</h2>
        {!turn.valid && <span class="badge bad">not a valid action</span>}
        {turn.reward ? <span class="badge good">reward {number(turn.reward)}</span> : null}
        <span class="quiet">{summary(tokens, up + down)}{turn.weights.length > 0 && ` · weights v${turn.weights.join(", v")}`}</span>
      </header>
      <div class="body">
        <section class="saw" aria-label="What the student saw">
          <h3>saw</h3>
          {exact && tokens?.prompt !== undefined ? <pre class="text">{tokens.prompt}</pre> : <Drawn blocks={turn.seen} />}
        </section>
        <section class="said" aria-label="What the student answered">
          <h3>answered</h3>
          {tokens && quantity ? <Response {...{ number: n, turn: tokens, quantity, most, at, look }} /> : <div class="response text">{turn.response}</div>}
        </section>
        <section class="back" aria-label="What came back">
          <h3>came back</h3>
          <Drawn blocks={turn.came_back} />
        </section>
        {(turn.hint || turn.notes) && (
          <div class="margin">
            {turn.hint && <section class="hint"><h3>hint: only the teacher saw this</h3><div class="text">{turn.hint}</div></section>}
            {turn.notes?.map((note, at) => <section key={at} class="note"><h3>{note.kind}</h3><div class="text">{note.text}</div></section>)}
          </div>
        )}
      </div>
    </article>
  );
});

function summary(tokens: TurnTokens | undefined, share: number): string {
  if (!tokens) return "";
  const parts = [`${tokens.tokens.length} tokens`];
  const [advantage, used] = [mean(tokens.advantage ?? []), mean(applied(tokens) ?? [])];
  if (advantage !== null) parts.push(`A ${signed(advantage)}`);
  if (used !== null && tokens.weight?.some((one) => one !== null)) parts.push(`A′ ${signed(used)}`);
  if (share) parts.push(`${percent(share, 2)} of the step's loss`);
  return parts.join(" · ");
}
