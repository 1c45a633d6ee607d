"""Small WebAssembly modules in base64, each with the text that wat2wasm made it of."""

# (module
#   (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
#   (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
#   (memory (export "memory") 1)
#   (func (export "_start")
#     (loop $more
#       (i32.store (i32.const 0) (i32.const 64))
#       (i32.store (i32.const 4) (i32.const 4096))
#       (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
#       (if (i32.load (i32.const 8))
#         (then
#           (i32.store (i32.const 4) (i32.load (i32.const 8)))
#           (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 12)))
#           (br $more))))))
ECHO = (
    "AGFzbQEAAAABDAJgBH9/f38Bf2AAAAJEAhZ3YXNpX3NuYXBzaG90X3ByZXZpZXcxB2ZkX3JlYWQAABZ3YXNpX3NuYXBz"
    "aG90X3ByZXZpZXcxCGZkX3dyaXRlAAADAgEBBQMBAAEHEwIGbWVtb3J5AgAGX3N0YXJ0AAIKQQE/AANAQQBBwAA2AgBB"
    "BEGAIDYCAEEAQQBBAUEIEAAaQQgoAgAEQEEEQQgoAgA2AgBBAUEAQQFBDBABGgwBCwsL"
)

# Writes "boom" to file descriptor 2, then calls proc_exit with 3.
FAILS = (
    "AGFzbQEAAAABEANgBH9/f38Bf2ABfwBgAAACRgIWd2FzaV9zbmFwc2hvdF9wcmV2aWV3MQhmZF93cml0ZQAAFndhc2lf"
    "c25hcHNob3RfcHJldmlldzEJcHJvY19leGl0AAEDAgECBQMBAAEHEwIGbWVtb3J5AgAGX3N0YXJ0AAIKIgEgAEEAQcAA"
    "NgIAQQRBBTYCAEECQQBBAUEMEAAaQQMQAQsLDAEAQcAACwVib29tCg=="
)

# (func (export "_start"))
NOTHING = "AGFzbQEAAAABBAFgAAADAgEABQMBAAEHEwIGbWVtb3J5AgAGX3N0YXJ0AAAKBAECAAs="

# (func (export "_start") (unreachable))
TRAP = "AGFzbQEAAAABBAFgAAADAgEABQMBAAEHEwIGbWVtb3J5AgAGX3N0YXJ0AAAKBQEDAAAL"

# (func (export "_start") (loop $l (br $l)))
SPIN = "AGFzbQEAAAABBAFgAAADAgEABQMBAAEHEwIGbWVtb3J5AgAGX3N0YXJ0AAAKCQEHAANADAALCw=="

# (loop $l (drop (memory.grow (i32.const 16)))
#   (memory.fill (i32.const 0) (i32.const 1) (i32.mul (memory.size) (i32.const 65536))) (br $l))
GROW = (
    "AGFzbQEAAAABBAFgAAADAgEABQMBAAEHEwIGbWVtb3J5AgAGX3N0YXJ0AAAKHAEaAANAQRBAABpBAEEBPwBBgIAEbPwL"
    "AAwACws="
)

# (func (export "other")), and no _start
NO_START = "AGFzbQEAAAABBAFgAAADAgEABwkBBW90aGVyAAAKBAECAAs="

# (import "env" "x" (func))
FOREIGN_IMPORT = "AGFzbQEAAAABBAFgAAACCQEDZW52AXgAAAMCAQAHCgEGX3N0YXJ0AAEKBAECAAs="

# (module
#   (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
#   (memory (export "memory") 1)
#   (func (export "_start") (try (do (call $exit (i32.const 3))) (catch_all))))
EXITS_IN_TRY = (
    "AGFzbQEAAAABCAJgAX8AYAAAAiQBFndhc2lfc25hcHNob3RfcHJldmlldzEJcHJvY19leGl0AAADAgEBBQMBAAEH"
    "EwIGbWVtb3J5AgAGX3N0YXJ0AAEKDAEKAAZAQQMQABkLCw=="
)

# (import "wasi" "thread-spawn" (func (param i32) (result i32))), and an empty _start
THREADS = (
    "AGFzbQEAAAABCQJgAX8Bf2AAAAIVAQR3YXNpDHRocmVhZC1zcGF3bgAAAwIBAQUDAQABBxMCBm1lbW9yeQIABl9z"
    "dGFydAABCgQBAgAL"
)

# (component)
COMPONENT = "AGFzbQ0AAQA="
