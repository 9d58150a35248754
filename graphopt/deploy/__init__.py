"""Deployment: how an artifact is opened: manifest, sessions, processors."""
