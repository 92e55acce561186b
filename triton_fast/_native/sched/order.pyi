"""The order of responses has only a C interface. Source: sched/order.pyx; tested through ``queue_driver``."""
