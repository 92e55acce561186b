"""What sequences do with responses: native only. Source: sched/sequence_taps.pyx."""
