// Runs a WASI command module (preview 1); it reads the input from stdin like any program.

import { WASI } from "node:wasi";

process.emitWarning = () => {}; // node:wasi calls itself experimental on every stderr

const shortened = (code) => (code === 0 ? 0 : code & 255 || 1); // the kernel keeps eight bits
const COMPONENT = 0x0d; // where a module has its version, see the binary format of either

const { code } = receive();
try {
  if (code[0] === 0 && code[4] === COMPONENT) {
    complaint("LinkError: it is a component (WASI preview 2), and only modules of preview 1 run here");
  }
  const wasi = new WASI({ version: "preview1", args: ["workload"], returnOnExit: true });
  const module = await WebAssembly.compile(code);
  if (WebAssembly.Module.imports(module).some(({ name }) => name === "thread-spawn")) {
    complaint("LinkError: the module wants threads (wasi-threads), which there are none of");
  }
  const imports = wasi.getImportObject();
  // By an exception, as it is made there, a module that catches everything would go on.
  imports.wasi_snapshot_preview1.proc_exit = (code) => exit(shortened(code));
  const instance = await WebAssembly.instantiate(module, imports);
  if (typeof instance.exports._start !== "function") {
    complaint("LinkError: the module exports no function _start, so it is no WASI command");
  }
  exit(shortened(wasi.start(instance)));
} catch (error) {
  const known = error instanceof Error;
  complaint(known ? `${error.name}: ${error.message}` : "Error: it ended in its start function");
}
