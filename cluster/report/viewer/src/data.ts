/** Documents are scripts that call `hindsight(path, text)`: a page on file:// can load scripts, and nothing else. */

import { useEffect, useState } from "preact/hooks";

type Waiting = { resolve: (document: unknown) => void; reject: (error: Error) => void };

const known = new Map<string, Promise<unknown>>();
const waiting = new Map<string, Waiting>();
let asked = 0;

(window as unknown as { hindsight: (path: string, text: string) => void }).hindsight = (path, text) => {
  const document = JSON.parse(text) as { error?: string };
  if (document.error) waiting.get(path)?.reject(new Error(document.error));
  else waiting.get(path)?.resolve(document);
};

function request(path: string, again: boolean): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    const address = path.split("/").map(encodeURIComponent).join("/");
    script.src = `data/${address}.js${again ? `?${++asked}` : ""}`;
    const settled = () => {
      script.remove();
      waiting.delete(path);
    };
    waiting.set(path, {
      resolve: (value) => (settled(), resolve(value)),
      reject: (error) => (settled(), reject(error)),
    });
    script.onerror = () =>
      waiting.get(path)?.reject(new Error(`Nothing was recorded here, or the server has ended (${path}).`));
    document.head.append(script);
  });
}

/** A document; asked for once, and again if it was refused. */
export function load<T>(path: string): Promise<T> {
  let found = known.get(path);
  if (!found) {
    found = request(path, false);
    known.set(path, found);
    found.catch(() => known.delete(path));
  }
  return found as Promise<T>;
}

export interface Loaded<T> {
  value: T | null;
  error: string | null;
}

/** A document as state. With `every` (ms) it is asked for again and again, and the last one stays meanwhile. */
export function useDocument<T>(path: string | null, every = 0): Loaded<T> {
  const [state, set] = useState<Loaded<T> & { path: string | null }>({ path: null, value: null, error: null });
  useEffect(() => {
    if (path === null) return;
    let current = true;
    const show = (document: Promise<T>) =>
      document.then(
        (value) => current && set({ path, value, error: null }),
        (error: Error) => current && set((last) => ({ path, value: last.path === path ? last.value : null, error: error.message })),
      );
    show(load<T>(path));
    if (!every) return () => void (current = false);
    const timer = setInterval(() => {
      if (!document.hidden && !waiting.has(path)) show(request(path, true) as Promise<T>);
    }, every);
    return () => {
      current = false;
      clearInterval(timer);
    };
  }, [path, every]);
  return state.path === path ? state : { value: null, error: null };
}

/** Several documents as state, null until each is there. With `every` (ms) they are asked for again and again. */
export function useDocuments<T>(paths: string[], every = 0): (T | null)[] {
  const key = paths.join("\n");
  const [found, set] = useState<Record<string, T>>({});
  useEffect(() => {
    let current = true;
    const look = (again: boolean) =>
      key.split("\n").forEach((path) => {
        if (again && (document.hidden || waiting.has(path))) return;
        const show = (value: T) => current && set((last) => ({ ...last, [path]: value }));
        // Its own page says why a document cannot be had.
        (again ? (request(path, true) as Promise<T>) : load<T>(path)).then(show, () => undefined);
      });
    look(false);
    const timer = every ? setInterval(() => look(true), every) : undefined;
    return () => {
      current = false;
      clearInterval(timer);
    };
  }, [key, every]);
  return paths.map((path) => found[path] ?? null);
}
