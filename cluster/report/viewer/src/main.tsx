import { render } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { Beside } from "./beside";
import { useDocument } from "./data";
import { EpisodePage } from "./episode";
import { Episodes } from "./episodes";
import { useKeys } from "./keys";
import { keep, recall } from "./memory";
import { OverviewPage } from "./overview";
import { go, link, useRoute } from "./route";
import "./style.css";
import { TimelinePage } from "./timeline";
import type { Listing, Overview } from "./types";

const POLL = 3000; // ms between looks at a run that is going on

const KEYS: [string, string][] = [
  ["o, e, t", "overview, episodes, timeline"],
  ["j, k", "next and previous turn, or row of a list"],
  ["← →", "next and previous token"],
  ["Home, End", "first and last token of the turn"],
  ["Enter", "open the row"],
  ["n, p", "next and previous episode of the stage"],
  ["s", "the episode's siblings side by side"],
  ["a", "the episode's task at every step"],
  ["c, C", "next and previous quantity that tokens are colored by"],
  ["x", "the prompt exactly as the student saw it"],
  ["/", "filter the list"],
  ["d", "dark, light, or as the system has it"],
  ["?", "this help; Escape closes it"],
];

const THEMES = ["auto", "dark", "light"];

function useTheme(): [string, () => void] {
  const [theme, set] = useState(() => recall("theme") ?? "auto");
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
    keep("theme", theme);
  }, [theme]);
  return [theme, () => set(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]!)];
}

function App() {
  const route = useRoute();
  const [theme, turnTheme] = useTheme();
  const help = useRef<HTMLDialogElement>(null);
  const runs = useDocument<Listing>("runs");
  const every = runs.value?.follow ? POLL : 0;
  const overview = useDocument<Overview>(runs.value ? `${route.run}/overview` : null, every);
  const name = runs.value?.runs[route.run];
  const stages = overview.value?.stages ?? [];
  const lastStep = stages.findLast((stage) => stage.training)?.step ?? 0;
  const pages = [
    { page: "overview", title: "Overview", address: link(route.run, "overview") },
    { page: "episodes", title: "Episodes", address: link(route.run, "episodes") },
    { page: "timeline", title: "Timeline", address: link(route.run, "timeline", lastStep) },
  ];
  useKeys({
    o: () => go(pages[0]!.address),
    e: () => go(pages[1]!.address),
    t: () => go(pages[2]!.address),
    d: turnTheme,
    "?": () => help.current?.showModal(),
  });
  useEffect(() => {
    document.title = name ? `${name} – Hindsight` : "Hindsight";
  }, [name]);
  const error = runs.error ?? (overview.value ? null : overview.error);
  return (
    <>
      <header class="top">
        <a class="brand" href={link(route.run, "overview")}>Hindsight</a>
        {(runs.value?.runs.length ?? 0) > 1 ? (
          <label class="run">
            run{" "}
            <select value={route.run} onChange={(event) => go(link(Number(event.currentTarget.value), "overview"))}>
              {runs.value!.runs.map((one, at) => <option key={at} value={at}>{one}</option>)}
            </select>
          </label>
        ) : (
          <span class="run">{name}</span>
        )}
        <nav aria-label="Pages">
          {pages.map((one) => (
            <a key={one.page} href={one.address} aria-current={isAt(route.page, one.page) ? "page" : undefined}>
              {one.title}
            </a>
          ))}
        </nav>
        {every > 0 && <span class={overview.error ? "badge bad" : "badge good"}>{overview.error ? "server ended" : "following"}</span>}
        <button type="button" onClick={turnTheme} title="dark or light (d)">theme: {theme}</button>
        <button type="button" onClick={() => help.current?.showModal()} title="keyboard (?)">? help</button>
      </header>
      <main id="main">
        {error && <p class="problem" role="alert">{error}</p>}
        {!error && !overview.value && <p class="quiet">Loading…</p>}
        {overview.value && runs.value && (
          route.page === "episodes" ? <Episodes route={route} stages={stages} />
          : route.page === "episode" ? <EpisodePage key={route.parts.join("/")} route={route} stages={stages} />
          : route.page === "beside" ? <Beside key={route.parts.join("/")} route={route} stages={stages} />
          : route.page === "timeline" ? <TimelinePage route={route} stages={stages} />
          : <OverviewPage run={route.run} runs={runs.value.runs} overview={overview.value} every={every} />
        )}
      </main>
      <dialog ref={help} aria-labelledby="help-title">
        <form method="dialog">
          <h2 id="help-title">Keyboard</h2>
          <dl class="keys">
            {KEYS.map(([keys, what]) => (
              <div key={keys}><dt><kbd>{keys}</kbd></dt><dd>{what}</dd></div>
            ))}
          </dl>
          <p class="quiet">Hindsight {runs.value?.version}. All data stay on this machine.</p>
          <button type="submit">Close</button>
        </form>
      </dialog>
    </>
  );
}

const isAt = (page: string, tab: string) =>
  page === tab || (tab === "episodes" && (page === "episode" || page === "beside"));

render(<App />, document.getElementById("app")!);
