// The environment of a Node or Deno program: an empty container. No variable, no file except its
// three streams, one processor, and the same names of host, user and kernel everywhere. Deno would
// throw an error for each of these queries, because the program has no permission.

//
// Node's modules take tens of milliseconds to load, so only those that nearly every program needs are
// loaded in advance: `furnish` patches the others when the program first loads them.

import util from "node:util";

const USER = 1000;
const HOST = "vulcan"; // the kernel's host name is the same
const KERNEL = "6.1.0";
const STREAMS = { __proto__: null, "/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2 };
const ADVICE = steady(/,? (?:run again|specify the required permissions) .*$/s);
const WISH = steady(/^Requires (\w+) access/);
// The errors that the kernel of an empty container would return for the same call.
const CODES = { __proto__: null, read: ["ENOENT", -2], write: ["EROFS", -30] };
const DENIED = ["EACCES", -13];

const { match, replace } = String.prototype;
const { defineProperty } = Object;
const own = (object, name, value, enumerable = true) =>
  defineProperty(object, name, { value, enumerable, configurable: true, writable: true });
const fixed = (object, answers) => {
  for (const name of Object.keys(answers)) own(object, name, answers[name]);
};

// Deno's errors of this kind are created with their parent class's constructor.
const { NotCapable } = Deno.errors;
class Denied extends Error {
  constructor(message, options) {
    super(apply(replace, `${message}`, [ADVICE, ""]), options);
    const wish = apply(match, this.message, [WISH]);
    const [code, errno] = (wish && CODES[wish[1]]) || DENIED;
    own(this, "code", code, false);
    own(this, "errno", errno, false);
  }
}
Object.setPrototypeOf(NotCapable, Denied);
Object.setPrototypeOf(NotCapable.prototype, Error.prototype);

const preparations = { __proto__: null };
const furnished = { __proto__: null };
function furnish(id, home) {
  if (furnished[id]) return;
  furnished[id] = true;
  preparations[id]?.(home);
}

// Variables: none exist, except those that the program sets.
const text = String;
const variables = { __proto__: null };
const environment = new Proxy({}, {
  __proto__: null,
  set: (target, name, value) => Reflect.set(target, name, typeof name === "symbol" ? value : text(value)),
  defineProperty: (target, name, property) =>
    "value" in property
      ? Reflect.defineProperty(target, name, { ...property, value: text(property.value) })
      : Reflect.defineProperty(target, name, property),
});
fixed(Deno.env, {
  get: (name) => (Object.hasOwn(environment, name) ? environment[name] : undefined),
  set: (name, value) => {
    environment[name] = value;
  },
  delete: (name) => {
    delete environment[name];
  },
  has: (name) => Object.hasOwn(environment, name),
  toObject: () => ({ ...environment }),
});

// The host, the user and the processor. Only the kernel knows the resident memory, in a file; V8's
// own figure is available.
const usage = Deno.memoryUsage;
const used = () => {
  const { heapTotal, heapUsed, external } = usage();
  return { rss: heapTotal + external, heapTotal, heapUsed, external, arrayBuffers: 0 };
};
const memory = () => ({ total: MEMORY_BYTES, free: Math.max(0, MEMORY_BYTES - used().rss) });
own(used, "rss", () => used().rss);
own(Deno, "memoryUsage", () => {
  const { rss, heapTotal, heapUsed, external } = used();
  return { rss, heapTotal, heapUsed, external };
});
const now = performance.now.bind(performance);
const uptime = () => now() / 1000;
const processor = () => ({
  model: "unknown",
  speed: 0,
  times: { user: 0, nice: 0, sys: 0, idle: 0, irq: 0 },
});
let priority = 0;
preparations.os = (os) => fixed(os, {
  availableParallelism: () => 1,
  cpus: () => [processor()],
  freemem: () => memory().free,
  getPriority: () => priority,
  homedir: () => environment.HOME ?? "/",
  hostname: () => HOST,
  loadavg: () => [0, 0, 0],
  networkInterfaces: () => ({}),
  release: () => KERNEL,
  setPriority: (...given) => {
    priority = given.at(-1);
  },
  tmpdir: () => environment.TMPDIR ?? environment.TMP ?? environment.TEMP ?? "/tmp",
  totalmem: () => memory().total,
  uptime,
  userInfo: () => ({ uid: USER, gid: USER, username: "workload", homedir: "/", shell: null }),
  version: () => "#1",
});
let mask = 0o022;
const umask = (wanted) => {
  const before = mask;
  if (wanted !== undefined) mask = (typeof wanted === "string" ? parseInt(wanted, 8) : wanted) & 0o777;
  return before;
};
let node; // Node's `process`, once the program has loaded it
let nodes; // and its original properties
preparations.process = (process) => {
  node = process;
  nodes = { emit: process.emit, listenerCount: process.listenerCount };
  own(process, "env", environment);
  own(process, "memoryUsage", used);
  own(process, "argv", ["/deno", `/${NAME}`]);
  process.title = "node";
  fixed(process, {
    availableMemory: () => memory().free,
    constrainedMemory: () => memory().total,
    getegid: () => USER,
    geteuid: () => USER,
    getgid: () => USER,
    getgroups: () => [USER],
    getuid: () => USER,
    umask,
  });
  const { exit: nodesExit, reallyExit, getBuiltinModule } = process;
  own(process, "exit", (code) => nodesExit(kept(code)));
  own(process, "reallyExit", (code) => apply(reallyExit, process, [kept(code)]));
  own(process, "getBuiltinModule", (id) => {
    const home = getBuiltinModule(id);
    if (home !== undefined) furnish(bare(id), home);
    return home;
  });
};
const { startsWith } = String.prototype;
const bare = (id) => (apply(startsWith, id, ["node:"]) ? apply(slice, id, [5]) : id);
const { get: denosProcess, set: setProcess } = describeProperty(globalThis, "process");
const getProcess = () => {
  const process = apply(denosProcess, globalThis, []);
  if (node === undefined) furnish("process", process);
  return process;
};
defineProperty(globalThis, "process", {
  configurable: true,
  enumerable: false,
  get: getProcess,
  set: (value) => own(globalThis, "process", value),
});
fixed(Deno, {
  gid: () => USER,
  hostname: () => HOST,
  loadavg: () => [0, 0, 0],
  networkInterfaces: () => [],
  osRelease: () => KERNEL,
  osUptime: () => Math.round(uptime()),
  systemMemoryInfo: () => {
    const { total, free } = memory();
    return { total, free, available: free, buffers: 0, cached: 0, swapTotal: 0, swapFree: 0 };
  },
  uid: () => USER,
  umask,
});
defineProperty(Navigator.prototype, "hardwareConcurrency", { configurable: true, enumerable: true, get: () => 1 });

// Files: none exist, which is a result and not an error; the streams have their names.
const stream = (path) => (typeof path === "string" ? (STREAMS[path] ?? path) : path);
preparations.fs = (fs) => {
  const { existsSync, exists, statSync, lstatSync } = fs;
  own(fs, "existsSync", (path) => {
    try {
      return path in STREAMS || existsSync(path);
    } catch {
      return false;
    }
  });
  own(fs, "exists", (path, callback) => {
    if (typeof callback !== "function") return exists(path, callback); // which throws the right error
    queueMicrotask(() => callback(fs.existsSync(path)));
  });
  for (const [name, original] of Object.entries({ statSync, lstatSync })) {
    own(fs, name, (path, options) => {
      try {
        return original(path, options);
      } catch (error) {
        if (options?.throwIfNoEntry === false && error?.code === "ENOENT") return undefined;
        throw error;
      }
    });
  }
  for (const name of ["readFile", "writeFile", "appendFile"].flatMap((name) => [name, `${name}Sync`])) {
    const original = fs[name];
    own(fs, name, (path, ...rest) => original(stream(path), ...rest));
  }
  for (const name of ["createReadStream", "createWriteStream"]) {
    const original = fs[name];
    own(fs, name, (path, options) => {
      const fd = stream(path);
      if (fd === path) return original(path, options);
      const given = typeof options === "string" ? { encoding: options } : options;
      return original(path, { ...given, fd, autoClose: false });
    });
  }
  const { openSync, open } = fs;
  own(fs, "openSync", (path, ...rest) => (typeof stream(path) === "number" ? stream(path) : openSync(path, ...rest)));
  own(fs, "open", (path, ...rest) => {
    const fd = stream(path);
    if (fd === path || typeof rest.at(-1) !== "function") return open(path, ...rest);
    queueMicrotask(() => rest.at(-1)(null, fd));
  });
};
const filed = (fd, encoding) => {
  const read = getProcess().getBuiltinModule("fs").readFileSync(fd, encoding);
  return typeof read === "string" ? read : new Bytes(read);
};
for (const [name, encoding] of Object.entries({ readTextFileSync: "utf8", readFileSync: undefined })) {
  const denos = Deno[name];
  own(Deno, name, (path, ...rest) => {
    const fd = stream(path);
    if (fd === path) return denos(path, ...rest);
    return filed(fd, encoding);
  });
}
for (const [name, encoding] of Object.entries({ readTextFile: "utf8", readFile: undefined })) {
  const denos = Deno[name];
  own(Deno, name, async (path, ...rest) => {
    const fd = stream(path);
    if (fd === path) return denos(path, ...rest);
    return filed(fd, encoding);
  });
}

// A stream piped into stdout ends it, and then the result could not be written.
for (const name of ["stdout", "stderr"]) {
  const home = Deno[name];
  let sink;
  defineProperty(home, "writable", {
    configurable: true,
    enumerable: true,
    get: () =>
      (sink ??= new WritableStream({
        write: async (chunk) => {
          for (let at = 0; at < chunk.length; ) at += await home.write(chunk.subarray(at));
        },
      })),
  });
}

// Output is formatted like Node's.
const { formatWithOptions, inspect } = util;
const { repeat, replaceAll: replaceEach } = String.prototype;
const PLAIN = { colors: false };
let indentation = "";
function say(write, given) {
  let line = apply(formatWithOptions, util, [PLAIN, ...given]);
  if (indentation !== "") line = indentation + apply(replaceEach, line, ["\n", `\n${indentation}`]);
  write(encode(`${line}\n`));
}
for (const [name, write] of Object.entries({
  debug: print,
  error: complain,
  info: print,
  log: print,
  warn: complain,
})) {
  own(console, name, (...given) => say(write, given));
}
fixed(console, {
  dir: (value, options) => print(encode(`${inspect(value, { customInspect: false, ...PLAIN, ...options })}\n`)),
  dirxml: (...given) => console.log(...given),
  group: (...given) => {
    if (given.length > 0) console.log(...given);
    indentation += "  ";
  },
  groupEnd: () => {
    indentation = apply(slice, indentation, [2]);
  },
  trace: (...given) => {
    const trace = { name: "Trace", message: util.format(...given) };
    Error.captureStackTrace(trace, console.trace);
    console.error(trace.stack);
  },
});
own(console, "groupCollapsed", console.group);
const nodesConsole = () => getProcess().getBuiltinModule("console").Console;
let tables;
own(console, "table", (...given) => {
  tables ??= new (nodesConsole())({ stdout: node.stdout, stderr: node.stderr });
  tables.table(...given);
});

own(Deno, "exit", (code) => exit(kept(code)));
