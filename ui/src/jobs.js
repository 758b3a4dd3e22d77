// Jobs of the standalone engine: their progress, and the tree of their tasks.
import { useState } from "preact/hooks";
import { count, moment } from "./format.js";
import { html } from "./html.js";
import { usePoll } from "./poll.js";
import { Trouble } from "./runs.js";

function Progress({ job }) {
  const part = (count) => `width:${job.tasks ? (100 * count) / job.tasks : 0}%`;
  return html`<div class="bar" style="display:flex" role="progressbar" aria-valuemin="0" aria-valuemax=${job.tasks} aria-valuenow=${job.completed}>
    <i style=${`${part(job.completed)};background:var(--good)`}></i><i style=${`${part(job.failed)};background:var(--bad)`}></i>
    <i style=${part(job.running)}></i>
  </div>`;
}

function branches(tasks) {
  // A task stands below the one that has queued it, or else below the last that it waits for.
  const ids = new Set(tasks.map((task) => task.id));
  const below = new Map([[null, []]]);
  for (const task of tasks) {
    const parent = [task.queued_by, ...[...task.dependencies].reverse()].find((id) => id && id !== task.id && ids.has(id)) ?? null;
    if (!below.has(parent)) below.set(parent, []);
    below.get(parent).push(task);
  }
  return below;
}

// Deeper ones stand side by side: nobody can read a list of a thousand levels.
const DEEPEST = 12;

function all(below, tasks) {
  const found = [];
  const left = [...tasks].reverse();
  while (left.length) {
    const task = left.pop();
    found.push(task);
    left.push(...[...(below.get(task.id) ?? [])].reverse());
  }
  return found;
}

function Branch({ below, of, depth = 0 }) {
  const isDeepest = depth >= DEEPEST;
  const tasks = isDeepest ? all(below, below.get(of) ?? []) : below.get(of);
  if (!tasks?.length) return null;
  return html`<ul class="tree">
    ${tasks.map(
      (task) => html`<li key=${task.id}>
        <span class=${`state ${task.status}`}>${task.status}</span> ${task.id}
        ${task.tries > 1 && html`<span class="muted"> try ${task.tries}</span>`}
        ${task.error && html`<span class="bad"> ${task.error}</span>`}
        ${!isDeepest && html`<${Branch} below=${below} of=${task.id} depth=${depth + 1} />`}
      </li>`,
    )}
  </ul>`;
}

function Job({ name }) {
  const { data, error } = usePoll(`jobs/${encodeURIComponent(name)}`, 3);
  return html`<section class="card" aria-label=${`Job ${name}`}>
    <b>${name}</b> <${Trouble} error=${error} />
    ${data && html`<span class=${`state ${data.state}`}>${data.state}</span> ${data.error ?? ""}<${Branch} below=${branches(data.tasks)} of=${null} />
      ${data.left_out > 0 && html`<p class="muted">and ${count(data.left_out, "task")} more</p>`}`}
  </section>`;
}

export function Jobs() {
  const { data, error } = usePoll("jobs", 3);
  const [open, setOpen] = useState(null);
  return html`<${Trouble} error=${error} />
    ${data?.jobs.length === 0 && html`<p class="muted">There are no jobs.</p>`}
    ${open && html`<${Job} key=${open} name=${open} />`}
    ${data?.jobs.length > 0 &&
    html`<div class="scroll"><table>
      <thead><tr><th>Job</th><th>State</th><th>Progress</th><th class="number">Completed</th><th class="number">Failed</th><th class="number">Running</th><th>Changed (UTC)</th><th></th></tr></thead>
      <tbody>
        ${data.jobs.map(
          (job) => html`<tr key=${job.name}>
            <td><button aria-expanded=${open === job.name} onClick=${() => setOpen(open === job.name ? null : job.name)}>${job.name}</button></td>
            <td class=${`state ${job.state}`}>${job.state}${job.paused ? ", paused" : ""}</td>
            <td><${Progress} job=${job} /></td>
            <td class="number">${job.completed} of ${job.tasks}</td><td class="number">${job.failed}</td><td class="number">${job.running}</td>
            <td>${moment(job.updated_at)}</td>
            <td class="bad">${job.error ?? (job.has_manager === false ? "no manager works on it" : "")}</td>
          </tr>`,
        )}
      </tbody>
    </table></div>`}
    ${data?.left_out > 0 && html`<p class="muted">and ${data.left_out} that have ended</p>`}`;
}
