// The start of every program that Deno runs here: the data from the host, and the reply to it.
//
// stdout: one byte when it is ready; then the program's output; last the frame: the marker (32
//         characters), the length of a JSON document in bytes (8, hex), and the document with one
//         key: "output", "invalid" (the return value is not JSON), "error" (uncaught, exit code 1), or
//         "note" (a remark on an output that was printed).
// stderr: the program's output; last the marker, if stdout could not be written to.
// stdin:  48 characters of head (marker 32, bytes of code 8, bytes of the argument 8, all in hex), the
//         code, its argument (JSON: the input of a function, the arguments of a command),
//         and then the input, for a program that reads stdin itself.
//
// User code shares this realm, and may patch all of it. Functions used after it is loaded are saved
// here, before; the marker is in no object that a patched function could receive, and in no string
// that a heap snapshot would show. User code can still exit or print; for both the host trusts only
// its own findings.

const { stringify, parse } = JSON;
const { apply, getOwnPropertyDescriptor: describeProperty } = Reflect;
const { slice, padStart } = String.prototype;
const { toString: digits } = Number.prototype;
const Bytes = Uint8Array;
const bytesPrototype = Object.getPrototypeOf(Bytes.prototype);
const [bufferOf, lengthOf] = ["buffer", "byteLength"].map((name) => {
  const { get } = describeProperty(bytesPrototype, name);
  return (bytes) => apply(get, bytes, []);
});
const exit = Deno.exit;
const dispatch = globalThis.dispatchEvent.bind(globalThis);
const unload = new Event("unload");
const { stopImmediatePropagation: stopPropagation } = Event.prototype;
const read = Deno.stdin.readSync.bind(Deno.stdin);
const encoder = new TextEncoder();
const encode = encoder.encode.bind(encoder);
const decoder = new TextDecoder();
const MAX_ERROR_CHARS = 4000;

// Writes all of the bytes, or reports that it could not: user code may have closed the stream.
function writer(stream) {
  const write = stream.writeSync.bind(stream);
  return (bytes) => {
    try {
      const length = lengthOf(bytes);
      for (let at = 0; at < length; ) at += write(new Bytes(bufferOf(bytes), at));
      return true;
    } catch {
      return false;
    }
  };
}

// Deno's data about the main module describe the program.
const NAME = "workload.ts";
Object.defineProperty(Deno, "mainModule", { value: `file:///${NAME}`, enumerable: true });

const print = writer(Deno.stdout);
const complain = writer(Deno.stderr);
let marker = new Bytes();
let unused = ""; // the note for an input that was not read
let announce = () => {}; // notifies Node's exit listeners
let ended = false;

// The kernel keeps eight bits of an exit code; a failure must not become a success.
const kept = (code) => (typeof code === "number" && code !== 0 && (code & 255) === 0 ? 1 : code);

addEventListener("unload", (event) => {
  if (ended && event !== unload) apply(stopPropagation, event, []); // they have been notified
  const code = Deno.exitCode;
  if (kept(code) !== code) Deno.exitCode = 1;
  if (!ended && unused && left()) {
    ended = true;
    handOver("note", stringify(unused));
  }
});

// Is there unread input on stdin?
function left() {
  try {
    return read(new Bytes(1)) !== null;
  } catch {
    return false;
  }
}

function readExactly(count) {
  const bytes = new Bytes(count);
  for (let at = 0; at < count; ) {
    const got = read(bytes.subarray(at));
    if (got === null) exit(70); // the host has closed stdin
    at += got;
  }
  return bytes;
}

// Reports that everything is prepared, and waits for the one workload of this process.
function receive() {
  print(encode("\n"));
  marker = readExactly(32);
  const lengths = decoder.decode(readExactly(16));
  const code = readExactly(parseInt(lengths.slice(0, 8), 16));
  return { code, given: readExactly(parseInt(lengths.slice(8), 16)) };
}

// Writes the frame, once. The host trusts the exit code; the document is the program's own. Exit
// listeners are called before, so that their output is not part of it.
function end(key, json, exitCode) {
  ended = true;
  try {
    if (exitCode) Deno.exitCode = exitCode; // for listeners
    announce(exitCode);
    dispatch(unload);
  } catch {
    // it has been reported
  }
  if (handOver(key, json)) leave(exitCode);
  complain(marker); // the program has closed its stdout
  leave(1);
}

function handOver(key, json) {
  const frame = encode(`{"${key}":${json}}`);
  const length = apply(padStart, apply(digits, lengthOf(frame), [16]), [8, "0"]);
  return print(marker) && print(encode(length)) && print(frame);
}

// Makes a regular expression that works whatever happens to its prototype.
function steady(expression) {
  const { prototype } = RegExp;
  for (const [name, value] of [
    ["exec", prototype.exec],
    ["flags", expression.flags],
    [Symbol.match, prototype[Symbol.match]],
    [Symbol.replace, prototype[Symbol.replace]],
  ]) {
    Object.defineProperty(expression, name, { value });
  }
  return expression;
}

// Without a code, the one that the program has set is used. Node's own listeners may throw.
function leave(exitCode) {
  try {
    exit(exitCode || kept(Deno.exitCode));
  } catch {
    exit(exitCode || 1);
  }
}

// Ends a program that failed, with its error on stderr and in the frame.
function complaint(shown) {
  complain(encode(`Uncaught ${shown}\n`));
  if (!ended) end("error", stringify(apply(slice, shown, [0, MAX_ERROR_CHARS])), 1);
}
