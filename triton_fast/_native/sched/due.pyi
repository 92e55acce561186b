"""The heap of deadlines has only a C interface. Source: sched/due.pyx; tested through ``queue_driver``."""
