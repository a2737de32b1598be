// Shared by all views: elements, requests, numbers in words, the models.

export const state = { models: [], options: [] };

export const $ = (id) => document.getElementById(id);

/** An element with properties, `on...` listeners, attributes (`aria-...`, `data-...`, `role`) and children. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role" || name === "for") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

/** Shows an error in the one place where all are shown; an empty message removes it. */
export function showProblem(message = "") {
  $("problem").textContent = message;
  $("problem").hidden = !message;
}

async function send(path, body, signal) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  const response = await fetch(path, { ...options, signal });
  if (!response.ok) {
    const found = await response.json().catch(() => ({}));
    throw new Error(found.error?.message ?? `The server answered ${response.status}.`);
  }
  return response;
}

/** The JSON at a path; with a body it is posted. Errors carry the server's one line. */
export const request = async (path, body, signal) => (await send(path, body, signal)).json();

/** Calls `see(lines)` with the JSON lines of a response as they arrive, several at a time. */
export async function requestLines(path, body, signal, see) {
  const reader = (await send(path, body, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    if (lines.length) see(lines.map((line) => JSON.parse(line)));
  }
}

/** An error in words; fetch raises TypeError where the connection fails. */
export const problemOf = (error) => error instanceof TypeError ? "The server does not answer. Is tinylm play still running?" : error.message;

/** Runs `task(signal)`, of which at most one at a time, with its button to stop; shows its error. */
export class Task {
  constructor(stopButton) {
    this.button = stopButton;
    this.controller = null;
    stopButton?.addEventListener("click", () => this.stop());
  }

  get running() { return this.controller !== null; }

  stop() { this.controller?.abort(); }

  async run(task) {
    this.stop();
    const controller = this.controller = new AbortController();
    if (this.button) this.button.disabled = false;
    showProblem();
    try {
      await task(controller.signal);
    } catch (error) {
      if (!controller.signal.aborted) showProblem(problemOf(error));
    } finally {
      if (this.controller === controller) {
        this.controller = null;
        if (this.button) this.button.disabled = true;
      }
    }
  }
}

export const currentModel = () => state.models.find((each) => each.name === $("model").value);

export const count = (number, thing) => `${number.toLocaleString("en")} ${thing}${number === 1 ? "" : "s"}`;

export function percent(p) {
  if (p >= 0.9995) return p === 1 ? "100%" : ">99.9%";
  return p < 0.0005 ? "<0.1%" : `${(p * 100).toFixed(p < 0.1 ? 1 : 0)}%`;
}

/** Ctrl-Enter in a form's text area submits the form. */
export function submitByKey(form) {
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
}
