// Tables of runs, and one run.
import { useState } from "preact/hooks";
import { stop } from "./api.js";
import { count, duration, moment, size } from "./format.js";
import { html } from "./html.js";
import { Plot } from "./plot.js";
import { usePoll } from "./poll.js";

export const Trouble = ({ error }) => (error ? html`<p class="bad" role="alert">${error}</p>` : null);

export function Memory({ run }) {
  const limit = run.memory_limit_bytes;
  const part = limit && run.memory_bytes != null ? Math.min(1, run.memory_bytes / limit) : null;
  return html`${size(run.memory_bytes)}${limit ? ` of ${size(limit)}` : ""}
    ${part !== null && html`<div class="bar"><i class=${part > 0.9 ? "near" : ""} style=${`width:${part * 100}%`}></i></div>`}`;
}

export function Stop({ run, onDone }) {
  const [step, setStep] = useState("");
  const [error, setError] = useState(null);
  async function doStop() {
    setStep("asked");
    try {
      await stop(run.id);
      onDone?.();
    } catch (problem) {
      setError(problem.message);
      setStep("");
    }
  }
  if (step === "asked") return html`<span class="muted">is being stopped</span>`;
  if (step === "sure")
    return html`Stop it? <button onClick=${doStop} autofocus>Yes</button> <button onClick=${() => setStep("")}>No</button>`;
  return html`<button onClick=${() => setStep("sure")} aria-label=${`Stop ${run.label}`}>Stop</button><${Trouble} error=${error} />`;
}

const matches = (run, wanted) =>
  !wanted || [run.label, run.dag_run_id, run.state, run.host, run.id, run.reason].some((text) => text?.toLowerCase().includes(wanted));

export function Runs({ runs, isLive, onDone }) {
  const [wanted, setWanted] = useState("");
  const shown = runs.filter((run) => matches(run, wanted.trim().toLowerCase()));
  if (!runs.length) return html`<p class="muted">${isLive ? "Nothing runs." : "Nothing has ended yet."}</p>`;
  return html`
    <p>
      <input type="search" placeholder="Filter" aria-label="Filter runs" value=${wanted} onInput=${(event) => setWanted(event.target.value)} />
      <span class="muted"> ${shown.length === runs.length ? count(runs.length, "run") : `${shown.length} of ${count(runs.length, "run")}`}</span>
    </p>
    <div class="scroll">
      <table>
        <thead>
          <tr>
            <th>Task</th><th>Run</th><th>Try</th><th>Host</th><th>State</th><th class="number">Memory</th>
            <th class="number">CPU</th><th class="number">${isLive ? "Age" : "Lasted"}</th><th>${isLive ? "Action" : "Ended (UTC)"}</th><th>Reason</th>
          </tr>
        </thead>
        <tbody>
          ${shown.map(
            (run) => html`<tr key=${run.id}>
              <td>${run.label}</td>
              <td class="muted" title=${run.id}>${run.dag_run_id ?? run.id.slice(0, 8)}</td>
              <td>${run.try_number ?? "–"}</td>
              <td>${run.host ?? "–"}</td>
              <td class=${`state ${run.state}`}>${run.state}</td>
              <td class="number"><${Memory} run=${run} /></td>
              <td class="number">${duration(run.cpu_s)}</td>
              <td class="number">${duration(run.age_s)}</td>
              <td>${isLive ? run.may_stop && html`<${Stop} key=${run.id} run=${run} onDone=${onDone} />` : moment(run.ended_at)}</td>
              <td>${run.reason ?? ""}</td>
            </tr>`,
          )}
        </tbody>
      </table>
    </div>`;
}

function cpus(points) {
  return points.map((point, index) => Math.max(0, point.cpu_s - (index ? points[index - 1].cpu_s : 0)) / Math.max(point.lasts_s, 0.01));
}

export function Run({ run, dark, onDone }) {
  const { points } = run;
  return html`<section class="card">
    <div class="row">
      <span><b>Try ${run.try_number ?? "–"}</b> <span class=${`state ${run.state}`}>${run.state}</span></span>
      <span>${run.host ?? ""}</span>
      <span>memory <${Memory} run=${run} /></span>
      <span>CPU ${duration(run.cpu_s)}</span>
      <span>${run.is_over ? "lasted" : "for"} ${duration(run.age_s)}</span>
      <span class="muted">run ${run.id.slice(0, 8)}</span>
      ${run.may_stop && html`<span><${Stop} run=${run} onDone=${onDone} /></span>`}
    </div>
    ${run.reason && html`<p class=${run.state === "succeeded" ? "" : "bad"}>${run.reason}</p>`}
    ${points.length > 0
      ? html`<div class="plots">
          <${Plot} title="Memory" unit="MiB" dark=${dark} at=${points.map((each) => each.at_s)} values=${points.map((each) => each.memory_bytes / 1048576)}
            limit=${run.memory_limit_bytes ? run.memory_limit_bytes / 1048576 : null} />
          <${Plot} title="CPU" unit="CPUs" dark=${dark} at=${points.map((each) => each.at_s)} values=${cpus(points)} />
        </div>`
      : html`<p class="muted">It was too short to be measured over time.</p>`}
  </section>`;
}

export function Instance({ dagId, runId, taskId, mapIndex, dark }) {
  const query = new URLSearchParams({ dag_id: dagId, run_id: runId, task_id: taskId, map_index: mapIndex ?? -1 });
  const { data, error, again } = usePoll(`instance?${query}`, 3);
  return html`<main>
    <${Trouble} error=${error} />
    ${data?.runs.length === 0 && html`<p class="muted">AirExecutor has no run of this task on record here.</p>`}
    ${data?.runs.map((run) => html`<${Run} key=${run.id} run=${run} dark=${dark} onDone=${again} />`)}
  </main>`;
}
