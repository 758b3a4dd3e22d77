// The pages. In Airflow its React mounts them: see air_executor/airflow/plugin.py. `air-executor ui` calls mount().
// They live in a shadow root, so that neither the host's styles nor ours reach each other.
import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { useToken } from "./api.js";
import uplotStyle from "uplot/dist/uPlot.min.css";
import { html } from "./html.js";
import { Jobs } from "./jobs.js";
import { Machine } from "./machine.js";
import { usePoll } from "./poll.js";
import { Instance, Runs, Trouble } from "./runs.js";
import style from "./style.css";

const TABS = { runners: "Runners", ended: "Ended", jobs: "Jobs" };

function Live() {
  const { data, error, again } = usePoll("runs", 2);
  return html`<${Trouble} error=${error} />${data && html`<${Machine} found=${data} /><${Runs} runs=${data.runs} isLive onDone=${again} />`}`;
}

function Ended() {
  const { data, error } = usePoll("ended", 5);
  return html`<${Trouble} error=${error} />${data && html`<${Runs} runs=${data.runs} />`}`;
}

function Pages() {
  const [tab, setTab] = useState("runners");
  function onKeyDown(event) {
    const names = Object.keys(TABS);
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = names[(names.indexOf(tab) + step + names.length) % names.length];
    setTab(next);
    event.currentTarget.querySelector(`[data-tab=${next}]`).focus();
  }
  return html`<main>
    <div class="tabs" role="tablist" onKeyDown=${onKeyDown}>
      ${Object.entries(TABS).map(
        ([name, title]) =>
          html`<button role="tab" data-tab=${name} aria-selected=${tab === name} tabindex=${tab === name ? 0 : -1} onClick=${() => setTab(name)}>${title}</button>`,
      )}
    </div>
    <div role="tabpanel">${tab === "runners" ? html`<${Live} />` : tab === "ended" ? html`<${Ended} />` : html`<${Jobs} />`}</div>
  </main>`;
}

const isDark = () => document.documentElement.classList.contains("dark");

function Themed({ root, children }) {
  const [dark, setDark] = useState(isDark());
  useEffect(() => {
    const watcher = new MutationObserver(() => setDark(isDark()));
    watcher.observe(document.documentElement, { attributeFilter: ["class"] });
    return () => watcher.disconnect();
  }, []);
  root.host.classList.toggle("dark", dark);
  return children(dark);
}

// Show the runs of a task instance, or all pages, in an element. Returns a function that removes them.
export function mount(element, props = {}) {
  if (props.token) useToken(props.token);
  const root = element.shadowRoot ?? element.attachShadow({ mode: "open" });
  const content = (dark) => (props.taskId ? html`<${Instance} ...${props} dark=${dark} />` : html`<${Pages} />`);
  render(html`<style>${uplotStyle}${style}</style><${Themed} root=${root}>${content}<//>`, root);
  return () => render(null, root);
}

// A component for the host's React.
function hosted(props) {
  const { createElement, useEffect: useHostEffect, useRef } = globalThis.React;
  const place = useRef(null);
  const { dagId, runId, taskId, mapIndex } = props;
  useHostEffect(() => mount(place.current, { dagId, runId, taskId, mapIndex }), [dagId, runId, taskId, mapIndex]);
  return createElement("div", { ref: place });
}

globalThis.AirExecutor = (props) => hosted({ ...props, taskId: undefined });
globalThis.Runner = hosted;
globalThis.AirflowPlugin = hosted;
