// Stands before a program of Node.js: calls its default export with the input, and returns what
// comes of it on descriptor 3. A program without one is left to itself.
"use strict";
const { readFileSync, writeSync } = require("node:fs");
const { pathToFileURL } = require("node:url");
const { parse, stringify } = JSON;

function give(text) {
  for (let rest = Buffer.from(text); rest.length > 0; ) rest = rest.subarray(writeSync(3, rest));
}

setImmediate(async () => {
  const main = process.mainModule; // none where it is an ES module
  const made = main ? main.exports : (await import(pathToFileURL(process.argv[1]).href)).default;
  if (typeof made !== "function") return;
  const value = await made(parse(readFileSync(0, "utf8")));
  if (value === undefined) return;
  try {
    give(stringify(value) ?? "!the output is no JSON");
  } catch (error) {
    give(`!the output is no JSON: ${error.message}`);
  }
});
