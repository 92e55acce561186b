"""Where queued requests stand has only a C interface. Source: sched/lanes.pyx; tested through ``queue_driver``."""
