// Requests to the server that has served this file.

const BASE = new URL("../api/", import.meta.url);

// Of `air-executor ui`.
let token = null;

export function useToken(value) {
  token = value;
}

// Airflow 3.1.0 keeps its token here; all later versions have it in a cookie, and may have left an old one here.
function formerToken() {
  try {
    const found = JSON.parse(localStorage.getItem("token"));
    return typeof found === "string" ? found : null;
  } catch {
    return null;
  }
}

function ask(path, options, bearer) {
  const headers = { ...options.headers, ...(bearer ? { Authorization: `Bearer ${bearer}` } : {}) };
  return fetch(new URL(path, BASE), { credentials: "same-origin", ...options, headers });
}

export async function call(path, options = {}) {
  let answer = await ask(path, options, token);
  if (answer.status === 401 && !token && formerToken()) answer = await ask(path, options, formerToken());
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(typeof body.detail === "string" ? body.detail : `${answer.status} ${answer.statusText}`);
  return body;
}

export const stop = (id) => call(`runs/${id}/stop`, { method: "POST", headers: { "X-Air-Executor": "1" } });
