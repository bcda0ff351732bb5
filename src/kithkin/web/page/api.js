/* What the server is asked. Every refusal becomes an Error with the server's own sentence. */

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is “kithkin serve” still running?");
  }
  if (answer.ok) return answer;
  const { detail } = await answer.json().catch(() => ({}));
  const problem = new Error(detail || `The server answered with ${answer.status}.`);
  problem.retryAfter = answer.status === 503 ? Number(answer.headers.get("Retry-After")) : 0;
  throw problem;
}

function form(file, fields) {
  const data = new FormData();
  data.append("picture", file, file.name || "pasted.png");
  for (const [name, value] of Object.entries(fields)) data.append(name, value);
  return data;
}

export const about = async () => (await ask("/about")).json();

export const submit = async (file, fields, signal) =>
  (await ask("/jobs", { method: "POST", body: form(file, fields), signal })).json();

export const state = async (id, signal) => (await ask(`/jobs/${id}`, { signal })).json();

export const cancel = (id) => fetch(`/jobs/${id}`, { method: "DELETE", keepalive: true }).catch(() => {});

/* The file, the name that the server gives it, and what it has to say about it. */
export async function result(id, signal) {
  const answer = await ask(`/jobs/${id}/result`, { signal });
  const name = /filename\*=UTF-8''([^;]+)/.exec(answer.headers.get("Content-Disposition"))[1];
  const notes = JSON.parse(answer.headers.get("X-Kithkin-Notes") || "[]");
  return { blob: await answer.blob(), name: decodeURIComponent(name), notes };
}

export const neighbors = async (file, fields, signal) =>
  (await ask("/neighbors", { method: "POST", body: form(file, fields), signal })).json();
