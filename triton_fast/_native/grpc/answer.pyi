"""What the server says of a call in HTTP/2 fields: head, trailer, refusals. Native use only."""
