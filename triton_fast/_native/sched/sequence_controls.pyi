"""Control inputs and padding: native only. Source: sched/sequence_controls.pyx."""
