// Runs one workload inside a Deno process and hands its output to the host.
//
// stdin:  48 characters of head (marker 32, bytes of code 8, bytes of input 8, all in hex), the
//         code, the input, and then the input once more, for a program that reads stdin itself.
// stdout: whatever the program prints; last, after the marker, one JSON document with one key:
//         "output", "invalid" (the return value is no JSON) or "error" (uncaught, exit code 1).
//
// User code shares this realm, so what is used after it was loaded is taken here, before. It can
// still exit or print; the host believes its own eyes about both.

const { stringify, parse } = JSON;
const { apply } = Reflect;
const { then } = Promise.prototype;
const { replaceAll, slice } = String.prototype;
const ErrorType = Error;
const text = String;
const inspect = Deno.inspect;
const exit = Deno.exit;
const read = Deno.stdin.readSync.bind(Deno.stdin);
const encoder = new TextEncoder();
const encode = encoder.encode.bind(encoder);
const decoder = new TextDecoder();
const MOST_ERROR_CHARS = 4000;

function readExactly(count) {
  const bytes = new Uint8Array(count);
  for (let at = 0; at < count; ) {
    const got = read(bytes.subarray(at));
    if (got === null) exit(70); // the host went away
    at += got;
  }
  return bytes;
}

// Writes all of a string, or says that it could not: user code may have closed the stream.
function writer(stream) {
  const write = stream.writeSync.bind(stream);
  const { subarray } = Uint8Array.prototype;
  return (string) => {
    try {
      let bytes = encode(string);
      while (bytes.length > 0) bytes = apply(subarray, bytes, [write(bytes)]);
      return true;
    } catch {
      return false;
    }
  };
}

const print = writer(Deno.stdout);
const complain = writer(Deno.stderr);

const head = decoder.decode(readExactly(48));
const marker = head.slice(0, 32);
const code = readExactly(parseInt(head.slice(32, 40), 16));
const input = parse(decoder.decode(readExactly(parseInt(head.slice(40, 48), 16))));
const url = URL.createObjectURL(new Blob([code], { type: "application/typescript" }));
let settled = false;

function end(key, json, exitCode) {
  settled = true;
  exit(print(`${marker}{"${key}":${json}}`) ? exitCode : 1);
}

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

function complaint(shown) {
  complain(`Uncaught ${shown}\n`);
  end("error", stringify(apply(slice, shown, [0, MOST_ERROR_CHARS])), 1);
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
    return apply(replaceAll, shown, [url, "workload.ts"]);
  } catch {
    return "exception that cannot be shown";
  }
}

function start(module) {
  if (!("default" in module)) {
    settled = true; // a script: it ends when its event loop is empty
  } else if (typeof module.default !== "function") {
    complaint("Error: the default export must be a function; it is called with the input");
  } else {
    apply(then, apply(then, Promise.resolve(input), [module.default]), [succeed, fail]);
  }
}

addEventListener("error", (event) => {
  event.preventDefault();
  fail(event.error);
});
addEventListener("unhandledrejection", (event) => {
  event.preventDefault();
  fail(event.reason);
});
addEventListener("beforeunload", () => {
  if (!settled) complaint("Error: nothing is left to run, and the promise was never settled");
});
import(url).then(start, fail);
