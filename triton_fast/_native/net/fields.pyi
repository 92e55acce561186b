"""Header fields that mean the same in every protocol: secrets, reserved names, forwarding. Native use only."""
