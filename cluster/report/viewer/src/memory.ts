/** Choices that outlive a page, where the browser keeps any: it may refuse to, for files or on demand. */

export function recall(name: string): string | null {
  try {
    return localStorage.getItem(`hindsight-${name}`);
  } catch (error) {
    if (error instanceof DOMException) return null;
    throw error;
  }
}

export function keep(name: string, value: string): void {
  try {
    localStorage.setItem(`hindsight-${name}`, value);
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
  }
}
