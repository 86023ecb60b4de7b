"""The versioned directory of artifacts: identity, manifests, builds and checks. Needs the standard library only."""
