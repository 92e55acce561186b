"""Implicit state: native only. Source: sched/sequence_state.pyx."""
