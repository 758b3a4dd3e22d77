// Requests to the server that has served this file.

const BASE = new URL("../api/", import.meta.url);

function headers() {
  // Airflow 3.1.0 keeps its token in the local storage; all later ones, and `air-executor ui`, in a cookie.
  let token = null;
  try {
    token = JSON.parse(localStorage.getItem("token"));
  } catch {
    token = null;
  }
  return typeof token === "string" ? { Authorization: `Bearer ${token}` } : {};
}

export async function call(path, options = {}) {
  const answer = await fetch(new URL(path, BASE), {
    credentials: "same-origin",
    ...options,
    headers: { ...headers(), ...options.headers },
  });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(typeof body.detail === "string" ? body.detail : `${answer.status} ${answer.statusText}`);
  return body;
}

export const stop = (id) => call(`runs/${id}/stop`, { method: "POST", headers: { "X-Air-Executor": "1" } });
