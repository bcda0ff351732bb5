/* What the server is asked. Every refusal becomes an Error with the server's own sentence and its status; where no
   answer came, `offline` is set. */

const unanswered = (error) => {
  if (error.name === "AbortError") return error;
  const problem = new Error("The server does not answer. Is “kithkin serve” still running?");
  problem.offline = true;
  return problem;
};

/* The answer's body is read here, because the network may also be cut in the middle of it. */
async function ask(path, options = {}, read = async () => null) {
  let answer, body;
  try {
    answer = await fetch(path, options);
    body = answer.ok ? await read(answer) : await answer.json().catch(() => ({}));
  } catch (error) {
    throw unanswered(error);
  }
  if (answer.ok) return body;
  const problem = new Error(body.detail || `The server answered with ${answer.status}.`);
  problem.status = answer.status;
  problem.retryAfter = answer.status === 503 ? Number(answer.headers.get("Retry-After")) : 0;
  throw problem;
}

const json = (answer) => answer.json();

function form(file, fields) {
  const data = new FormData();
  data.append("picture", file, file.name || "pasted.png");
  for (const [name, value] of Object.entries(fields)) data.append(name, value);
  return data;
}

/* A name for a job that no other one has. */
export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export const about = () => ask("/about", {}, json);

export const submit = (file, fields, signal) => ask("/jobs", { method: "POST", body: form(file, fields), signal }, json);

export const state = (id, signal) => ask(`/jobs/${id}`, { signal }, json);

/* Restore what lies around this place, "x,y", next. */
export function look(id, view) {
  const data = new FormData();
  data.append("view", view);
  return ask(`/jobs/${id}/view`, { method: "PUT", body: data });
}

/* The index-th finished tile. */
export const tile = (id, index) => ask(`/jobs/${id}/tiles/${index}`, {}, (answer) => answer.blob());

/* Give a job up; tried again, because the request that began it may still be on its way, and the network cut. */
export async function cancel(id) {
  for (const seconds of [0, 1, 3, 9]) {
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
    try {
      const { ok, status } = await fetch(`/jobs/${id}`, { method: "DELETE", keepalive: true });
      if (ok || (status === 404 && seconds)) return;
    } catch {
      continue;
    }
  }
}

/* The file, the name that the server gives it, and what it has to say about it. */
export const result = (id, signal) =>
  ask(`/jobs/${id}/result`, { signal }, async (answer) => {
    const name = /filename\*=UTF-8''([^;]+)/.exec(answer.headers.get("Content-Disposition"))[1];
    const notes = JSON.parse(answer.headers.get("X-Kithkin-Notes") || "[]");
    return { blob: await answer.blob(), name: decodeURIComponent(name), notes };
  });

export const neighbors = (file, fields, signal) => ask("/neighbors", { method: "POST", body: form(file, fields), signal }, json);
