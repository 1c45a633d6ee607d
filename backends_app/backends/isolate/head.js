// The beginning of every program that Deno runs here: what the host sends, and how it is answered.
//
// stdin:  48 characters of head (marker 32, bytes of code 8, bytes of input 8, all in hex), the
//         code, the input, and then the input once more, for a program that reads stdin itself.
// stdout: whatever the program prints; last, after the marker, one JSON document with one key:
//         "output", "invalid" (the return value is no JSON) or "error" (uncaught, exit code 1).
//
// User code may share this realm, so what is used after it was loaded is taken here, before. It can
// still exit or print; the host believes its own eyes about both.

const { stringify, parse } = JSON;
const { apply } = Reflect;
const { slice } = String.prototype;
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
const given = readExactly(parseInt(head.slice(40, 48), 16));

let settled = false;

// The last word. The exit code is what the host believes; the document is the program's own.
function end(key, json, exitCode) {
  settled = true;
  exit(print(`${marker}{"${key}":${json}}`) ? exitCode : 1);
}

// Ends a program that failed, with its words on stderr and in the answer.
function complaint(shown) {
  complain(`Uncaught ${shown}\n`);
  end("error", stringify(apply(slice, shown, [0, MOST_ERROR_CHARS])), 1);
}
