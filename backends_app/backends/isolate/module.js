// Calls the default export of an ES module, JavaScript or TypeScript, with the input.

const { then } = Promise.prototype;
const { replace, replaceAll } = String.prototype;
const ErrorType = Error;
const NO_FILES = "invalid URL: relative URL with a cannot-be-a-base base";
const { toString: errorToString } = Error.prototype;
const text = String;
const inspect = Deno.inspect;
const locate = (source) =>
  URL.createObjectURL(new Blob([source], { type: "application/typescript" }));
await import(locate("export default (ready: number) => ready")); // so that loader and compiler are
const resolved = Promise.resolve.bind(Promise);
const { code, given } = receive();
const input = parse(decoder.decode(given));
const url = locate(code);
const rename = (string) => apply(replaceAll, string, [url, NAME]);

// In every stack the module has the name that it has for people, also where the program shows one.
Object.defineProperty(Error, "prepareStackTrace", {
  configurable: true,
  writable: true,
  value: (error, frames) => {
    let stack = apply(errorToString, error, []);
    for (let at = 0; at < frames.length; at++) {
      if (frames[at].getFileName() !== import.meta.url) stack += `\n    at ${frames[at]}`;
    }
    return rename(stack);
  },
});

function succeed(value) {
  let json;
  try {
    json = value === undefined ? "null" : stringify(value);
  } catch (error) {
    end("invalid", stringify(`the return value is no JSON: ${message(error)}`), 1);
  }
  if (json === undefined) end("invalid", stringify(`a ${typeof value} is no JSON`), 1);
  end("output", json, 0);
}

function fail(error) {
  complaint(describe(error));
}

function message(error) {
  try {
    return apply(slice, text(error.message), [0, MOST_ERROR_CHARS]);
  } catch {
    return "it cannot be shown";
  }
}

// The error with its stack and causes, in the name that the user's file has for people. What could
// not be loaded has no stack, only a message that says where.
function describe(error) {
  try {
    const loaded = error instanceof ErrorType && error.code !== "ERR_MODULE_NOT_FOUND";
    const shown = loaded ? inspect(error, { colors: false }) : text(error?.message ?? error);
    return apply(replace, rename(shown), [NO_FILES, "a workload is one module, no other is there"]);
  } catch {
    return "exception that cannot be shown";
  }
}

let settled = false;

function start(module) {
  if (!("default" in module)) {
    settled = true; // a script: it ends when its event loop is empty
  } else if (typeof module.default !== "function") {
    complaint("Error: the default export must be a function; it is called with the input");
  } else {
    apply(then, apply(then, resolved(input), [module.default]), [succeed, fail]);
  }
}

addEventListener("error", (event) => {
  event.preventDefault();
  fail(event.error ?? apply(replace, event.message, [/^Uncaught /, ""])); // so speak workers
});
addEventListener("unhandledrejection", (event) => {
  event.preventDefault();
  fail(event.reason);
});
addEventListener("beforeunload", () => {
  if (!settled && !ended) complaint("Error: nothing is left to run, and the promise was never settled");
});
import(url).then(start, fail);
