import { useState } from "preact/hooks";
import { useDocument } from "./data";
import { mean, number, percent, plural, seconds } from "./format";
import { Tile } from "./parts";
import { link } from "./route";
import type { Evaluation, Overview, Settings } from "./types";

const PHASES: [string, string][] = [
  ["time/rollout", "rollout"],
  ["time/feedback_and_teacher", "feedback and teacher"],
  ["time/critic", "critic"],
  ["time/learner", "learner"],
  ["time/weight_sync", "weight sync"],
];
const RECENT = 10; // steps that the figures at the top are means of

export function OverviewPage({ run, runs, overview }: { run: number; runs: string[]; overview: Overview }) {
  const { facts, train } = overview;
  const last = train.step?.at(-1) ?? 0;
  const recent = (name: string) => mean((train[name] ?? []).slice(-RECENT));
  const held = overview.evaluations.at(-1);
  const of = `mean of ${plural(Math.min(RECENT, train.step?.length ?? 0), "step")}`;
  return (
    <div class="overview">
      <h1>{runs[run]}</h1>
      <p class="lead">
        {String(facts.method ?? "a run")} trains {String(facts["model.path"] ?? "a model")} on{" "}
        {String(facts["env.name"] ?? "an environment")}: step {last ?? 0}
        {overview.steps ? ` of ${overview.steps}` : ""}, {state(overview)}
      </p>
      <dl class="tiles">
        <Tile
          title="held-out success"
          value={percent(held?.success, 1)}
          note={held && <>95 %: {percent(held.low, 1)} to {percent(held.high, 1)}, {plural(held.episodes ?? 0, "episode")}</>}
        />
        <Tile title="training success" value={percent(recent("rollout/success"), 1)} note={of} />
        <Tile title="turns per episode" value={number(recent("rollout/turns_per_episode"))} note={of} />
        <Tile title="a step takes" value={seconds(recent("time/step"))} note={of} />
      </dl>
      <section aria-labelledby="curve">
        <h2 id="curve">Success</h2>
        <Curve overview={overview} />
        {overview.evaluations.length > 0 && <Evaluations rows={overview.evaluations} />}
      </section>
      {PHASES.some(([name]) => train[name]) && (
        <section aria-labelledby="phases">
          <h2 id="phases">Seconds by phase</h2>
          <Phases train={train} />
        </section>
      )}
      <Steps run={run} overview={overview} />
      <Failures overview={overview} />
      <SettingsTable run={run} />
      <Starts overview={overview} />
      {runs.length > 1 && (
        <section aria-labelledby="runs">
          <h2 id="runs">Runs</h2>
          <table>
            <thead><tr><th scope="col">run</th><th scope="col">method</th><th scope="col">step</th><th scope="col">held-out success</th></tr></thead>
            <tbody>{runs.map((name, at) => <RunRow key={at} run={at} name={name} current={at === run} />)}</tbody>
          </table>
        </section>
      )}
    </div>
  );
}

function RunRow({ run, name, current }: { run: number; name: string; current: boolean }) {
  const { value } = useDocument<Overview>(`${run}/overview`);
  const held = value?.evaluations.at(-1);
  return (
    <tr aria-current={current || undefined}>
      <td><a href={link(run, "overview")}>{name}</a></td>
      <td>{String(value?.facts.method ?? "–")}</td>
      <td class="figure">{value?.train.step?.at(-1) ?? "–"}</td>
      <td class="figure">{held ? `${percent(held.success, 1)} (${percent(held.low, 1)} to ${percent(held.high, 1)})` : "–"}</td>
    </tr>
  );
}

function state(overview: Overview): string {
  const start = overview.starts.at(-1);
  const seen = overview.last_time ? ` (last row ${new Date(1000 * overview.last_time).toLocaleString()})` : "";
  if (!start) return `no record of how it ended${seen}.`;
  return start.outcome ? `${start.outcome}${seen}.` : `not ended${seen}.`;
}

const WIDTH = 760;
const HEIGHT = 230;
const LEFT = 44;
const BOTTOM = 28;

function Curve({ overview }: { overview: Overview }) {
  const steps = overview.train.step ?? [];
  const success = overview.train["rollout/success"] ?? [];
  const most = Math.max(1, overview.steps ?? 0, ...steps.map((step) => step ?? 0), ...overview.evaluations.map((one) => one.step));
  const x = (step: number) => LEFT + ((WIDTH - LEFT - 12) * step) / most;
  const y = (rate: number) => 10 + (HEIGHT - BOTTOM - 10) * (1 - rate);
  const width = Math.max(1, Math.floor(success.length / 15));
  const points = steps.map((step, at) => [step ?? 0, success[at] ?? null] as const).filter(([, rate]) => rate !== null);
  const smooth = points.map(([step], at) => [step, mean(points.slice(Math.max(0, at - width), at + 1).map(([, rate]) => rate))!] as const);
  const path = (line: readonly (readonly [number, number | null])[]) =>
    line.map(([step, rate], at) => `${at ? "L" : "M"}${x(step).toFixed(1)} ${y(rate!).toFixed(1)}`).join("");
  const ticks = [...new Set([0, 0.25, 0.5, 0.75, 1].map((part) => Math.round(part * most)))];
  return (
    <figure>
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label="Success by training step: training rollouts as a line, held-out evaluations as points with 95 % intervals">
        {[0, 0.25, 0.5, 0.75, 1].map((rate) => (
          <g key={rate}>
            <line class="grid" x1={LEFT} x2={WIDTH - 12} y1={y(rate)} y2={y(rate)} />
            <text class="tick" x={LEFT - 6} y={y(rate) + 4} text-anchor="end">{percent(rate)}</text>
          </g>
        ))}
        {ticks.map((step) => <text key={step} class="tick" x={x(step)} y={HEIGHT - 8} text-anchor="middle">{step}</text>)}
        <path class="line thin" d={path(points)} />
        <path class="line" d={path(smooth)} />
        {points.length === 1 && <circle class="dot" cx={x(points[0]![0])} cy={y(points[0]![1]!)} r="3" />}
        {overview.evaluations.filter((one) => one.success !== null).map((one, at) => (
          <g key={at} class="evaluation">
            <title>{`${one.stage ?? "held-out"}, step ${one.step}: ${percent(one.success, 1)}`}</title>
            {one.low !== null && one.high !== null && <line x1={x(one.step)} x2={x(one.step)} y1={y(one.low)} y2={y(one.high)} />}
            <circle cx={x(one.step)} cy={y(one.success!)} r="4" />
          </g>
        ))}
      </svg>
      <figcaption class="quiet">
        <span class="swatch line-swatch" /> training rollouts (thin: each step; thick: mean of {width + 1})
        <span class="swatch dot-swatch" /> held-out, with its 95 % interval
      </figcaption>
    </figure>
  );
}

function Evaluations({ rows }: { rows: Evaluation[] }) {
  return (
    <table>
      <thead><tr><th scope="col">evaluation</th><th scope="col">step</th><th scope="col">success</th><th scope="col">95 % interval</th><th scope="col">episodes</th><th scope="col">turns</th></tr></thead>
      <tbody>
        {rows.map((one, at) => (
          <tr key={at}>
            <td>{one.stage ?? "held-out"}</td><td class="figure">{one.step}</td><td class="figure">{percent(one.success, 1)}</td>
            <td class="figure">{percent(one.low, 1)} to {percent(one.high, 1)}</td><td class="figure">{number(one.episodes)}</td>
            <td class="figure">{number(one.turns)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function Phases({ train }: { train: Overview["train"] }) {
  const means = PHASES.map(([name, title]) => [title, mean((train[name] ?? []).slice(-RECENT)) ?? 0] as const);
  const most = Math.max(...means.map(([, value]) => value), 1e-9);
  return (
    <table class="bars">
      <thead><tr><th scope="col">phase</th><th scope="col">mean of the last steps</th><th scope="col"><span class="hidden">bar</span></th></tr></thead>
      <tbody>
        {means.map(([title, value]) => (
          <tr key={title}>
            <th scope="row">{title}</th>
            <td class="figure">{seconds(value)}</td>
            <td class="wide"><svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true"><rect width={(100 * value) / most} height="10" /></svg></td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

const SHOWN_STEPS = 12;

function Steps({ run, overview }: { run: number; overview: Overview }) {
  const [all, setAll] = useState(false);
  const { train } = overview;
  const steps = train.step ?? [];
  if (!steps.length) return null;
  const order = steps.map((_, at) => at).reverse().slice(0, all ? 2000 : SHOWN_STEPS);
  const recorded = new Set(overview.stages.filter((stage) => stage.training).map((stage) => stage.step));
  const columns: [string, string, (value: number | null | undefined) => string][] = [
    ["rollout/success", "success", (value) => percent(value, 1)],
    ["rollout/turns_per_episode", "turns", number],
    ["rollout/tokens_per_turn", "tokens per turn", number],
    ["time/step", "time", seconds],
  ];
  const given = columns.filter(([name]) => train[name]);
  return (
    <section aria-labelledby="steps">
      <h2 id="steps">Steps</h2>
      <table>
        <thead><tr><th scope="col">step</th>{given.map(([name, title]) => <th scope="col" key={name}>{title}</th>)}<th scope="col">look at</th></tr></thead>
        <tbody>
          {order.map((at) => (
            <tr key={at}>
              <td class="figure">{steps[at]}</td>
              {given.map(([name, , show]) => <td key={name} class="figure">{show(train[name]![at])}</td>)}
              <td>
                {recorded.has(steps[at]!) && (
                  <>
                    <a href={`${link(run, "episodes")}?stage=step-${String(steps[at]).padStart(6, "0")}`}>episodes</a>{" · "}
                    <a href={link(run, "timeline", steps[at]!)}>timeline</a>
                  </>
                )}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      {steps.length > SHOWN_STEPS && <button type="button" onClick={() => setAll(!all)}>{all ? "show fewer" : `show all ${steps.length}`}</button>}
    </section>
  );
}

function Failures({ overview }: { overview: Overview }) {
  const counts = Object.entries(overview.failures);
  const total = counts.reduce((sum, [, count]) => sum + count, 0) + overview.set_aside.length;
  return (
    <section aria-labelledby="failures">
      <h2 id="failures">Failures</h2>
      {total === 0 && <p class="quiet">None was recorded.</p>}
      {counts.length > 0 && <p>{counts.map(([name, count]) => `${FAILURES[name] ?? name.replace("failures/", "").replace("restarts/", "restarts of ").replaceAll("_", " ")}: ${count}`).join(", ")}</p>}
      {overview.set_aside.length > 0 && (
        <table>
          <thead><tr><th scope="col">task set aside</th><th scope="col">kind</th><th scope="col">last message</th></tr></thead>
          <tbody>{overview.set_aside.map((one, at) => <tr key={at}><td>{one.task}</td><td>{one.kind}</td><td>{one.message}</td></tr>)}</tbody>
        </table>
      )}
    </section>
  );
}

const FAILURES: Record<string, string> = {
  "failures/retried": "episodes started again",
  "failures/groups_lost": "groups lost",
};

function SettingsTable({ run }: { run: number }) {
  const [all, setAll] = useState(false);
  const { value, error } = useDocument<Settings>(`${run}/settings`);
  const settings = value?.settings ?? [];
  const changed = settings.filter((one) => "default" in one);
  const shown = all ? settings : changed;
  return (
    <section aria-labelledby="settings">
      <h2 id="settings">Settings</h2>
      {error && <p class="problem" role="alert">{error}</p>}
      <p>
        {plural(changed.length, "setting")} of {settings.length} differ from the method's defaults.{" "}
        <button type="button" aria-pressed={all} onClick={() => setAll(!all)}>{all ? "show those that differ" : "show all"}</button>
      </p>
      {shown.length > 0 && (
        <table class="settings">
          <thead><tr><th scope="col">setting</th><th scope="col">value</th><th scope="col">default</th></tr></thead>
          <tbody>
            {shown.map((one) => (
              <tr key={one.key}><td><code>{one.key}</code></td><td>{show(one.value)}</td><td class="quiet">{"default" in one ? show(one.default) : ""}</td></tr>
            ))}
          </tbody>
        </table>
      )}
    </section>
  );
}

const show = (value: unknown) => (typeof value === "string" ? value || "''" : JSON.stringify(value));

function Starts({ overview }: { overview: Overview }) {
  if (!overview.starts.length) return null;
  return (
    <section aria-labelledby="starts">
      <h2 id="starts">Starts</h2>
      <table>
        <thead><tr><th scope="col">started</th><th scope="col">command</th><th scope="col">commit</th><th scope="col">from step</th><th scope="col">ended</th><th scope="col">versions</th></tr></thead>
        <tbody>
          {overview.starts.map((one, at) => (
            <tr key={at}>
              <td>{one.started}</td><td><code>{one.command}</code></td>
              <td><code>{one.commit?.slice(0, 9)}{one.dirty ? " + changes" : ""}</code></td>
              <td class="figure">{one.resumed_from_step ?? "–"}</td>
              <td>{one.outcome ?? "not ended"} {one.ended}</td>
              <td class="quiet">{Object.entries(one.versions ?? {}).map(([name, version]) => `${name} ${version}`).join(", ")}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}
