import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { number, plural } from "./format";
import { useKeys } from "./keys";
import { Outcome } from "./parts";
import { amend, go, link, query, type Route } from "./route";
import { families, family, type Row, useRows } from "./rows";
import type { Stage } from "./types";

const HEIGHT = 30; // of a row, px; the style sheet says the same
const EXTRA = 12; // rows above and below those in sight

const SORTS: Record<string, (row: Row) => number | string> = {
  stage: (row) => row.order,
  group: (row) => row.group ?? -1,
  episode: (row) => row.episode,
  task: (row) => row.task,
  success: (row) => Number(row.success ?? -1),
  reward: (row) => row.reward ?? -1,
  turns: (row) => row.turns,
  ended: (row) => row.ended,
};

export const MOST_BESIDE = 8; // columns that a screen can hold

export function besideLink(run: number, rows: Row[]): string {
  return link(run, "beside", ...rows.slice(0, MOST_BESIDE).map((row) => `${row.stage.key}:${row.episode}`));
}

export function Episodes({ route, stages }: { route: Route; stages: Stage[] }) {
  const given = (name: string, otherwise = "") => route.query.get(name) ?? otherwise;
  const latest = stages.findLast((stage) => stage.training)?.key ?? stages.at(-1)?.key ?? "all";
  const stage = given("stage", latest);
  const [filter, outcome, sort] = [given("q"), given("outcome"), given("sort")];
  const wanted = useMemo(() => (stage === "all" ? stages : stages.filter((one) => one.key === stage)), [stage, stages]);
  const { rows, missing, error } = useRows(route.run, wanted);
  const shown = useMemo(() => arrange(rows, filter, outcome, sort), [rows, filter, outcome, sort]);
  const groups = useMemo(() => families(rows), [rows]);
  const [chosen, choose] = useState(0);
  const [picked, pick] = useState<Row[]>([]);
  const field = useRef<HTMLInputElement>(null);
  const list = useRef<HTMLDivElement>(null);
  const at = Math.min(chosen, shown.length - 1);
  const change = (values: Record<string, string>) => {
    choose(0);
    amend(link(route.run, "episodes") + query({ stage: given("stage"), q: filter, outcome, sort, ...values }));
  };
  const open = (row: Row | undefined) => row && go(link(route.run, "episode", row.stage.key, row.episode));
  const move = (by: number) => {
    const to = Math.max(0, Math.min(shown.length - 1, at + by));
    choose(to);
    const box = list.current!;
    const [top, bottom] = [to * HEIGHT, (to + 2) * HEIGHT];
    if (top < box.scrollTop) box.scrollTop = top;
    if (bottom > box.scrollTop + box.clientHeight) box.scrollTop = bottom - box.clientHeight;
  };
  const toggle = (row: Row | undefined) =>
    row && pick(picked.includes(row) ? picked.filter((one) => one !== row) : [...picked, row]);
  useKeys({
    j: () => move(1), k: () => move(-1), ArrowDown: () => move(1), ArrowUp: () => move(-1),
    PageDown: () => move(15), PageUp: () => move(-15), Home: () => move(-shown.length), End: () => move(shown.length),
    Enter: () => open(shown[at]),
    " ": () => toggle(shown[at]),
    s: () => shown[at] && go(besideLink(route.run, groups.get(family(shown[at]!)) ?? [])),
    a: () => shown[at] && change({ stage: "all", q: shown[at]!.task, outcome: "" }),
    "/": () => field.current?.focus(),
  });
  const solved = shown.filter((row) => row.success).length;
  return (
    <div class="episodes">
      <h1 class="hidden">Episodes</h1>
      <div class="controls">
        <label>stage{" "}
          <select value={stage} onChange={(event) => change({ stage: event.currentTarget.value })}>
            <option value="all">all stages</option>
            {stages.map((one) => <option key={one.key} value={one.key}>{one.name}</option>)}
          </select>
        </label>
        <label>filter{" "}
          <input ref={field} type="search" value={filter} placeholder="task or kind  ( / )" onInput={(event) => change({ q: event.currentTarget.value })} />
        </label>
        <label>outcome{" "}
          <select value={outcome} onChange={(event) => change({ outcome: event.currentTarget.value })}>
            <option value="">any</option><option value="success">success</option><option value="failure">failure</option>
          </select>
        </label>
        <span class="quiet" role="status">
          {plural(shown.length, "episode")}, {solved} solved{missing > 0 && `, ${plural(missing, "stage")} to load`}
        </span>
        {picked.length > 1 && <a class="button" href={besideLink(route.run, picked)}>compare {Math.min(picked.length, MOST_BESIDE)} side by side</a>}
      </div>
      {error && <p class="problem" role="alert">{error}</p>}
      <List {...{ shown, at, list, sort, picked, toggle, run: route.run, groups, change }} />
      <p class="quiet hint-line">j k move · Enter opens · s siblings side by side · a same task at every step · space picks for a comparison · / filters</p>
    </div>
  );
}

interface ListProps {
  shown: Row[];
  groups: Map<string, Row[]>;
  at: number;
  list: { current: HTMLDivElement | null };
  sort: string;
  picked: Row[];
  run: number;
  toggle: (row: Row) => void;
  change: (values: Record<string, string>) => void;
}

const COLUMNS: [string, string][] = [
  ["", "compare"], ["stage", "stage"], ["group", "group"], ["episode", "episode"], ["task", "task"],
  ["success", "outcome"], ["reward", "reward"], ["turns", "turns"], ["ended", "ended"], ["", "group"],
];

function List({ shown, groups, at, list, sort, picked, run, toggle, change }: ListProps) {
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(600);
  useEffect(() => {
    const measure = () => list.current && setHeight(list.current.clientHeight);
    measure();
    addEventListener("resize", measure);
    return () => removeEventListener("resize", measure);
  }, []);
  const first = Math.max(0, Math.floor(top / HEIGHT) - EXTRA);
  const last = Math.min(shown.length, Math.ceil((top + height) / HEIGHT) + EXTRA);
  const direction = (name: string) => (sort === name ? "ascending" : sort === `-${name}` ? "descending" : undefined);
  return (
    <div class="list" ref={list} tabIndex={0} role="region" aria-label="Episodes" onScroll={(event) => setTop(event.currentTarget.scrollTop)}>
      <table aria-rowcount={shown.length + 1}>
        <thead>
          <tr>
            {COLUMNS.map(([name, title], number) => (
              <th key={number} scope="col" class={`c-${number}`} aria-sort={name ? direction(name) : undefined}>
                {name ? (
                  <button type="button" class="sort" onClick={() => change({ sort: sort === name ? `-${name}` : name })}>
                    {title}{direction(name) === "ascending" ? " ↑" : direction(name) === "descending" ? " ↓" : ""}
                  </button>
                ) : <span class="hidden">{title}</span>}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {first > 0 && <tr aria-hidden="true" style={{ height: `${first * HEIGHT}px` }} />}
          {shown.slice(first, last).map((row, offset) => {
            const number_ = first + offset;
            return (
              <tr key={`${row.stage.key}:${row.episode}`} class={number_ === at ? "row chosen" : "row"} aria-rowindex={number_ + 2} aria-current={number_ === at || undefined}>
                <td><input type="checkbox" aria-label={`compare episode ${row.episode} of ${row.stage.name}`} checked={picked.includes(row)} onChange={() => toggle(row)} /></td>
                <td>{row.stage.name}</td>
                <td class="figure">{row.group ?? "–"}</td>
                <td class="figure">{row.episode}</td>
                <td class="task"><a href={link(run, "episode", row.stage.key, row.episode)}>{row.task}</a></td>
                <td><Outcome success={row.success} /></td>
                <td class="figure">{number(row.reward)}</td>
                <td class="figure">{row.turns}</td>
                <td>{row.ended}</td>
                <td>{siblingsLink(run, groups.get(family(row)) ?? [])}</td>
              </tr>
            );
          })}
          {last < shown.length && <tr aria-hidden="true" style={{ height: `${(shown.length - last) * HEIGHT}px` }} />}
        </tbody>
      </table>
      {shown.length === 0 && <p class="quiet">No episode matches.</p>}
    </div>
  );
}

function siblingsLink(run: number, found: Row[]) {
  return found.length > 1 && <a href={besideLink(run, found)}>siblings</a>;
}

function arrange(rows: Row[], filter: string, outcome: string, sort: string): Row[] {
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  const kept = rows.filter(
    (row) =>
      (!outcome || row.success === (outcome === "success")) &&
      words.every((word) => row.task.toLowerCase().includes(word) || row.kind.toLowerCase().includes(word)),
  );
  const value = SORTS[sort.replace(/^-/, "")];
  if (!value) return kept;
  const sign = sort.startsWith("-") ? -1 : 1;
  return kept.sort((a, b) => {
    const [one, two] = [value(a), value(b)];
    return sign * (one < two ? -1 : one > two ? 1 : 0);
  });
}
