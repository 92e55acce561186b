"""The HTTP front end: routes as a table over the dataplane, on the native connection."""
