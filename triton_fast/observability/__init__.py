"""What operators see: log lines, tables and metrics."""
