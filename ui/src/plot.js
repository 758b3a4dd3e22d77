// Plots of what a run used over time.
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import { html } from "./html.js";

function draw(place, { title, unit, at, values, limit }) {
  const style = getComputedStyle(place);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = { stroke: style.color, grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
  const series = [{}, { label: title, stroke: "#3182ce", width: 2, fill: "#3182ce22" }];
  const data = [at, values];
  if (limit != null) {
    series.push({ label: "limit", stroke: "#e53e3e", width: 1, dash: [6, 4] });
    data.push(at.map(() => limit));
  }
  return new uPlot(
    {
      title: `${title} (${unit})`,
      width: 420,
      height: 180,
      scales: { x: { time: false }, y: { range: (_, low, high) => [0, Math.max(high * 1.1, 0.1)] } },
      axes: [{ ...axis, values: (_, all) => all.map((value) => `${value} s`) }, { ...axis, size: 60 }],
      series,
      legend: { show: false },
      cursor: { show: false },
    },
    data,
    place,
  );
}

export function Plot(props) {
  const place = useRef(null);
  useEffect(() => {
    const plot = draw(place.current, props);
    return () => plot.destroy();
  }, [props.at.length, props.at.at(-1), props.limit, props.dark]);
  return html`<div ref=${place} role="img" aria-label=${`${props.title} over time, at most ${Math.max(...props.values).toFixed(1)} ${props.unit}`}></div>`;
}
