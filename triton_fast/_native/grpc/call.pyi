"""gRPC calls, their infer requests and the messages on their way out, as native structs."""

def stats() -> dict[str, int]:
    """Return the debug counters: live_calls, live_items, live_outs. All are 0 when no call is in hand."""
