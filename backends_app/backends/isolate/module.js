// Runs a program in JavaScript or TypeScript: an ES module, whose default export is called with the
// input, or CommonJS, whose `module.exports` is. V8 gets the source unchanged: only source that is not
// JavaScript is treated as TypeScript, with its types replaced by blanks; source that needs more than
// that (enums, decorators), or is wrong, goes to Deno's own loader.

import vm from "node:vm";

const { includes, replaceAll } = String.prototype;
const { test } = RegExp.prototype;
const ErrorType = Error;
const { toString: errorToString } = Error.prototype;
const { SourceTextModule, SyntheticModule, compileFunction } = vm;
const { setExport } = SyntheticModule.prototype;
const { link, evaluate } = Object.getPrototypeOf(SourceTextModule.prototype);
const [namespaceOf, statusOf] = ["namespace", "status"].map(
  (name) => describeProperty(Object.getPrototypeOf(SourceTextModule.prototype), name).get,
);
const { isPromise } = util.types;
const { keys, hasOwn } = Object;
const { join } = Array.prototype;
const locate = (source) =>
  URL.createObjectURL(new Blob([source], { type: "application/typescript" }));
const URL_OF_FILE = `file:///${NAME}`;
const PATH = `/${NAME}`;
const OF_COMMONJS = steady(/\b(?:require|module|exports|__filename|__dirname)\b/);
const WITHIN = steady(/^(?:data|blob):/i); // modules that the program itself contains
const ABSENT = "a workload is one module, no other is there";
const NO_FILES = "invalid URL: relative URL with a cannot-be-a-base base";
const META = `import.meta.url="${URL_OF_FILE}";import.meta.filename="${PATH}";import.meta.dirname="/";import.meta.main=true;`;

// Available modules: the built-in ones, by both of their names, and those in URLs.
const builtins = { __proto__: null };
function absent(specifier, code) {
  const error = new ErrorType(`Cannot find module '${specifier}': ${ABSENT}`);
  own(error, "code", code);
  return error;
}
const BUILTIN = steady(/^(?:node:)?[a-z_][a-z0-9_]*(?:\/[a-z0-9_]+)*$/);
async function found(specifier, attributes) {
  if (apply(test, WITHIN, [specifier])) {
    const namespace = await within(specifier, attributes);
    return mirror(namespace, (name) => namespace[name]);
  }
  const module = apply(test, BUILTIN, [specifier]) && (await builtin(bare(specifier)));
  if (module) return module;
  throw absent(specifier, "ERR_MODULE_NOT_FOUND");
}
async function within(specifier, attributes) {
  for (const id of keys(preparations)) await builtin(id); // which it may import by itself
  return import(specifier, { with: attributes });
}
async function builtin(id) {
  if (builtins[id]) return builtins[id];
  let namespace;
  try {
    namespace = await import(`node:${id}`);
  } catch {
    return undefined;
  }
  const home = namespace.default;
  furnish(id, home);
  const values = typeof home === "function" || typeof home === "object" ? home : {};
  // Replaced properties of the module are replaced for importers by name, too.
  const now = (name) => {
    const property = describeProperty(values, name);
    return property && hasOwn(property, "value") ? property.value : namespace[name];
  };
  return (builtins[id] = mirror(namespace, (name) => (name === "default" ? home : now(name))));
}
function mirror(namespace, value) {
  const names = keys(namespace);
  const module = new SyntheticModule(names, () => {
    for (let at = 0; at < names.length; at++) apply(setExport, module, [names[at], value(names[at])]);
  });
  return module;
}
const linked = (specifier, _, extra) => found(specifier, extra?.attributes);
async function dynamic(specifier, _, attributes) {
  const wanted = `${specifier}`;
  if (apply(test, WITHIN, [wanted])) return within(wanted, attributes);
  const module = await found(wanted, attributes);
  if (apply(statusOf, module, []) === "unlinked") await apply(link, module, [linked]);
  if (apply(statusOf, module, []) === "linked") await apply(evaluate, module, []);
  return module;
}

// `require`, for CommonJS and for bundles that create one.
let createRequire, isBuiltin, Module, strip;
preparations.module = (nodeModule) => {
  ({ createRequire, isBuiltin, Module, stripTypeScriptTypes: strip } = nodeModule);
  own(nodeModule, "createRequire", (from) => {
    createRequire(from); // which throws the right error
    return makeRequire(undefined);
  });
};
const loadModule = () => getProcess().getBuiltinModule("module");
function makeRequire(main) {
  const original = createRequire(URL_OF_FILE);
  const missing = (id) => {
    const error = new ErrorType(`Cannot find module '${id}': ${ABSENT}\nRequire stack:\n- ${PATH}`);
    own(error, "code", "MODULE_NOT_FOUND");
    own(error, "requireStack", [PATH]);
    return error;
  };
  const require = (id) => {
    if (typeof id === "string" && !isBuiltin(id)) {
      if (hasOwn(require.cache, id)) return require.cache[id].exports;
      throw missing(id);
    }
    const home = original(id);
    furnish(bare(id), home);
    return home;
  };
  own(require, "resolve", (id) => {
    if (isBuiltin(id)) return id;
    throw missing(id);
  });
  own(require.resolve, "paths", () => null);
  own(require, "main", main);
  own(require, "cache", original.cache);
  own(require, "extensions", original.extensions);
  return require;
}
const options = () => ({
  identifier: URL_OF_FILE,
  importModuleDynamically: dynamic,
  initializeImportMeta: (meta) => {
    meta.dirname = "/";
    meta.filename = PATH;
    meta.main = true;
    meta.resolve = (specifier) => {
      loadModule();
      if (isBuiltin(specifier)) return `node:${bare(specifier)}`;
      return new LocationType(specifier, URL_OF_FILE).href;
    };
    meta.url = URL_OF_FILE;
  },
});
const LocationType = URL;

// A module's exports; without a prototype, because the program could have made one a promise.
const of = (namespace) =>
  "default" in namespace
    ? { __proto__: null, made: namespace.default }
    : { __proto__: null, exported: keys(namespace) };

// The text for V8: an ES module or, if it is written so, CommonJS; or nothing.
function parsed(source) {
  const mayBeCommonJS = apply(test, OF_COMMONJS, [source]);
  const found = (mayBeCommonJS && commonJS(source)) || esModule(source);
  return found ?? (mayBeCommonJS ? undefined : commonJS(source));
}
function esModule(source) {
  try {
    const module = new SourceTextModule(source, options());
    return async () => {
      await apply(link, module, [linked]);
      return async () => {
        await apply(evaluate, module, []);
        return of(apply(namespaceOf, module, []));
      };
    };
  } catch (error) {
    if (error instanceof SyntaxErrorType) return undefined;
    throw error;
  }
}
const SyntaxErrorType = SyntaxError;
function commonJS(source) {
  let body;
  try {
    body = compileFunction(
      apply(replace, source, [/^#!/, "//"]),
      ["exports", "require", "module", "__filename", "__dirname"],
      { filename: URL_OF_FILE, importModuleDynamically: dynamic },
    );
  } catch {
    return undefined;
  }
  return async () => async () => {
    loadModule();
    const module = new Module(PATH);
    own(module, "filename", PATH);
    own(module, "id", ".");
    own(module, "paths", []);
    const require = makeRequire(module);
    own(module, "require", require);
    require.cache[PATH] = module;
    own(node, "mainModule", module);
    apply(body, module.exports, [module.exports, require, module, PATH, "/"]);
    module.loaded = true;
    const { exports } = module;
    if (typeof exports === "function") return { __proto__: null, made: exports };
    const module_ = typeof exports === "object" && exports !== null ? exports : {};
    if (hasOwn(module_, "__esModule") && hasOwn(module_, "default")) return of(module_);
    return { __proto__: null, exported: keys(module_) };
  };
}

// Source that is not JavaScript may be TypeScript, which Deno's loader accepts. But a program that needs
// features of this harness is run here, with blanks for its types.
const OF_HARNESS_ALONE = steady(/\b(?:require|module|exports)\b|["'](?:node:)?(?:fs|os|process|module)["']/);
function stripped(source) {
  if (!apply(test, OF_HARNESS_ALONE, [source])) return undefined;
  loadModule();
  try {
    return parsed(strip(source));
  } catch {
    return undefined;
  }
}

// Deno's own loader supports all of TypeScript, and reports the location of an error.
let loaded = "";
let shift = 0;
let onFirstLine;
const RegExpType = RegExp;
async function load(source) {
  const asks = apply(includes, source, ["import.meta"]) && !apply(startsWith, source, ["#!"]);
  shift = asks ? META.length : 0;
  loaded = locate(shift ? META + source : source);
  for (const id of keys(preparations)) {
    if (apply(includes, source, [id])) await builtin(id);
  }
  onFirstLine = steady(new RegExpType(`${loaded}:1:([0-9]+)`, "g"));
  return of(await import(loaded));
}

function rename(string) {
  if (loaded === "") return string;
  const shown = shift === 0 ? string : apply(replace, string, [onFirstLine, (_, column) => `${NAME}:1:${column - shift}`]);
  return apply(replaceAll, shown, [loaded, NAME]);
}

// In every stack the module has its public name, also if the program prints the stack.
const OF_HARNESS = { __proto__: null, [import.meta.url]: true, "ext:deno_node/vm.js": true };
const OF_FILE = steady(new RegExp(`(^|\\()(?:file://)?${PATH}:`));
own(Error, "prepareStackTrace", (error, frames) => {
  let stack = apply(errorToString, error, []);
  for (let at = 0; at < frames.length; at++) {
    if (OF_HARNESS[frames[at].getFileName()]) continue;
    stack += `\n    at ${apply(replace, `${frames[at]}`, [OF_FILE, `$1${NAME}:`])}`;
  }
  return rename(stack);
}, false);
const OF_OTHER_REALMS = steady(/\n +at [^\n]*(?:data:text\/javascript;base64,Y29uc3Qg|ext:deno_node\/vm)[^\n]*/g);
const UNCAUGHT = steady(/^Uncaught /);

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

function message(error) {
  try {
    return apply(slice, text(error.message), [0, MAX_ERROR_CHARS]);
  } catch {
    return "it cannot be shown";
  }
}

// The thrown value as Node shows it: with stack, causes and other properties, and with the public
// name of the user's file. A load error has a message with its location.
function describe(error) {
  try {
    const { message, code } = error ?? {};
    const plain = typeof error === "string" || code === "ERR_MODULE_NOT_FOUND";
    const shown = plain ? text(message ?? error) : inspected(error);
    return apply(replaceAll, apply(replace, rename(shown), [OF_OTHER_REALMS, ""]), [NO_FILES, ABSENT]);
  } catch {
    return "exception that cannot be shown";
  }
}

// If the program has replaced the functions that inspection needs, only the stack is shown.
function inspected(error) {
  try {
    return inspect(error, PLAIN);
  } catch {
    return text(error.stack ?? error);
  }
}

// Uncaught errors are passed to the program's listeners first, as everywhere; the harness reports
// them if there are none. Deno calls all listeners in order, ours first, so the others are called
// with a separate event.
const { ErrorEvent: ErrorEventType, PromiseRejectionEvent: RejectionEventType } = globalThis;
const { preventDefault, stopImmediatePropagation } = Event.prototype;
const { get: defaultPrevented } = describeProperty(Event.prototype, "defaultPrevented");
const [errorOf, messageOf] = ["error", "message"].map(
  (name) => describeProperty(ErrorEventType.prototype, name).get,
);
const [reasonOf, promiseOf] = ["reason", "promise"].map(
  (name) => describeProperty(RejectionEventType.prototype, name).get,
);
const listeners = (name) => (node === undefined ? 0 : apply(nodes.listenerCount, node, [name]));
const emit = (...given) => node !== undefined && apply(nodes.emit, node, given);
let asking;
announce = (exitCode) => {
  if (node === undefined) return;
  node._exiting = true;
  emit("exit", exitCode || node.exitCode || 0);
};

// Has the program handled it?
function taken(event) {
  const before = asking;
  asking = event;
  try {
    dispatch(event);
  } catch {
    // Deno itself failed because of the program's changes to its realm
  } finally {
    asking = before;
  }
  return apply(defaultPrevented, event, []);
}

function uncaught(error, origin) {
  if (listeners("uncaughtException") > 0) {
    emit("uncaughtExceptionMonitor", error, origin);
    emit("uncaughtException", error, origin);
  } else {
    complaint(describe(error));
  }
}

function fail(error) {
  settled = true;
  const event = new ErrorEventType("error", { cancelable: true, error, message: `Uncaught ${describe(error)}` });
  if (!taken(event)) uncaught(error, "uncaughtException");
}

addEventListener("error", (event) => {
  if (event === asking) return;
  let error, message;
  try {
    error = apply(errorOf, event, []);
    message = apply(messageOf, event, []);
  } catch {
    return; // an event of the program's own with the same name
  }
  apply(stopImmediatePropagation, event, []);
  apply(preventDefault, event, []);
  const again = new ErrorEventType("error", { cancelable: true, error, message });
  if (taken(again)) return;
  if (error === null || error === undefined) complaint(apply(replace, message, [UNCAUGHT, ""])); // the format of workers
  else uncaught(error, "uncaughtException");
});
addEventListener("unhandledrejection", (event) => {
  if (event === asking) return;
  let reason, promise;
  try {
    reason = apply(reasonOf, event, []);
    promise = apply(promiseOf, event, []);
  } catch {
    return; // an event of the program's own with the same name
  }
  apply(stopImmediatePropagation, event, []);
  apply(preventDefault, event, []);
  if (taken(new RejectionEventType("unhandledrejection", { cancelable: true, promise, reason }))) return;
  if (listeners("unhandledRejection") > 0) emit("unhandledRejection", reason, promise);
  else uncaught(reason, "unhandledRejection");
});

let settled = false;
let awaits = "Error: Top-level await promise never resolved";
addEventListener("beforeunload", () => {
  if (!settled && !ended) complaint(awaits);
});

// Is it a thenable? A getter that throws means that it is not.
function waits(value) {
  if (value === null || (typeof value !== "object" && typeof value !== "function")) return false;
  try {
    return isPromise(value) || typeof value.then === "function";
  } catch {
    return false;
  }
}

// No promise is passed to a function that the program could have replaced.
async function run(source, input) {
  let result;
  try {
    let evaluated;
    const prepared = parsed(source) ?? stripped(source);
    try {
      evaluated = await prepared?.();
    } catch (error) {
      // Perhaps only types are missing: Deno's loader drops imports that are used only as types.
      if (!(error instanceof SyntaxErrorType)) throw error;
    }
    result = await (evaluated ? evaluated() : load(source));
    if ("made" in result) {
      if (typeof result.made !== "function") {
        complaint("Error: the default export must be a function; it is called with the input");
      }
      awaits = "Error: nothing is left to run, and the promise was never settled";
      const { made } = result;
      const value = made(input);
      result = { __proto__: null, value: waits(value) ? await value : value };
    }
  } catch (error) {
    fail(error);
    return;
  }
  if ("value" in result) succeed(result.value);
  settled = true; // a script: it ends when its event loop is empty
  if (input !== null) {
    unused = "the module has no default export to be called with the input, and did not read it from stdin";
    if (result.exported.length > 0) unused += `; it exports ${apply(join, result.exported, [", "])}`;
  }
}

// Everything is used once in advance, so that it is loaded when it is needed.
const PLAINLY = "export default 1;";
const TYPED = "export default (ready: number) => ready;";
await (await parsed(PLAINLY)())();
if ((parsed(TYPED) ?? stripped(TYPED)) === undefined) await load(TYPED);
loaded = "";
const { code, given } = receive();
run(decoder.decode(code), parse(decoder.decode(given)));
