export function number(value: number | null | undefined, digits = 3): string {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1000 ? value.toFixed(0) : size >= 0.001 ? String(Number(value.toPrecision(digits))) : value.toExponential(1);
  return text.replaceAll("-", "−");
}

export function signed(value: number | null | undefined, digits = 3): string {
  return value !== null && value !== undefined && value > 0 ? `+${number(value, digits)}` : number(value, digits);
}

export function percent(value: number | null | undefined, digits = 0): string {
  return value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)}\u00a0%`;
}

export function seconds(value: number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  if (value > 0 && value < 0.1) return `${number(1000 * value, 2)} ms`;
  if (value < 120) return `${number(value)} s`;
  return value < 7200 ? `${(value / 60).toFixed(1)} min` : `${(value / 3600).toFixed(1)} h`;
}

export function mean(values: (number | null | undefined)[]): number | null {
  const given = values.filter((value): value is number => value !== null && value !== undefined);
  return given.length ? given.reduce((sum, value) => sum + value, 0) / given.length : null;
}

export function plural(count: number, word: string): string {
  return `${count.toLocaleString("en-US")} ${word}${count === 1 ? "" : "s"}`;
}
