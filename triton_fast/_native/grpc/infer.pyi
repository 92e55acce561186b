"""ModelInferRequest messages into queues, responses into messages. Native use only."""
