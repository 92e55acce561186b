"""The queue has only a C interface. Source: sched/queue.pyx; tested through ``queue_driver``."""
