// Launchers, the budget, and what waits.
import { count, duration, moment, size } from "./format.js";
import { html } from "./html.js";

function Budget({ budget }) {
  if (!budget) return null;
  const of = budget.memory_bytes;
  const part = of ? Math.min(1, budget.memory_taken_bytes / of) : null;
  return html`<section class="card" aria-label="Budget">
    <b>Budget:</b> ${size(budget.memory_taken_bytes)}${of ? ` of ${size(of)}` : ""} taken${budget.cpus != null && `, ${budget.cpus_taken} of ${budget.cpus} CPUs`}, by ${count(budget.runs, "run")}
    ${part !== null && html`<div class="bar"><i class=${part > 0.9 ? "near" : ""} style=${`width:${part * 100}%`}></i></div>`}
  </section>`;
}

function Waiting({ waiting }) {
  if (!waiting.length) return null;
  return html`<section class="card" aria-label="Waiting">
    <b>${waiting.length === 1 ? "1 waits" : `${waiting.length} wait`}</b>
    <table><tbody>
      ${waiting.map(
        (each) => html`<tr>
          <td>${each.name}</td><td class="muted">since ${moment(each.since)} UTC</td>
          <td>${each.why ?? `${each.gpus} of ${each.of} GPUs to be free`}</td>
        </tr>`,
      )}
    </tbody></table>
  </section>`;
}

export function Machine({ found }) {
  return html`
    ${found.launchers.map(
      (each) => html`<p class="muted">launcher ${each.key}: pid ${each.pid}, version ${each.version}, ${each.launch}, up ${duration(each.age_s)}, ${count(each.runners, "runner")}
        ${(each.troubles ?? []).map((trouble) => html`<br /><span class="bad">${trouble}</span>`)}</p>`,
    )}
    <${Budget} budget=${found.budget} />
    <${Waiting} waiting=${found.waiting} />`;
}
