// Stands before a program of Node.js: calls its default export with the input, and returns what
// comes of it on descriptor 3. A program without one is left to itself.
"use strict";
const { readFileSync, writeSync } = require("node:fs");
const { pathToFileURL } = require("node:url");
const { parse, stringify } = JSON;

function give(text) {
  for (let rest = Buffer.from(text); rest.length > 0; ) rest = rest.subarray(writeSync(3, rest));
}

let returned = true;
process.on("exit", (code) => {
  if (returned || code) return;
  writeSync(2, "The default export never returned.\n");
  process.exitCode = 13; // as Node.js ends where a module waits for ever
});

setImmediate(async () => {
  const main = process.mainModule; // none where it is an ES module
  const made = main ? main.exports : (await import(pathToFileURL(process.argv[1]).href)).default;
  if (typeof made !== "function") return;
  returned = false;
  const value = await made(parse(readFileSync(0, "utf8")));
  returned = true;
  if (value === undefined) return;
  try {
    give(stringify(value) ?? "!the output is no JSON");
  } catch (error) {
    give(`!the output is no JSON: ${error?.message ?? "it cannot be told"}`);
  }
});
