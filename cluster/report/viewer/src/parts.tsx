/** Small pieces that several pages use. */

import type { ComponentChildren } from "preact";
import type { Block } from "./types";

export function Outcome({ success }: { success: boolean | undefined }) {
  if (success === undefined) return <span class="quiet">–</span>;
  return <span class={success ? "outcome yes" : "outcome no"}>{success ? "✓ success" : "✗ failure"}</span>;
}

export function Tile({ title, value, note }: { title: string; value: string; note?: ComponentChildren }) {
  return (
    <div class="tile">
      <dt>{title}</dt>
      <dd><strong>{value}</strong>{note && <span class="quiet"> {note}</span>}</dd>
    </div>
  );
}

export function Drawn({ blocks }: { blocks: Block[] }) {
  return <>{blocks.map((block, at) => <Draw key={at} block={block} />)}</>;
}

function Draw({ block }: { block: Block }) {
  switch (block.kind) {
    case "text":
      return <div class="text">{block.text}</div>;
    case "list":
      return (
        <div class="block">
          {block.title && <h4>{block.title}</h4>}
          <ul class="plain">{block.items.map((item, at) => <li key={at}>{item}</li>)}</ul>
        </div>
      );
    case "room":
      return (
        <div class="block">
          <h4>{block.place}</h4>
          <Chips items={block.things} />
          {block.carrying && block.carrying.length > 0 && <p class="carrying">carrying <Chips items={block.carrying} /></p>}
        </div>
      );
    case "page":
      return (
        <div class="block">
          <h4>{block.title}</h4>
          {block.items.length > 0 && (
            <table class="plain"><tbody>
              {block.items.map((item, at) => (
                <tr key={at}><td><code>{item.id}</code></td><td>{item.title}</td><td class="figure">{item.price}</td></tr>
              ))}
            </tbody></table>
          )}
          <Chips items={block.buttons} />
        </div>
      );
    case "call":
      return (
        <div class="block">
          <code class="call">{block.name}({argumentsOf(block.arguments)})</code>
          {block.result !== undefined && <div class="text result">{block.result}</div>}
        </div>
      );
    case "code":
      return (
        <div class="block">
          <pre>{block.text}</pre>
          {block.output && <div class="text result">{block.output}</div>}
        </div>
      );
    case "diff":
      return (
        <div class="block diff">
          {block.lines.map((line, at) => (
            <div key={at} class={line.startsWith("+") ? "plus" : line.startsWith("-") ? "minus" : ""}>{line}</div>
          ))}
        </div>
      );
    default:
      return <pre class="text">{JSON.stringify(block, null, 1)}</pre>;
  }
}

function argumentsOf(given: unknown): string {
  if (given === null || typeof given !== "object") return given === undefined ? "" : JSON.stringify(given);
  return Object.entries(given).map(([name, value]) => `${name}=${JSON.stringify(value)}`).join(", ");
}

function Chips({ items }: { items: string[] }) {
  return <span class="chips">{items.map((item, at) => <span key={at} class="chip">{item}</span>)}</span>;
}
