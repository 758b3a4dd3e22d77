// Values as people read them.

export const size = (bytes) => (bytes == null ? "–" : `${Math.round(bytes / 1048576).toLocaleString("en")} MiB`);

export function duration(seconds) {
  if (seconds == null) return "–";
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes}m ${Math.floor(seconds % 60)}s` : `${Math.floor(minutes / 60)}h ${minutes % 60}m`;
}

export const moment = (text) => (text ? text.slice(0, 19).replace("T", " ") : "–");

export const count = (number, what) => `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;
