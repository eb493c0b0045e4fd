"""The vendors' protocols, each a pure state machine: what a client sends -> what it is answered; a tick -> bytes."""
