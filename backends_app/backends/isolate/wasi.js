// Runs a WASI command module (preview 1) in an empty container: it has its arguments, its
// three streams, the time and randomness; no variable, no file, no folder, no socket.
//
// The functions behave like wasmtime's. Deno's own `node:wasi` is not used: it behaves differently
// (docs/wasi.md), and most of it is about files, which do not exist here.

const SUCCESS = 0;
const BADF = 8;
const INVAL = 28;
const NOTDIR = 54;
const NOTSOCK = 57;
const NOTSUP = 58;
const SPIPE = 70;
const READ = 2n; // the rights of a stream
const WRITE = 64n;
const CLOCK = 0; // event types of `poll_oneoff`
const TO_READ = 1;
const TO_WRITE = 2;
const FUNCTIONS_OF_FILES = [
  "fd_advise",
  "fd_allocate",
  "fd_datasync",
  "fd_fdstat_set_flags",
  "fd_fdstat_set_rights",
  "fd_filestat_set_size",
  "fd_filestat_set_times",
  "fd_prestat_get",
  "fd_readdir",
  "fd_sync",
  "path_create_directory",
  "path_filestat_get",
  "path_filestat_set_times",
  "path_link",
  "path_open",
  "path_readlink",
  "path_remove_directory",
  "path_rename",
  "path_symlink",
  "path_unlink_file",
];
const MOST_RANDOM_BYTES = 65536; // the maximum of one call
const COMPONENT = 0x0d; // the version field of a module that is a component, see the binary format of either
const now = performance.now.bind(performance);

const { code, given } = receive();
const began = now(); // this process may have waited for hours
const clocks = [Date.now(), 0].map((start) => () => BigInt(Math.round((start + now() - began) * 1e6)));
const arguments_ = parse(decoder.decode(given)).map((word) => encode(`${word}\0`));
const writing = (stream) => ({
  right: WRITE,
  move: (bytes) => {
    for (let at = 0; at < bytes.length; ) at += stream.writeSync(bytes.subarray(at));
    return bytes.length;
  },
});
const streams = new Map([
  [0, { right: READ, move: (bytes) => read(bytes) ?? 0 }],
  [1, writing(Deno.stdout)],
  [2, writing(Deno.stderr)],
]);

// Parts of the module's memory. One that is outside of it, or not aligned, is a RangeError.
let instance;
const part = (Type) => (pointer, length = 1) => {
  const memory = instance?.exports.memory;
  if (!(memory instanceof WebAssembly.Memory)) throw new TypeError("the module exports no memory");
  return new Type(memory.buffer, pointer >>> 0, length);
};
const bytes = part(Uint8Array);
const halves = part(Uint16Array);
const words = part(Uint32Array);
const longs = part(BigUint64Array);

// A function that always fails: the descriptor does not exist, or is of another kind.
const refusal = (errno, right) => (fd) => {
  const stream = streams.get(fd);
  return stream !== undefined && (right ?? stream.right) === stream.right ? errno : BADF;
};

const transfer = (right) => (fd, vectors, count, moved) => {
  const stream = streams.get(fd);
  if (stream?.right !== right) return BADF;
  const total = words(moved);
  const list = words(vectors, 2 * (count >>> 0));
  let sum = 0;
  for (let at = 0; at < list.length; at += 2) {
    const count = stream.move(bytes(list[at], list[at + 1]));
    sum += count;
    if (count < list[at + 1]) break;
  }
  total[0] = sum;
  return SUCCESS;
};

const answered = (answer) => (id, result) => {
  if (id >>> 0 > 3) throw new RangeError(`there is no clock ${id >>> 0}`);
  if (!clocks[id]) return BADF;
  longs(result)[0] = answer(clocks[id]);
  return SUCCESS;
};

function sleep(nanoseconds) {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, Number(nanoseconds) / 1e6);
}

// One of the events that `poll_oneoff` waits for, or the error for it.
function subscription(pointer) {
  const [user] = longs(pointer);
  const [type] = bytes(pointer + 8);
  if (type === CLOCK) {
    const [id] = words(pointer + 16);
    const [time] = longs(pointer + 24);
    const [absolute] = halves(pointer + 40);
    if (!clocks[id] || absolute > 1) return INVAL;
    const wait = absolute ? time - clocks[id]() : time;
    return { user, type, wait: wait < 0n ? 0n : wait };
  }
  if (type !== TO_READ && type !== TO_WRITE) return INVAL;
  const [fd] = words(pointer + 16);
  if (streams.get(fd)?.right !== (type === TO_READ ? READ : WRITE)) return BADF;
  return { user, type };
}

const functions = {
  ...Object.fromEntries(FUNCTIONS_OF_FILES.map((name) => [name, () => BADF])),
  fd_prestat_dir_name: refusal(NOTDIR),
  fd_pread: refusal(SPIPE, READ),
  fd_pwrite: refusal(SPIPE, WRITE),
  fd_seek: refusal(SPIPE),
  fd_tell: refusal(SPIPE),
  sock_accept: refusal(NOTSOCK),
  sock_recv: refusal(NOTSOCK),
  sock_send: refusal(NOTSOCK),
  sock_shutdown: refusal(NOTSOCK),

  fd_read: transfer(READ),
  fd_write: transfer(WRITE),
  fd_close: (fd) => (streams.delete(fd) ? SUCCESS : BADF),
  fd_renumber: (from, to) => {
    const stream = streams.get(from);
    if (stream === undefined || !streams.has(to)) return BADF;
    streams.delete(from);
    streams.set(to, stream);
    return SUCCESS;
  },
  fd_fdstat_get: (fd, result) => {
    const right = streams.get(fd)?.right;
    if (right === undefined) return BADF;
    longs(result, 3).set([0n, right, right]); // of unknown type: not a terminal
    return SUCCESS;
  },
  fd_filestat_get: (fd, result) => {
    if (!streams.has(fd)) return BADF;
    longs(result, 8).fill(0n);
    return SUCCESS;
  },

  args_sizes_get: (count, size) => {
    words(count)[0] = arguments_.length;
    words(size)[0] = arguments_.reduce((sum, word) => sum + word.length, 0);
    return SUCCESS;
  },
  args_get: (pointers, text) => {
    arguments_.forEach((word, at) => {
      words(pointers + 4 * at)[0] = text;
      bytes(text, word.length).set(word);
      text += word.length;
    });
    return SUCCESS;
  },
  environ_sizes_get: (count, size) => {
    words(count)[0] = words(size)[0] = 0;
    return SUCCESS;
  },
  environ_get: () => SUCCESS,

  clock_res_get: answered(() => 1n),
  clock_time_get: (id, _, result) => answered((clock) => clock())(id, result),
  random_get: (pointer, length) => {
    const wanted = bytes(pointer, length >>> 0);
    for (let at = 0; at < wanted.length; at += MOST_RANDOM_BYTES) {
      crypto.getRandomValues(wanted.subarray(at, at + MOST_RANDOM_BYTES));
    }
    return SUCCESS;
  },
  sched_yield: () => SUCCESS,

  // The streams never block: all of the input is available, and the host reads all output.
  // So they come first, and the nearest timeout only if no stream is polled.
  poll_oneoff: (subscriptions, events, count, ready) => {
    const size = count >>> 0;
    if (size === 0) return INVAL;
    const total = words(ready);
    bytes(subscriptions, 48 * size); // otherwise the list ends outside
    const asked = [];
    for (let at = 0; at < size; at++) {
      const event = subscription(subscriptions + 48 * at);
      if (typeof event === "number") return event;
      asked.push(event);
    }
    let come = asked.filter(({ type }) => type !== CLOCK);
    if (come.length === 0) {
      const least = asked.reduce((least, { wait }) => (wait < least ? wait : least), asked[0].wait);
      sleep(least);
      come = asked.filter(({ wait }) => wait === least);
    }
    come.forEach(({ user, type }, at) => {
      longs(events + 32 * at, 4).set([user, BigInt(type) << 16n, type === CLOCK ? 0n : 1n, 0n]);
    });
    total[0] = come.length;
    return SUCCESS;
  },

  proc_raise: () => NOTSUP,
  proc_exit: (code) => exit(code === 0 ? 0 : code & 255 || 1), // the kernel keeps eight bits
};

const failed = (error, where = "") =>
  complaint(
    error instanceof Error
      ? `${error.name}: ${where}${error.message}`
      : "Error: the module threw an exception that nothing caught",
  );

// A module that catches everything would continue after an exception in a function that it called.
const final = (name, call) => (...given) => {
  try {
    return call(...given);
  } catch (error) {
    return failed(error, `${name}: `);
  }
};
for (const [name, call] of Object.entries(functions)) functions[name] = final(name, call);

try {
  if (code[0] === 0 && code[4] === COMPONENT) {
    complaint("LinkError: it is a component (WASI preview 2), and only modules of preview 1 run here");
  }
  const module = await WebAssembly.compile(code);
  if (WebAssembly.Module.imports(module).some(({ name }) => name === "thread-spawn")) {
    complaint("LinkError: the module wants threads (wasi-threads), which there are none of");
  }
  instance = await WebAssembly.instantiate(module, { wasi_snapshot_preview1: functions });
  if (typeof instance.exports._start !== "function") {
    complaint("LinkError: the module exports no function _start, so it is no WASI command");
  }
  instance.exports._start();
  exit(0);
} catch (error) {
  failed(error);
}
