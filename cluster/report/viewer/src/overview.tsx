import { useState } from "preact/hooks";
import { Curve } from "./curve";
import { useDocument } from "./data";
import { mean, number, percent, plural, seconds } from "./format";
import { Tile } from "./parts";
import { link } from "./route";
import { Runs } from "./runs";
import type { Evaluation, Overview, Settings } from "./types";

const PHASES: [string, string][] = [
  ["time/rollout", "rollout"],
  ["time/feedback_and_teacher", "feedback and teacher"],
  ["time/critic", "critic"],
  ["time/learner", "learner"],
  ["time/weight_sync", "weight sync"],
];
const RECENT = 10; // steps that the figures at the top are means of

interface OverviewProps {
  run: number;
  runs: string[];
  overview: Overview;
  every: number; // ms between looks at runs that go on; 0: none
}

export function OverviewPage({ run, runs, overview, every }: OverviewProps) {
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
          title="success of evaluations"
          value={percent(held?.success, 1)}
          note={held && <>95 %: {percent(held.low, 1)} to {percent(held.high, 1)}, {plural(held.episodes ?? 0, "episode")}</>}
        />
        <Tile title="training success" value={percent(recent("rollout/success"), 1)} note={of} />
        <Tile title="turns per episode" value={number(recent("rollout/turns_per_episode"))} note={of} />
        <Tile title="a step takes" value={seconds(recent("time/step"))} note={of} />
      </dl>
      {runs.length > 1 && <Runs run={run} runs={runs} every={every} />}
      <section aria-labelledby="curve">
        <h2 id="curve">Success</h2>
        <Curve shown={[{ name: runs[run] ?? "", at: 0, overview }]} />
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
    </div>
  );
}

function state(overview: Overview): string {
  const start = overview.starts.at(-1);
  const seen = overview.last_time ? ` (last row ${new Date(1000 * overview.last_time).toLocaleString()})` : "";
  if (!start) return `no record of how it ended${seen}.`;
  return start.outcome ? `${start.outcome}${seen}.` : `not ended${seen}.`;
}

function Evaluations({ rows }: { rows: Evaluation[] }) {
  return (
    <table>
      <thead><tr><th scope="col">evaluation</th><th scope="col">step</th><th scope="col">success</th><th scope="col">95 % interval</th><th scope="col">episodes</th><th scope="col">turns</th></tr></thead>
      <tbody>
        {rows.map((one, at) => (
          <tr key={at}>
            <td>{one.stage ?? "evaluation"}</td><td class="figure">{one.step}</td><td class="figure">{percent(one.success, 1)}</td>
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
