// Runs a WASI command module (preview 1); it reads the input from stdin like any program.

import { WASI } from "node:wasi";

process.emitWarning = () => {}; // node:wasi calls itself experimental on every stderr

const { code } = receive();
try {
  const wasi = new WASI({ version: "preview1", args: ["workload"], returnOnExit: true });
  const module = await WebAssembly.compile(code);
  const instance = await WebAssembly.instantiate(module, wasi.getImportObject());
  if (typeof instance.exports._start !== "function") {
    complaint("LinkError: the module exports no function _start, so it is no WASI command");
  }
  const exitCode = wasi.start(instance);
  exit(exitCode === 0 ? 0 : exitCode & 255 || 1); // of a code the kernel keeps eight bits
} catch (error) {
  const known = error instanceof Error;
  complaint(known ? `${error.name}: ${error.message}` : "Error: it ended in its start function");
}
