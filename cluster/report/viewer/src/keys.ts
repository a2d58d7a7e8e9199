import { useEffect, useRef } from "preact/hooks";

export type Keys = Record<string, () => void>;

/** Handles single keys while the component is on the page, but not while a text is typed or a dialog is open. */
export function useKeys(keys: Keys): void {
  const latest = useRef(keys);
  latest.current = keys; // at once: effects run after the next frame, and keys may come faster
  useEffect(() => {
    const pressed = (event: KeyboardEvent) => {
      if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
      const target = event.target as HTMLElement;
      if (target.matches("input:not([type=checkbox]), select, textarea")) {
        if (event.key === "Escape") target.blur();
        return;
      }
      if ((event.key === "Enter" || event.key === " ") && target.matches("a, button, summary, input")) return;
      const handle = latest.current[event.key];
      if (handle) {
        event.preventDefault();
        handle();
      }
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, []);
}
