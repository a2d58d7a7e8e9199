/** Episodes side by side: siblings of a group, or the same task at two steps. */

import { useState } from "preact/hooks";
import { useDocument } from "./data";
import { creditOf } from "./episode";
import { mean, number, percent, signed } from "./format";
import { useKeys } from "./keys";
import { Drawn, Outcome } from "./parts";
import { applied } from "./quantities";
import { go, link, type Route } from "./route";
import type { Episode, Stage, Tokens } from "./types";

export function Beside({ route, stages }: { route: Route; stages: Stage[] }) {
  const columns = route.parts.map((part) => part.split(":") as [string, string]);
  const [turn, setTurn] = useState(0);
  const [column, setColumn] = useState(0);
  const move = (by: number) => {
    const to = Math.max(0, turn + by);
    const element = document.querySelectorAll(`[data-turn="${to}"]`);
    if (!element.length) return;
    setTurn(to);
    (element[0] as HTMLElement).scrollIntoView({ block: "nearest" });
  };
  const sideways = (by: number) => setColumn(Math.max(0, Math.min(columns.length - 1, column + by)));
  useKeys({
    j: () => move(1), k: () => move(-1), ArrowRight: () => sideways(1), ArrowLeft: () => sideways(-1),
    Enter: () => columns[column] && go(link(route.run, "episode", ...columns[column])),
  });
  return (
    <div class="beside-page">
      <h1>Side by side</h1>
      <p class="quiet">j k turns · ← → episodes · Enter opens the episode. A bar shows a turn's share of its episode's credit.</p>
      <div class="beside">
        {columns.map(([key, id], at) => (
          <Column
            key={`${key}:${id}`} run={route.run} stage={stages.find((one) => one.key === key)} id={id} stageKey={key}
            turn={turn} current={at === column}
          />
        ))}
      </div>
    </div>
  );
}

interface ColumnProps {
  run: number;
  stage: Stage | undefined;
  stageKey: string;
  id: string;
  turn: number;
  current: boolean;
}

function Column({ run, stage, stageKey, id, turn, current }: ColumnProps) {
  const episode = useDocument<Episode>(`${run}/episode/${stageKey}/${id}`);
  const tokens = useDocument<Tokens>(stage?.training ? `${run}/tokens/${stageKey}/${id}` : null);
  if (episode.error) return <section class="column"><p class="problem">{episode.error}</p></section>;
  if (!episode.value) return <section class="column"><p class="quiet">Loading…</p></section>;
  const turns = episode.value.turns;
  const credit = turns.map((_, at) => creditOf(tokens.value?.turns[at]));
  const total = credit.reduce((sum, { up, down }) => sum + up + down, 0);
  return (
    <section class={current ? "column current" : "column"} aria-label={`episode ${id} of ${stageKey}`}>
      <h2><a href={link(run, "episode", stageKey, id)}>{stage?.name ?? stageKey}, episode {id}</a></h2>
      <p class="task">{episode.value.task}</p>
      <p><Outcome success={episode.value.success} /> reward {number(episode.value.reward)} · {turns.length} turns</p>
      <ol>
        {turns.map((one, at) => {
          const row = tokens.value?.turns[at];
          const sum = credit[at]!;
          const part = total ? (sum.up + sum.down) / total : 0;
          return (
            <li key={at} data-turn={at} class={at === turn ? "current" : ""}>
              <div class="said">
                <span class="quiet">{at + 1}</span> <strong>{one.action ?? "no action"}</strong>
                {!one.valid && <span class="badge bad">not valid</span>}
              </div>
              {part > 0 && (
                <div class="share" title={`${percent(part)} of the episode's credit`}>
                  <svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">
                    <rect class={sum.up >= sum.down ? "up" : "down"} width={100 * part} height="6" />
                  </svg>
                  <span class="quiet">{percent(part)} · A′ {signed(mean(row ? applied(row) ?? [] : []))}</span>
                </div>
              )}
              {at === turn && <div class="more"><Drawn blocks={one.came_back} />{one.hint && <p class="hint"><b>hint</b> {one.hint}</p>}</div>}
            </li>
          );
        })}
      </ol>
    </section>
  );
}
