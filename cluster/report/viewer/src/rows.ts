/** Episodes of one or several stages as rows that can be filtered and sorted. */

import { useEffect, useState } from "preact/hooks";
import { load } from "./data";
import type { Index, Stage } from "./types";

export interface Row {
  stage: Stage;
  order: number; // of the stage
  episode: number;
  group: number | null;
  trial: number | null;
  task: string;
  kind: string;
  success: boolean | undefined;
  reward: number | null;
  turns: number;
  ended: string;
}

function rowsOf(index: Index, stage: Stage, order: number): Row[] {
  return index.episode.map((episode, at) => ({
    stage,
    order,
    episode,
    group: index.group?.[at] ?? null,
    trial: index.trial?.[at] ?? null,
    task: index.task?.[at] ?? "",
    kind: index.kind?.[at] ?? "",
    success: index.success?.[at],
    reward: index.reward?.[at] ?? null,
    turns: index.turns[at] ?? 0,
    ended: index.ended?.[at] ?? "",
  }));
}

/** The rows of `wanted`, newest stage first, while they come in: one small file per stage. */
export function useRows(run: number, wanted: Stage[]): { rows: Row[]; missing: number; error: string | null } {
  const keys = wanted.map((stage) => stage.key).join(" ");
  const [state, set] = useState<{ keys: string; rows: Row[]; missing: number; error: string | null }>({
    keys: "", rows: [], missing: 0, error: null,
  });
  useEffect(() => {
    let current = true;
    void (async () => {
      const rows: Row[] = [];
      const order = [...wanted.keys()].reverse();
      let error: string | null = null;
      let shown = 0;
      for (const [done, at] of order.entries()) {
        try {
          rows.push(...rowsOf(await load<Index>(`${run}/index/${wanted[at]!.key}`), wanted[at]!, at));
        } catch (problem) {
          error = (problem as Error).message;
        }
        if (!current) return;
        const now = performance.now();
        if (done === 0 || done === order.length - 1 || now - shown > 250) {
          shown = now;
          set({ keys, rows: [...rows], missing: order.length - done - 1, error });
        }
      }
    })();
    return () => void (current = false);
  }, [run, keys]);
  return state;
}

/** Rollouts of the same task in the same stage and group. */
export function families(rows: Row[]): Map<string, Row[]> {
  return Map.groupBy(rows, family);
}

export const family = (row: Row) => `${row.stage.key} ${row.group} ${row.task}`;
