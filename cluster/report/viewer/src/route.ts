/** The address: #/RUN/PAGE/PARTS?query, so that a view can be linked to. */

import { useEffect, useState } from "preact/hooks";

export interface Route {
  run: number;
  page: string;
  parts: string[];
  query: URLSearchParams;
}

export function parse(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#\/?/, "").split("?");
  const [run = "0", page = "overview", ...parts] = path.split("/").filter(Boolean).map(decodeURIComponent);
  return { run: Number(run) || 0, page, parts, query: new URLSearchParams(query) };
}

export function link(run: number, page: string, ...parts: (string | number)[]): string {
  return `#/${[run, page, ...parts].map((part) => encodeURIComponent(part)).join("/")}`;
}

export function query(values: Record<string, string>): string {
  const given = Object.entries(values).filter(([, value]) => value !== "");
  return given.length ? `?${new URLSearchParams(given)}` : "";
}

export function go(address: string): void {
  location.hash = address;
}

/** Changes the address without a new entry in the history: a filter that is being typed. */
export function amend(address: string): void {
  history.replaceState(null, "", address);
  dispatchEvent(new HashChangeEvent("hashchange"));
}

export function useRoute(): Route {
  const [route, set] = useState(() => parse(location.hash));
  useEffect(() => {
    const changed = () => set(parse(location.hash));
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return route;
}
