import { useEffect } from "preact/hooks";

export type Keys = Record<string, () => void>;

/** Handles single keys while the component is on the page, but not while a text is typed or a dialog is open. */
export function useKeys(keys: Keys): void {
  useEffect(() => {
    const pressed = (event: KeyboardEvent) => {
      if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
      const target = event.target as HTMLElement;
      if (target.matches("input, select, textarea")) {
        if (event.key === "Escape") target.blur();
        return;
      }
      if (event.key === "Enter" && target.matches("a, button, summary")) return;
      const handle = keys[event.key];
      if (handle) {
        event.preventDefault();
        handle();
      }
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  });
}
