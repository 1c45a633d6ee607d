// Stands before a program of Node.js: calls its default export with the input, and returns what
// comes of it on descriptor 3. A program without one is left to itself.
//
// Inline code is JavaScript where it parses as that, and TypeScript otherwise. One byte is written
// to the descriptor before the program is loaded, since Node.js takes a while to start.
// What it returns there is JSON, or a letter and a text: `?` and what is odd about a program that
// has no default export, `!` and why the value is no JSON; after a line's end, `!` and what was
// thrown. All of it is the program's own word, which may write there, too.
"use strict";
const { readFileSync, readSync, writeFileSync, writeSync } = require("node:fs");
const { stripTypeScriptTypes } = require("node:module");
const { pathToFileURL } = require("node:url");
const { inspect } = require("node:util");
const { isNativeError } = require("node:util/types");
const { compileFunction, SourceTextModule } = require("node:vm");
const { isMainThread } = require("node:worker_threads");
const { parse, stringify } = JSON;
const { reallyExit } = process;
const MOST_ERROR_CHARS = 4000;
const INLINE = "/work/main.js";
const OF_COMMONJS = ["exports", "require", "module", "__filename", "__dirname"];
const WHERE = /^[^\n]+:\d+\n[^\n]*\n *\^+\n+/; // what Node.js puts before an error of the parser
const AGENT = 1; // the process that has started the program, and nothing that the program starts

function give(text) {
  try {
    for (let rest = Buffer.from(text); rest.length > 0; ) rest = rest.subarray(writeSync(3, rest));
  } catch {
    // the program has closed it
  }
}

function isJavaScript(source) {
  const parsers = [
    () => compileFunction(source.replace(/^#!.*/, ""), OF_COMMONJS),
    () => new SourceTextModule(source),
  ];
  return parsers.some((parse) => {
    try {
      return parse() !== undefined;
    } catch {
      return false;
    }
  });
}

// Types become blanks, so that every line stays where it is; what needs code, as an enum does, gets
// it, and a source map. What is neither is left for Node.js to say what is wrong with it.
function strip() {
  const source = readFileSync(INLINE, "utf8");
  if (isJavaScript(source)) return;
  for (const options of [{ mode: "strip" }, { mode: "transform", sourceMap: true }]) {
    try {
      writeFileSync(INLINE, stripTypeScriptTypes(source, options));
      return;
    } catch {
      // the next one knows more
    }
  }
}

let waits = false; // for the default export to return
let drained = false; // nothing is left to run
let odd = null; // about a module without a default export
let thrown = "";

function shown(error) {
  try {
    const text = inspect(error)
      .replace(/\n[^\n]*\/vulcan\/returned\.cjs[^\n)]*\)?/g, "")
      .replace(WHERE, "");
    return text.slice(0, MOST_ERROR_CHARS);
  } catch {
    return "an exception that cannot be shown";
  }
}

// Of an exit code the kernel keeps one byte, so that 256 would be a success.
function kept(code) {
  return code && !(code & 255) ? 1 : code;
}

function keep() {
  if (kept(process.exitCode) !== process.exitCode) process.exitCode = 1;
}

function isUnread() {
  try {
    const bytes = Buffer.alloc(8);
    const length = readSync(0, bytes, 0, 8, null);
    return length > 0 && bytes.toString("utf8", 0, length).trim() !== "null";
  } catch {
    return false; // the program has it
  }
}

function ended(code) {
  if (waits && drained && !code) {
    thrown = "the default export never returned";
    writeSync(2, `${thrown}\n`);
    process.exitCode = 13; // as Node.js ends where a module waits for ever
  }
  if (thrown && process.exitCode) give(`\n!${thrown}`);
  if (code || odd === null) return;
  if (odd) give(`?the module has no default export, so nothing was called; it exports ${odd}`);
  else if (isUnread()) give("?the module has no default export, and has not read its input");
}

async function call() {
  let made;
  try {
    const main = process.mainModule; // none where it is an ES module
    const found = main ? main.exports : await import(pathToFileURL(process.argv[1]).href);
    const isES = !main || found?.__esModule;
    made = isES ? found.default : found;
    if (isES && made !== undefined && typeof made !== "function") {
      made = () => {
        throw new Error("the default export must be a function; it is called with the input");
      };
    }
    if (typeof made !== "function") odd = typeof found?.handler === "function" ? "handler" : "";
  } catch {
    return; // Node.js itself tells of it
  }
  if (typeof made !== "function") return;
  waits = true;
  let value;
  try {
    value = await made(parse(readFileSync(0, "utf8")));
  } catch (error) {
    waits = false;
    if (isNativeError(error)) throw error;
    process.nextTick(() => {
      throw error; // as it is: of a promise, Node.js would tell only that it was rejected
    });
    return;
  }
  waits = false;
  if (value === undefined) return;
  try {
    give(stringify(value) ?? "!the output is no JSON");
  } catch (error) {
    give(`!the output is no JSON: ${error?.message ?? "it cannot be told"}`);
  }
}

if (isMainThread && process.ppid === AGENT) {
  if (process.argv[1] === INLINE) strip();
  give(".");
  process.reallyExit = (code) => reallyExit.call(process, kept(code));
  process.on("exit", ended);
  process.on("beforeExit", () => {
    drained = true;
    process.off("exit", keep);
    process.on("exit", keep); // the last one
  });
  process.on("uncaughtExceptionMonitor", (error) => {
    if (process.listenerCount("uncaughtException") === 0) thrown = shown(error);
  });
  setImmediate(call);
}
