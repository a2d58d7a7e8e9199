/** Several runs together: their curves on the same axes, and where each stands. */

import { colorOf, Curve, type Shown } from "./curve";
import { useDocuments } from "./data";
import { percent } from "./format";
import { link } from "./route";
import type { Overview } from "./types";

export function Runs({ run, runs, every }: { run: number; runs: string[]; every: number }) {
  const found = useDocuments<Overview>(runs.map((_, at) => `${at}/overview`), every);
  const shown = runs.flatMap((name, at): Shown[] => (found[at] ? [{ name, at, overview: found[at] }] : []));
  return (
    <section aria-labelledby="runs">
      <h2 id="runs">Runs</h2>
      {shown.length > 1 && <Curve shown={shown} />}
      <table class="runs">
        <thead><tr><th scope="col">run</th><th scope="col">method</th><th scope="col">step</th><th scope="col">success of evaluations</th></tr></thead>
        <tbody>
          {runs.map((name, at) => {
            const held = found[at]?.evaluations.at(-1);
            return (
              <tr key={at} aria-current={at === run || undefined}>
                <td>
                  <svg class={`mark ${colorOf(at)}`} viewBox="0 0 10 10" aria-hidden="true"><circle class="dot" cx="5" cy="5" r="4" /></svg>{" "}
                  <a href={link(at, "overview")}>{name}</a>
                </td>
                <td>{String(found[at]?.facts.method ?? "–")}</td>
                <td class="figure">{found[at]?.train.step?.at(-1) ?? "–"}</td>
                <td class="figure">{held ? `${percent(held.success, 1)} (${percent(held.low, 1)} to ${percent(held.high, 1)})` : "–"}</td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </section>
  );
}
