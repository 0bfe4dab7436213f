"""Speed and steadiness of the service."""
