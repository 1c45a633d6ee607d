"""Django signals: what happens here that others may want to hear of, such as metrics.

Who sends them knows nobody who listens. A receiver has to be quick, for it is called where the
thing happens; what it raises is logged, and stops nothing. Senders are None.
"""

from django.dispatch import Signal

workload_ended = Signal()
"""A recorded workload has ended, whether or not it ever began. `workload`: its row."""

execution_ended = Signal()
"""A backend has said what became of a workload that it ran in this process.

`name` of the backend; `runtime`; `result`; and `seconds`, all that it took for this.
"""

probe_ended = Signal()
"""A probe has ended. `name` of the backend; `seconds` that it took; and `spares`, how many waited
ready in this process just before, or None.
"""

threads_held = Signal()
"""A request begins or ceases to hold a thread of this process while it waits, or may not.

`held`, how many do so now; `limit`, how many may; `refused`, whether this one may not.
"""

registry_read = Signal()
"""A request or a workload has asked the registry. `operation`: what for, one word."""
