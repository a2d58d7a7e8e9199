/** The documents of `pages.py`. */

export interface Listing {
  version: string;
  follow: boolean;
  runs: string[];
}

export interface Stage {
  name: string;
  key: string;
  step: number;
  training: boolean;
}

export interface Start {
  started?: string;
  command?: string;
  commit?: string | null;
  dirty?: boolean;
  host?: string;
  versions?: Record<string, string>;
  resumed_from_step?: number | null;
  ended?: string | null;
  outcome?: string | null;
}

export interface Evaluation {
  step: number;
  stage: string | null;
  success: number | null;
  low: number | null;
  high: number | null;
  episodes: number | null;
  turns: number | null;
}

export interface Setting {
  key: string;
  value: unknown;
  default?: unknown;
}

export interface Overview {
  starts: Start[];
  stages: Stage[];
  facts: Record<string, unknown>;
  steps: number | null;
  last_time: number | null;
  train: Record<string, (number | null)[]>;
  evaluations: Evaluation[];
  failures: Record<string, number>;
  set_aside: { task?: string; kind?: string; message?: string }[];
}

export interface Settings {
  settings: Setting[];
}

/** Columns; one without any value is absent. */
export interface Index {
  episode: number[];
  turns: number[];
  group?: number[];
  trial?: (number | null)[];
  task?: string[];
  kind?: string[];
  success?: boolean[];
  reward?: number[];
  ended?: string[];
}

export type Block =
  | { kind: "text"; text: string }
  | { kind: "list"; title?: string; items: string[] }
  | { kind: "room"; place: string; things: string[]; carrying?: string[] }
  | {
      kind: "page";
      title: string;
      items: { id?: string; title?: string; price?: string }[];
      buttons: string[];
    }
  | { kind: "call"; name: string; arguments: unknown; result?: string }
  | { kind: "code"; language?: string; text: string; output?: string }
  | { kind: "diff"; lines: string[] };

export interface Turn {
  observation: string;
  response: string;
  action: string | null;
  valid: boolean;
  feedback: string;
  weights: number[];
  reward?: number | null;
  hint?: string;
  notes?: { kind: string; text: string }[];
  seen: Block[];
  came_back: Block[];
}

export interface Episode {
  episode: number;
  group?: number;
  trial?: number;
  task: string;
  kind: string;
  success: boolean;
  reward: number;
  ended: string;
  preamble?: string;
  turns: Turn[];
}

export type Values = (number | null)[];

export interface TurnTokens {
  prompt?: string;
  tokens: string[];
  action?: [number, number] | null;
  advantage?: Values;
  rollout_logprob?: Values;
  teacher_logprob?: Values;
  weight?: Values;
  raw_weight?: Values;
  value?: Values;
  return?: Values;
  lag?: Values;
  share?: Values;
}

export interface Tokens {
  turns: Record<string, TurnTokens>;
}

export interface Timeline {
  start: number;
  episodes: number; // whose turns have times
  episode_seconds: number;
  engine_seconds: number;
  spans: { role: string; name: string; start: number; end: number }[];
}
