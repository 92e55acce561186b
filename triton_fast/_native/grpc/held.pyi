"""Python objects that hold on to native structs of a call. Native use only."""

class Lent:
    """The request of a response that counts as unsent, on its way from one message to the other."""

class CallRef:
    """A call that Python code holds on to."""
