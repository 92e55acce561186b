"""Sequences by id, in lists and in slots: native only. Source: sched/sequence_slots.pyx."""
