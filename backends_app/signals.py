"""Django signals for events that other code, such as metrics, can subscribe to.

Receivers run in the sending thread, so they must be quick. Their exceptions are logged and do not
reach the sender. Senders are None.
"""

from django.dispatch import Signal

workload_ended = Signal()
"""A recorded workload has ended, whether or not it ever started. `workload`: its row."""

execution_ended = Signal()
"""A backend has returned the result of a workload that ran in this process.

`name` of the backend; `runtime`; `result`; and `seconds`, the total duration of the execution.
"""

probe_ended = Signal()
"""A probe has ended.

`name` of the backend; `seconds`, the duration of the probe; and `warm_count`, the number of warm
instances in this process just before, or None.
"""

threads_held = Signal()
"""A request starts or stops holding a thread of this process while it waits, or was refused.

`held`, the number of held threads; `limit`, their maximum; `refused`, whether this request was
refused.
"""

streams_open = Signal()
"""A log stream without a thread of its own starts or ends, or was refused; as `threads_held`."""
