"""How gunicorn serves `vulcan_site.wsgi`; it reads this file by itself.

A request lasts as long as its workload, so there are many threads, most of which wait.
"""

worker_class = "gthread"
workers = 4
threads = 32
timeout = 60  # of a worker that does not answer its parent; threads that wait do not count
graceful_timeout = 30  # more than `grace_s` of the executor
bind = "127.0.0.1:8000"


def post_worker_init(worker: object) -> None:
    """Take up what waits, and settle what a server before this one left, without a request."""
    from backends_app.executors import executor

    executor().ensure_started(wait_s=0)
