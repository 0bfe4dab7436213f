"""Which policy answers under which name, and the gate before it."""
